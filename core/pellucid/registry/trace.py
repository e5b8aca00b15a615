"""`PELLUCID_TRACE=1`: tells each hook call with its implementations, result and time on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy


def trace_calls(manager: pluggy.PluginManager) -> None:
    """Prints each hook call of the manager to stderr; a call inside another one is indented."""
    calls = threading.local()

    def before(hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        started = getattr(calls, "started", [])
        calls.started = [*started, time.perf_counter()]

    def after(
        outcome: pluggy.Result[Any],
        hook: str,
        implementations: Sequence[pluggy.HookImpl],
        arguments: Mapping[str, Any],
    ) -> None:
        *calls.started, started = calls.started
        seconds = time.perf_counter() - started
        result = outcome.exception if outcome.exception is not None else outcome.get_result()
        plugins = ", ".join(implementation.plugin_name for implementation in implementations)
        told = ", ".join(f"{name}={_brief(value)}" for name, value in arguments.items())
        indent = "  " * len(calls.started)
        print(f"{indent}{hook}({told}) [{plugins}] -> {_brief(result)} in {seconds * 1e3:.1f} ms", file=sys.stderr)

    manager.add_hookcall_monitoring(before, after)


def _brief(value: object) -> str:
    """A value in at most 60 characters; anything large, such as a model, by its type alone."""
    if isinstance(value, list) and value:
        return f"[{len(value)} x {type(value[0]).__name__}]"
    if not isinstance(value, str | int | float | bool | dict | list | BaseException | None):
        return f"<{type(value).__name__}>"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
