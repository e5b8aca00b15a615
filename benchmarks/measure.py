"""Interleaved timing: contenders take turns, so that a machine whose speed drifts is unfair to none."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(contenders: dict[str, Callable[[], object]], repeats: int, pause: float = 0.0) -> dict[str, float]:
    """The median seconds of each contender over some rounds, after one round to warm up.

    Args:
        contenders: what is timed, by name.
        repeats: how many rounds.
        pause: seconds of rest before each: idle threads of one library's matrix products spin on for a while, and would
            take a core from the next contender where that uses another library.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            time.sleep(pause)
            started = time.perf_counter()
            run()
            if repeat:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def ratios(contenders: dict[str, Callable[[], object]], limit: str, repeats: int, pause: float = 0.0) -> dict[str, Any]:
    """The seconds of each contender and their ratios to the limit; `pause` as for `interleaved`."""
    seconds = interleaved(contenders, repeats, pause)
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ratio": {name: round(value / seconds[limit], 3) for name, value in seconds.items()},
    }


def merged(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Saved rows with those of the same names replaced, in their old order, and new ones after them."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    return list({row["name"]: row for row in [*before, *rows]}.values())


def save(name: str, rows: Any) -> None:
    """Writes results, with what they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
