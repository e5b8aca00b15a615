"""The target of regression models: one of their values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pellucid.errors import TargetError
from pellucid.protocol.target import Score, Target, check_classes, check_indices

MEASURES = ("signed", "negated", "absolute", "squared")


@dataclass(frozen=True, eq=False)
class Regression(Target):
    """One value of a regression, or how far it lies from a reference.

    With the deviation d = value - reference the score is d ("signed", what makes the value large), -d ("negated", what
    makes it small, for techniques that keep positive evidence only), |d| ("absolute") or d^2 ("squared"). Half of d^2
    is, up to a constant, the negative log-likelihood of a Gaussian of variance 1 around the value. The loss over all
    values at once is `Loss` with labels of a floating type; of a map of values (B, 1, h, w), see `Region`.

    Attributes:
        index: which value of a model that gives several, an index or (B,); 0 of a model that gives one.
        reference: what it is held against, in the value's unit, a number or (B,).
        measure: "signed", "negated", "absolute" or "squared".
    """

    index: int | Tensor = 0
    reference: float | Tensor = 0.0
    measure: Literal["signed", "negated", "absolute", "squared"] = "signed"

    def check(self, examples: int) -> None:
        """The index must be an integer or (B,), the reference finite, a number or (B,), and the measure known."""
        if self.index is None:
            raise TargetError("the value's index is None; expected an integer, or a tensor of them")
        check_indices(self.index, examples)
        if self.measure not in MEASURES:
            raise TargetError(f"the measure is {self.measure!r}; expected one of {list(MEASURES)}")
        reference = torch.as_tensor(self.reference)
        if reference.dim() > 0 and reference.shape != (examples,):
            raise TargetError(f"the references have shape {tuple(reference.shape)}; expected a number or ({examples},)")
        if not bool(torch.isfinite(reference).all()):
            raise TargetError("the reference is not finite; expected a number, or (B,) numbers")

    def score(self, given: Score) -> Tensor:
        """The deviation of each row's value from the reference, by the measure."""
        values = given.logits()
        if values.dim() > 2:
            raise TargetError(
                f"Regression needs an output (B,) or (B, values); the model gives {tuple(values.shape)}. Say which "
                "positions of a map count with Region"
            )
        values = values[:, None] if values.dim() == 1 else values
        index = self.index[given.examples] if isinstance(self.index, Tensor) else torch.full((len(values),), self.index)
        check_classes(index, values, "values")
        chosen = values.gather(1, (index % values.shape[1]).to(values.device)[:, None])[:, 0]
        reference = torch.as_tensor(self.reference).to(chosen, copy=True)
        deviation = chosen - (reference[given.examples.to(reference.device)] if reference.dim() else reference)
        if self.measure == "squared":
            return deviation.square()
        return {"signed": deviation, "negated": -deviation, "absolute": deviation.abs()}[self.measure]

    def repeated(self, n: int) -> Target:
        """The same values and references once more for each copy."""
        return replace(self, index=_repeated(self.index, n), reference=_repeated(self.reference, n))

    def picked(self, examples: Tensor) -> Target:
        """The values and references of some examples."""
        return replace(self, index=_picked(self.index, examples), reference=_picked(self.reference, examples))

    def describe(self) -> Any:
        """Which value, against what, and how."""
        told = {"index": self.index, "reference": self.reference, "measure": self.measure}
        return {"regression": {name: one.tolist() if isinstance(one, Tensor) else one for name, one in told.items()}}


def _repeated(values: Any, n: int) -> Any:
    return values.repeat(n) if isinstance(values, Tensor) and values.dim() else values


def _picked(values: Any, examples: Tensor) -> Any:
    return values[examples] if isinstance(values, Tensor) and values.dim() else values
