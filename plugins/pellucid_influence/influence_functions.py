"""Influence functions: what leaving an example out of the training would change, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen
from torch import Tensor

from pellucid import Check, Explainer, Influence, Passes, Sample
from pellucid_influence.curvature import gauss_newton
from pellucid_influence.ntk_influence import noise
from pellucid_influence.training import certificates, data, inverse, kernel, shown, training_sample

SHARE = 0.1
"""The damping "auto", as a share of the curvature's mean eigenvalue."""


@dataclass(frozen=True, eq=False)
class InfluenceFunctions(Explainer):
    """Estimates how each query's score changes when a training example is left out and the model trained anew.

    At the optimum of the mean loss, leaving out example i moves the parameters by (1/N) (H + damping)^-1 dL_i. The
    values are the score with the example less the score without it: -(1/N) df^T (H + damping)^-1 dL_i, above zero where
    the example raises the target's score. The self-influence is by how much the example lowers its own loss.

    Koh and Liang, 2017, "Understanding black-box predictions via influence functions". H is not the Hessian of the
    paper, which is indefinite away from an optimum, but a positive matrix in its place: the empirical Fisher matrix,
    or the generalised Gauss-Newton matrix, which is the Hessian for softmax and least-squares regression.

    Attributes:
        train: `(inputs, labels)` or a TensorDataset; labels are class indices (cross-entropy) or, of a floating type,
            values (squared error).
        curvature: `"fisher"` is inverted exactly through the tangent kernel of the training examples: examples squared
            in memory, however many parameters; `"gauss_newton"` is written out: parameters squared in memory, and a
            backward pass for each output.
        damping: what is added to the curvature of the mean loss: a weight decay that the model was trained with
            belongs here. `"auto"` takes a tenth of the curvature's mean eigenvalue.
        parameters: by which parameters, as names with wildcards.
    """

    train: Any
    curvature: Literal["fisher", "gauss_newton"] = "fisher"
    damping: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    parameters: Annotated[tuple[str, ...], MinLen(1)] = ("*",)

    def __post_init__(self) -> None:
        super().__post_init__()
        data(self.train)

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Both curvatures."""
        return [cls(train=noise()), cls(train=noise(), curvature="gauss_newton", damping=0.1)]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward and a backward pass for each query and example; see `curvature` for more."""
        train = training_sample(self.train, sample)
        passes = self._gauss_newton if self.curvature == "gauss_newton" else self._fisher
        values, own, checks = yield from passes(sample, train)
        kind = sample.inputs.dtype
        return Influence(values.to(kind), self_influence=own.to(kind), checks=checks, **shown(train))

    def _fisher(self, sample: Sample, train: Sample) -> Passes[tuple[Tensor, Tensor, list[Check]]]:
        """Through the kernel: (1/N) G^T (damping + G G^T / N)^-1 of N rows is G^T (N damping + G G^T)^-1."""
        found = yield from kernel(sample, train, self.parameters, own=True)
        count = len(train)
        damping, check = self._damping(float(found.squares.double().sum()) / count, count)
        inner = inverse(found.own, count * damping)
        values = -found.values.double() @ inner
        # The diagonal of K (K + c)^-1 is that of 1 - c (K + c)^-1.
        selves = 1 - count * damping * inner.diagonal()
        return values, selves, [*certificates(found, train), check(selves)]

    def _gauss_newton(self, sample: Sample, train: Sample) -> Passes[tuple[Tensor, Tensor, list[Check]]]:
        queries, found, hessian = yield from gauss_newton(sample, train, self.parameters)
        count = len(train)
        damping, check = self._damping(float(hessian.diagonal().sum()), len(hessian))
        inner = inverse(hessian, damping)
        moved = found.gradients.double() @ inner / count
        values = -queries.double() @ moved.T
        selves = (found.gradients.double() * moved).sum(dim=1)
        effective = (inner * hessian).sum()
        return values, selves, [*certificates(found, train), check(effective)]

    def _damping(self, trace: float, size: int) -> tuple[float, Any]:
        """The damping, and what makes its certificate of the effective number of parameters."""
        damping = SHARE * trace / size if self.damping == "auto" else float(self.damping)

        def check(effective: Tensor) -> Check:
            note = f"of {size} directions, with a damping of {damping:.3g}; the mean eigenvalue is {trace / size:.3g}"
            return Check.info("effective parameters", float(effective.sum()), note)

        return damping, check
