"""VarGrad."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from pellucid import Attribution, Check, Explainer, Passes, Sample
from pellucid_gradients.arithmetic import NOISE_TOLERANCE
from pellucid_gradients.noise import made, under_noise


@dataclass(frozen=True, eq=False)
class VarGrad(Explainer):
    """The variance of the gradient, or of any attribution, over noisy copies of the input.

    Var[A(x + e)] with e normal, of standard deviation `noise` times each example's range: where f bends, whichever
    way. The variance divides by n. To second order it does not see the gradient itself, only how it changes
    (Seo et al., 2018).

    Adebayo et al., 2018, "Local explanation methods for deep neural networks lack sensitivity to parameter values".
    The noise is the same as `smoothgrad`'s of equal parameters, so that the two together cost what one costs.

    Attributes:
        n_samples: noisy copies of each example.
        noise: the noise's standard deviation as a share of each example's range, max - min.
        of: the explainer whose variance is taken, or its name; None is the plain gradient.

    Raises:
        UnknownTechnique: if `of` names no technique.
    """

    n_samples: Annotated[int, Ge(2)] = 32
    noise: Annotated[float, Ge(0)] = 0.15
    of: Explainer | str | None = None

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "of", made(self.of))

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """The gradient's variance, and another explainer's."""
        return [cls(n_samples=8), cls(n_samples=4, of="input_x_gradient")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_samples` times the passes of the explainer whose variance is taken."""
        noisy = yield from under_noise(sample, self.n_samples, self.noise, made(self.of))
        note = f"relative standard error of a variance over {self.n_samples} draws, if these are normal"
        check = Check.bound("monte_carlo_error", math.sqrt(2 / (self.n_samples - 1)), NOISE_TOLERANCE, note)
        return Attribution(noisy.variance, over=noisy.over, checks=(check,))
