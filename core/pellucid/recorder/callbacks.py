"""Callbacks: the recorder as trainers of other libraries call it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pellucid.errors import ParameterError, Unavailable, nearest

if TYPE_CHECKING:
    from pellucid.recorder.recorder import Recorder

KINDS = ("lightning", "transformers")


def make(recorder: Recorder, kind: str) -> Any:
    """A callback of a library that calls a recorder.

    Raises:
        ParameterError: for a library that is not known.
        Unavailable: when it is not installed.
    """
    if kind not in KINDS:
        raise ParameterError(f"no callback for '{kind}'; expected one of {KINDS}.{nearest(kind, KINDS)}")
    return _lightning(recorder) if kind == "lightning" else _transformers(recorder)


def _lightning(recorder: Recorder) -> Any:
    base = _base(("lightning.pytorch", "pytorch_lightning"), "lightning").Callback

    class RecorderCallback(base):  # type: ignore[misc, valid-type]
        """Counts the optimiser's steps by Lightning's own number, which gradient accumulation does not change."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            recorder.start(trainer.global_step)

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any, **__: Any) -> None:
            _catch_up(recorder, trainer.global_step)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            recorder.finish()

    return RecorderCallback()


def _transformers(recorder: Recorder) -> Any:
    base = _base(("transformers",), "transformers").TrainerCallback

    class RecorderCallback(base):  # type: ignore[misc, valid-type]
        """Counts the trainer's steps, each of which is one of its optimiser."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.start(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _catch_up(recorder, state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.finish()

    return RecorderCallback()


def _catch_up(recorder: Recorder, steps: int) -> None:
    while recorder.steps < steps:
        recorder.step()


def _base(modules: tuple[str, ...], distribution: str) -> Any:
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise Unavailable(f"this callback needs {distribution}, which is not installed. Try: pip install {distribution}")
