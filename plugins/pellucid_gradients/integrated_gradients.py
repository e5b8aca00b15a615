"""Integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt

from pellucid import Attribution, Check, Explainer, Look, Mean, Passes, Sample, together
from pellucid_gradients.path import Baselines, Quadrature, completeness_error, nodes


@dataclass(frozen=True, eq=False)
class IntegratedGradients(Explainer):
    """Shares out f(x) - f(baseline) by the gradients on the straight path between the two.

    (x - b) times the integral over a in [0, 1] of df/dx at b + a (x - b). The values sum to f(x) - f(b)
    (completeness), so that the error of the sum is known for each example: it is certified in the checks, and with
    `tolerance` it drives the number of steps.

    Sundararajan et al., 2017, "Axiomatic attribution for deep networks". The paper takes a Riemann sum of 20 to 300
    steps; Gauss-Legendre nodes reach the same error in fewer, and need no gradient at either end. The trapezoid's
    weights sum to one.

    Attributes:
        baselines: where the path starts, as for `Sample.baseline`; of the inputs' shape, or one that broadcasts to it.
        n_steps: points on the path: the number of forward and backward passes.
        quadrature: `"gausslegendre"`, `"trapezoid"` (with both ends) or `"midpoint"` (Riemann sum at the middles).
        tolerance: the relative completeness error at which to stop: the steps are doubled, for those examples that
            are not yet there, up to `max_steps`. None takes `n_steps` as they are and certifies an error of 5 %.
        max_steps: the most steps that `tolerance` may lead to.
    """

    baselines: Baselines = "zero"
    n_steps: Annotated[int, Ge(1)] = 50
    quadrature: Quadrature = "gausslegendre"
    tolerance: Annotated[float, Gt(0)] | None = None
    max_steps: Annotated[int, Ge(1)] = 400

    axioms: ClassVar[frozenset[str]] = frozenset(
        {"completeness", "linearity", "symmetry", "sensitivity", "implementation_invariance"}
    )

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Each quadrature, and adaptive steps."""
        return [
            cls(),
            cls(n_steps=11, quadrature="trapezoid"),
            cls(n_steps=10, quadrature="midpoint"),
            cls(n_steps=4, tolerance=0.01),
        ]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_steps` forward and backward passes, and a forward pass at each end of the path."""
        start = sample.baseline(self.baselines)
        alphas, weights = nodes(self.quadrature, self.n_steps)
        path, here, there = yield from together(
            Look(at=sample.along(self.baselines, alphas), gradients=["input"], fold=Mean(weights)),
            Look(at=sample),
            Look(at=sample.along(self.baselines, [0.0])),
        )
        ends = here.scores, there.scores[0]
        values = (sample.inputs - start) * path.gradients["input"]
        error = completeness_error(values, *ends)

        n, steps = 2 * self.n_steps, torch.full_like(error, self.n_steps)
        while self.tolerance is not None and n <= self.max_steps and bool((error > self.tolerance).any()):
            # Each example's steps depend on its own error alone, so that its result does not depend on its batch.
            todo = (error > self.tolerance).nonzero()[:, 0]
            part, origin = sample[todo], start[todo]
            alphas, weights = nodes(self.quadrature, n)
            path = yield Look(at=part.along(origin, alphas), gradients=["input"], fold=Mean(weights))
            finer = (part.inputs - origin) * path.gradients["input"]
            values = values.index_copy(0, todo, finer)
            error[todo] = completeness_error(finer, *(score[todo] for score in ends))
            steps[todo] = n
            n *= 2

        checks = (
            Check.bound("completeness", error, self.tolerance or 0.05, "relative error of the sum f(x) - f(baseline)"),
            Check.info("n_steps", steps, "points on each example's path"),
        )
        return Attribution(values, over="input", checks=checks)
