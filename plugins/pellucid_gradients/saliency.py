"""Saliency: the target's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pellucid import Attribution, Explainer, Look, Passes, Sample


@dataclass(frozen=True, eq=False)
class Saliency(Explainer):
    """The size of the target's gradient by each input: |df/dx|.

    It says which inputs the score reacts to, which is not yet what the score is made of: where f is saturated, the
    gradient is zero however much an input has contributed.

    The paper (Simonyan et al., 2013, "Deep inside convolutional networks") also takes the greatest over the colour
    channels. Here each channel keeps its own value; plots and scores reduce them.

    Attributes:
        signed: whether the gradient keeps its sign.
    """

    signed: bool = False

    axioms: ClassVar[frozenset[str]] = frozenset({"symmetry", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Both forms."""
        return [cls(), cls(signed=True)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One forward and one backward pass."""
        seen = yield Look(at=sample, gradients=["input"])
        slopes = seen.gradients["input"]
        return Attribution(slopes if self.signed else slopes.abs(), over="input", reduce="norm")
