"""A plugin that surrounds every run: it says how long each took."""

import sys
import time
from collections.abc import Generator
from typing import Any

from pellucid import hookimpl


@hookimpl(wrapper=True)
def pellucid_run(run: object) -> Generator[None, Any, Any]:
    """Times a run, also one that fails."""
    started = time.perf_counter()
    try:
        return (yield)
    finally:
        print(f"the run took {time.perf_counter() - started:.2f} s", file=sys.stderr)
