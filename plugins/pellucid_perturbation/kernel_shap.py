"""KernelSHAP: Shapley values by a weighted linear regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from pellucid import Attribution, Explainer, ParameterError, Passes, Sample
from pellucid_perturbation.exact_shapley import exactly
from pellucid_perturbation.games import (
    Game,
    Solution,
    check_most,
    completeness,
    completeness_error,
    estimator,
    explained,
    noise,
    sampled,
    standard_error,
)


@dataclass(frozen=True, eq=False)
class KernelSHAP(Explainer):
    """Shares out f(x) - f(baseline) by a linear model of the score, fitted to random coalitions of segments.

    Of all linear models of v(S), the score when only the segments in S are shown, that are right for all and for none,
    the one with the least squares has the Shapley values as coefficients, where a coalition of s of d segments counts
    (d - 1) / (C(d, s) s (d - s)). Coalitions are drawn by that weight, and the sum is held at f(x) - f(baseline) by
    elimination, so that it is exact (completeness). Where all 2^d coalitions are no more than `n_samples`, each is
    looked at once, and the values are exact.

    Lundberg & Lee, "A unified approach to interpreting model predictions", 2017. By default each coalition is followed
    by its complement, as in Covert & Lee, "Improving KernelSHAP", 2021: the part of the score that is even in who is
    shown, which no linear model has, then cancels and adds no error. All examples see the same coalitions.

    Every feature has its segment's value, undivided; see `Attribution.of_segments`. The standard error of each is in
    `Attribution.error`.

    Attributes:
        n_samples: the forward passes for each example, those of the input and of the baseline among them; at least
            twice the number of segments, and four times for an error that deserves its name. It falls as
            1 / sqrt(n_samples).
        paired: whether every other coalition is the complement of the one before.
        segments: `"auto"` is each feature of a table, each token of a text, and a grid else. `"features"`, `"grid"`,
            `"slic"` (superpixels), whole numbers that name the segment of each feature, (H, W) or (B, H, W), or a
            function of one example that returns them; with several inputs a mapping from names to these.
        cells: the grid's cells along each axis; `"slic"` makes at most about as many segments.
        baseline: what is shown in place of hidden segments, see `Sample.baseline`.
        tolerance: goes on, `n_samples` at a time, with those examples whose largest standard error is a greater share
            of their largest value. None is content with `n_samples`.
        max_samples: the most passes that `tolerance` may lead to.

    Raises:
        ParameterError: when the segments do not fit the inputs, or `n_samples` is too small for them.
    """

    n_samples: Annotated[int, Ge(2)] = 500
    paired: bool = True
    segments: Any = "auto"
    cells: Annotated[int, Ge(1)] = 7
    baseline: Any = "zero"
    tolerance: Annotated[float, Gt(0)] | None = None
    max_samples: Annotated[int, Ge(2)] = 20_000

    axioms: ClassVar[frozenset[str]] = frozenset({"completeness", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[KernelSHAP]:
        """Few coalitions, in pairs, by themselves, and in rounds."""
        return [
            cls(n_samples=96, cells=4),
            cls(n_samples=64, cells=3, paired=False, baseline="mean"),
            cls(n_samples=60, cells=3, tolerance=0.2, max_samples=180),
        ]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self.n_samples, self.max_samples, self.tolerance)

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_samples` forward passes."""
        return explained(
            sample,
            self.segments,
            self.cells,
            self.baseline,
            self._play,
            lambda f: (completeness(f), noise(f, self.tolerance)),
        )

    def _play(self, game: Game) -> Passes[Solution]:
        size = game.size
        if 2**size <= self.n_samples:
            return exactly(game)
        least = 2 * size + 2 if self.paired else size + 2
        if self.n_samples < least:
            raise ParameterError(
                f"n_samples={self.n_samples} is too few for {size} segments; expected at least {least} (better "
                f"{4 * size}), or fewer segments (segments=, cells=)"
            )

        def draw(number: int) -> Tensor:
            return self._drawn(game, number)

        return sampled(game, draw, self._solved, self.tolerance, self.max_samples // self.n_samples)

    def _drawn(self, game: Game, number: int) -> Tensor:
        """The coalitions of a round, those of the first after nobody."""
        generator = game.sample.generator("kernel_shap", game.size, number)
        count = self.n_samples if number else self.n_samples - 2
        count = count // 2 if self.paired else count
        sizes = torch.arange(1, game.size, dtype=torch.float64)
        chosen = 1 + torch.multinomial(1 / (sizes * sizes.flip(0)), count, replacement=True, generator=generator)
        ranks = torch.rand(count, game.size, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
        coalitions = ranks < chosen[:, None]
        if self.paired:
            coalitions = torch.stack([coalitions, ~coalitions], dim=1).flatten(0, 1)
        return coalitions if number else torch.cat([torch.zeros(1, game.size, dtype=torch.bool), coalitions])

    def _solved(self, coalitions: Tensor, scores: Tensor, whole: Tensor) -> Solution:
        empty, rise = scores[0], whole - scores[0]
        members = coalitions[1:].double()
        # The last segment gets what the others leave of the rise: that much is known of every coalition.
        rows = members[:, :-1] - members[:, -1:]
        outcomes = scores[1:] - empty - members[:, -1:] * rise
        if self.paired:  # a coalition and its complement are one observation: their rows differ in nothing but the sign
            rows, outcomes = rows[::2], (outcomes[::2] - outcomes[1::2]) / 2
        linear, leverage = estimator(rows)
        others = linear @ outcomes
        error = standard_error(
            torch.cat([linear, -linear.sum(dim=0, keepdim=True)]), leverage, outcomes - rows @ others
        )
        values = torch.cat([others, (rise - others.sum(dim=0))[None]]).T
        return Solution(values, error, completeness_error(values, whole, empty))
