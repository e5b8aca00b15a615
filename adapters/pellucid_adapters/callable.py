"""Any other callable, as a black box."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import Adapter, ModelError, ParameterError
from pellucid_adapters import texts
from pellucid_adapters.settings import settled


class Function(nn.Module):
    """Calls a function of a batch, and makes a tensor (B, classes) of what it returns.

    Attributes:
        function: takes a batch and returns one score, or one row of scores, per example.
        takes: "torch" or "numpy", what the batch is given as.
    """

    def __init__(self, function: Callable[[Any], Any], takes: str) -> None:
        super().__init__()
        self.function, self.takes = function, takes
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Gives the scores, on the device of the inputs; numbers that are no floats become floats."""
        batch = inputs.detach()
        try:
            answer = self.function(batch.cpu().numpy() if self.takes == "numpy" else batch)
        except TypeError as error:
            other = "numpy" if self.takes == "torch" else "torch"
            raise ModelError(
                f"{_name(self.function)} failed on a batch given as {self.takes}: {error}. If it works on {other}, "
                f"say pellucid.adapt(function, takes='{other}')."
            ) from error
        scores = _scores(self.function, answer, len(inputs)).to(inputs.device)
        return scores if scores.is_floating_point() else scores.to(inputs.dtype)


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a function from a batch to scores; None for what cannot be called.

    The option `takes` says whether the function works on "torch" tensors, "numpy" arrays or "text", a list of strings
    (see `texts.adapted`); without it the annotation of its first parameter decides, and torch where there is none.

    Raises:
        ModelError: a class was given where its instance was meant.
        ParameterError: an option is unknown or wrong.
    """
    if isinstance(model, type):
        raise ModelError(
            f"{model.__name__} is a class: expected a model. Give an instance, such as {model.__name__}()."
        )
    if isinstance(model, nn.Module) or not callable(model):
        return None
    options = dict(options)
    takes = options.pop("takes", None) or _annotated(model)
    if takes not in ("torch", "numpy", "text"):
        raise ParameterError(f"takes={takes!r}: expected 'torch', 'numpy' or 'text', what the function works on.")
    if takes == "text":
        note = "a black box: a function of texts"
        return texts.adapted(partial(_scores_of, model), options, name=_name(model), notes=(note,))
    note = f"a black box: a function of {'NumPy arrays' if takes == 'numpy' else 'tensors'}"
    settings = settled(options, name=_name(model), notes=(note,))
    return Adapter(Function(model, takes), offers=frozenset({"outputs"}), **settings)


def _scores(function: object, answer: Any, count: int) -> Tensor:
    """What a function returned for `count` examples, as a tensor (count, classes)."""
    try:
        scores = answer.detach() if isinstance(answer, Tensor) else torch.as_tensor(np.asarray(answer))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{_name(function)} returned a {type(answer).__name__}, of which no tensor can be made ({error}): expected "
            f"scores ({count}, classes) or ({count},)."
        ) from error
    if scores.ndim == 0 or len(scores) != count:
        raise ModelError(
            f"{_name(function)} returned scores {tuple(scores.shape)} for {count} examples: expected "
            f"({count}, classes) or ({count},)."
        )
    return scores[:, None] if scores.ndim == 1 else scores


def _scores_of(function: Callable[[Any], Any], texts: list[str]) -> Tensor:
    scores = _scores(function, function(texts), len(texts))
    return scores if scores.is_floating_point() else scores.double()


def _annotated(function: Callable[[Any], Any]) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return "torch"
    first = next(iter(parameters), None)
    return "numpy" if first is not None and "ndarray" in str(first.annotation) else "torch"


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
