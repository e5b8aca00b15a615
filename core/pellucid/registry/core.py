"""The core's own implementations of the hooks, around and inside those of the plugins."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pluggy

from pellucid.errors import PellucidError, PluginError
from pellucid.registry.hooks import Run, hookimpl
from pellucid.registry.problem import told


class Core:
    """Reads what plugins yield, names the plugin whose hook fails, and does the runs."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager

    @hookimpl(wrapper=True)
    def pellucid_techniques(self) -> Generator[None, list[Iterable[object]], list[object] | None]:
        """All that the plugins yield, in one list; None where no plugin answers."""
        answers = yield
        return [item for answer in answers for item in _exhausted(answer)] if answers else None

    @hookimpl(wrapper=True)
    def pellucid_adapt(self) -> Generator[None, Any, Any]:
        """The adapter, or a PluginError that says whose hook failed."""
        with self._blamed("pellucid_adapt"):
            return (yield)

    @hookimpl(wrapper=True)
    def pellucid_load(self) -> Generator[None, Any, Any]:
        """What was loaded, or a PluginError that says whose hook failed."""
        with self._blamed("pellucid_load"):
            return (yield)

    @hookimpl(trylast=True)
    def pellucid_run(self, run: Run) -> Any:
        """The run itself."""
        return run.execute()

    @contextmanager
    def _blamed(self, hook: str) -> Iterator[None]:
        try:
            yield
        except PellucidError:
            raise
        except Exception as error:
            entered = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
            plugins = [
                implementation.plugin_name
                for implementation in getattr(self._manager.hook, hook).get_hookimpls()
                if implementation.plugin is not self and implementation.function.__module__ in entered
            ]
            names = ",".join(dict.fromkeys(plugins))
            raise PluginError(
                f"plugin {names} failed in its hook `{hook}`: {told(error)}. "
                f"PELLUCID_DISABLE={names} goes on without it."
            ) from error


def _exhausted(answer: Iterable[object]) -> Iterator[object]:
    """What a plugin yields; its failure becomes the last item, so that what came before is kept."""
    try:
        yield from answer
    except (Exception, SystemExit) as error:
        yield error
