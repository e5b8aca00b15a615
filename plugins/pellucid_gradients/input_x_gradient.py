"""Input times gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pellucid import Attribution, Explainer, Look, Passes, Sample


@dataclass(frozen=True, eq=False)
class InputXGradient(Explainer):
    """Each input times the target's gradient by it: x df/dx.

    The terms of the first-order expansion of f about zero. For a piecewise linear network without biases they sum to
    f(x), and are then LRP-0 and DeepLIFT with a zero baseline as well (Shrikumar et al., 2016, "Not just a black box";
    Ancona et al., 2018). In general they do not sum to anything; `integrated_gradients` does.
    """

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "symmetry", "implementation_invariance"})

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One forward and one backward pass."""
        seen = yield Look(at=sample, gradients=["input"])
        return Attribution(sample.inputs * seen.gradients["input"], over="input")
