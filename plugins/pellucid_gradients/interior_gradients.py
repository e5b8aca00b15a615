"""Interior gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from pellucid import Attribution, Check, Explainer, Look, Mean, Passes, Sample, together
from pellucid_gradients.path import Baselines, Quadrature, completeness_error, nodes


@dataclass(frozen=True, eq=False)
class InteriorGradients(Explainer):
    """The mean gradient, by the inputs or a layer, on the straight path from a baseline.

    The integral over a in [0, 1] of df/dz at the input b + a (x - b), with z the input itself or a layer's output. At
    x a confident network is saturated and its gradient faint; on the way there from a baseline it is not, which
    shows what the score reacts to before it saturates.

    Sundararajan et al., 2016, "Gradients of counterfactuals", show the gradients of single scaled inputs and sum them,
    times the input, to integrated gradients; here they are averaged without the factor x - b, so that they keep the
    unit of a gradient and can be taken by a layer. By a layer, this is the internal influence of Leino et al., 2018,
    under a uniform distribution on the path.

    Attributes:
        layer: `"input"`, or a layer's name, or `"auto"`; the values have the shape of the layer's output.
        baselines: where the path starts, as for `Sample.baseline`.
        n_steps: points on the path: the number of forward and backward passes.
        quadrature: as for `integrated_gradients`.
    """

    layer: str = "input"
    baselines: Baselines = "zero"
    n_steps: Annotated[int, Ge(1)] = 50
    quadrature: Quadrature = "gausslegendre"

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "symmetry", "implementation_invariance"})

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_steps` forward and backward passes; by the inputs, also a forward pass at each end of the path."""
        alphas, weights = nodes(self.quadrature, self.n_steps)
        along = Look(at=sample.along(self.baselines, alphas), gradients=[self.layer], fold=Mean(weights))
        if self.layer != "input":
            path = yield along
            return Attribution(path.gradients[self.layer], over=self.layer)
        path, here, there = yield from together(along, Look(at=sample), Look(at=sample.along(self.baselines, [0.0])))
        slopes = path.gradients["input"]
        error = completeness_error(
            (sample.inputs - sample.baseline(self.baselines)) * slopes, here.scores, there.scores[0]
        )
        note = "relative error of f(x) - f(baseline) as the sum of (x - baseline) times the values"
        return Attribution(slopes, over="input", reduce="norm", checks=(Check.bound("quadrature", error, 0.05, note),))
