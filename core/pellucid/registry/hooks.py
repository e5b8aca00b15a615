"""The hooks by which a plugin extends Pellucid.

A plugin is a module that an entry point in the group `pellucid` names. It implements any of these functions, each
decorated with `@hookimpl`. An implementation may leave out arguments that it does not need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from pellucid.adapter import Adapter
    from pellucid.registry.technique import Technique

hookspec = pluggy.HookspecMarker("pellucid")
hookimpl = pluggy.HookimplMarker("pellucid")


class Run(Protocol):
    """One run of techniques on a model, as `pellucid_run` sees it."""

    def execute(self) -> Any:
        """Does the run and returns its result."""


@hookspec
def pellucid_techniques() -> Iterable[Technique]:  # type: ignore[empty-body]
    """Yields the records of the techniques that the plugin provides.

    Called when the registry is built, so it must not import anything heavy.
    """


@hookspec(firstresult=True)
def pellucid_adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Makes an adapter for a model, or returns None for a model of another kind.

    The first answer counts: a specific adapter says `@hookimpl(tryfirst=True)`, a general one `trylast=True`.
    `options` are the keywords that the user gave to `pellucid.adapt`. Recognise a model by the modules of its
    type's `__mro__` instead of importing the library that it comes from.
    """


@hookspec(firstresult=True)
def pellucid_load(kind: str, scheme: str, name: str, options: dict[str, Any]) -> object | None:
    """Loads what a reference such as "torchvision:resnet50?weights=DEFAULT" names, or returns None.

    `kind` is "model" or "images", `scheme` what stands before the colon, `name` what stands after it, `options` what
    follows the question mark. A model is any object that `pellucid.adapt` takes.
    """


@hookspec(firstresult=True)
def pellucid_run(run: Run) -> Any:
    """Surrounds each run of techniques on a model, for timing, logging or caching.

    Write it as a wrapper, `@hookimpl(wrapper=True)`: `result = yield` does the run, and what the wrapper returns
    becomes the result. Innermost is the core's own implementation, which returns `run.execute()`.
    """
