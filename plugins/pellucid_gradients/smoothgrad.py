"""SmoothGrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from pellucid import Attribution, Check, Explainer, Passes, Sample
from pellucid_gradients.arithmetic import NOISE_TOLERANCE, noise_share
from pellucid_gradients.noise import made, under_noise


@dataclass(frozen=True, eq=False)
class SmoothGrad(Explainer):
    """The mean of the gradient, or of any attribution, over noisy copies of the input.

    E[A(x + e)] with e normal, of standard deviation `noise` times each example's range. The mean gradient is the
    gradient of f blurred by the noise, which removes what changes from pixel to pixel by chance. The gradients keep
    their sign; take `.abs()` to see sizes, as the paper's figures do.

    Smilkov et al., 2017, "SmoothGrad: removing noise by adding noise". All examples share their noise, so that a
    result does not depend on its batch.

    Attributes:
        n_samples: noisy copies of each example.
        noise: the noise's standard deviation as a share of each example's range, max - min. The paper advises 0.1
            to 0.2.
        of: the explainer to smooth, or its name; None is the plain gradient, which needs the memory of one batch.
        squared: whether the values are squared before the mean (SmoothGrad-Squared, Hooker et al., 2019).

    Raises:
        UnknownTechnique: if `of` names no technique.
    """

    n_samples: Annotated[int, Ge(2)] = 32
    noise: Annotated[float, Ge(0)] = 0.15
    of: Explainer | str | None = None
    squared: bool = False

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "of", made(self.of))

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """The gradient's mean, its square's, and another explainer's."""
        return [cls(n_samples=8), cls(n_samples=8, squared=True), cls(n_samples=4, of="input_x_gradient")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_samples` times the passes of the explainer that is smoothed."""
        noisy = yield from under_noise(sample, self.n_samples, self.noise, made(self.of), squared=self.squared)
        error = noise_share(noisy.mean, noisy.variance, self.n_samples)
        note = f"standard error over {self.n_samples} draws, as a share of the values' norm"
        check = Check.bound("monte_carlo_error", error, NOISE_TOLERANCE, note)
        return Attribution(noisy.mean, over=noisy.over, reduce=noisy.reduce, checks=(check,))
