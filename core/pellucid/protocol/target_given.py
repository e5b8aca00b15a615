"""Targets as a user gives them: functions, names, indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import TargetError, nearest
from pellucid.protocol.target import ClassLogit, Score, Target


@dataclass(frozen=True, eq=False)
class Custom(Target):
    """Any function of what the model returns.

    Attributes:
        function: takes the model's own output and returns (B,) scores.
    """

    function: Callable[[Any], Tensor]

    def score(self, given: Score) -> Tensor:
        """What the function returns, checked to be one number for each row."""
        score = self.function(given.raw)
        rows = len(given.examples)
        if not isinstance(score, Tensor):
            raise TargetError(f"the target function returned {type(score).__name__}; expected a tensor ({rows},)")
        if score.shape != (rows,):
            if rows == 1 and score.numel() == 1:
                return score.reshape(1)
            raise TargetError(
                f"the target function returned shape {tuple(score.shape)} for {rows} examples; expected ({rows},), one "
                "score for each (return the scores before summing or averaging over the batch)"
            )
        return score

    def describe(self) -> Any:
        """The function's name."""
        return f"function {getattr(self.function, '__qualname__', type(self.function).__name__)}"


def make_target(target: Any, examples: int, categories: Sequence[str] | None = None) -> Target:
    """Makes a `Target` of what a user may give.

    Args:
        target: None (the predicted class), an index, a category's name, a sequence or tensor of them, a callable, or a
            `Target`.
        examples: how many examples there are.
        categories: the model's class names, if known.

    Raises:
        TargetError: when it is none of these, or there are not as many targets as examples.
    """
    if isinstance(target, Target):
        target.check(examples)
        return target
    if target is None:
        return ClassLogit()
    if isinstance(target, str):
        return ClassLogit(_category(target, categories))
    if isinstance(target, bool):
        raise TargetError("the target is a bool; expected a class index")
    if isinstance(target, Integral):
        return ClassLogit(int(target))
    if callable(target) and not isinstance(target, Tensor):
        return Custom(target)
    if isinstance(target, (list, tuple)):
        target = [_category(one, categories) if isinstance(one, str) else one for one in target]
    try:
        classes = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(
            f"the target is a {type(target).__name__}; expected None, a class index or name, a tensor of indices, a "
            "callable from the model's output to scores, or a Target"
        ) from None
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TargetError(f"the target has type {classes.dtype}; expected integer class indices")
    # A copy: the caller may change theirs, and one made under inference mode could not be used for gradients.
    classes = classes.detach().cpu().long().clone()
    if classes.dim() == 0:
        return ClassLogit(int(classes))
    if classes.shape != (examples,):
        raise TargetError(
            f"the target has shape {tuple(classes.shape)}; expected ({examples},), one class for each example"
        )
    return ClassLogit(classes)


def _category(name: str, categories: Sequence[str] | None) -> int:
    if categories is None:
        raise TargetError(
            f"target '{name}' is a name, but this model's class names are not known; give the class index"
        )
    found = [index for index, category in enumerate(categories) if category.casefold() == name.casefold()]
    if not found:
        raise TargetError(f"the model has no class '{name}'.{nearest(name, categories)}")
    if len(found) > 1:
        raise TargetError(f"the model has {len(found)} classes '{name}', {found}; give the index of the one you mean")
    return found[0]
