"""Shapley values by random orders of the segments."""

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
    explained,
    noise,
    sampled,
)


@dataclass(frozen=True, eq=False)
class ShapleySampling(Explainer):
    """Shares out f(x) - f(baseline) by what each segment adds when the segments are shown one by one, in random orders.

    The mean over the orders of v(those before and i) - v(those before), where v(S) is the score when only the segments
    in S are shown. Each order shares out all of f(x) - f(baseline), so that the values do so exactly (completeness),
    and what never matters gets exactly nothing. It takes d - 1 forward passes for each order of d segments, and two.

    Castro, Gómez & Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009; Strumbelj &
    Kononenko, 2010. By default each order is followed by its reverse, as in Mitchell et al., "Sampling permutations for
    Shapley value estimation", 2022: what a segment adds early and late balances, and the error is less, above all
    where pairs of segments interact. All examples see the same orders.

    Every feature has its segment's value, undivided; see `Attribution.of_segments`. The standard error of each is in
    `Attribution.error`.

    Attributes:
        n_samples: how many orders; an even number of at least 4 where they come in pairs. The error falls as
            1 / sqrt(n_samples).
        antithetic: whether every other order is the reverse of the one before.
        segments: `"auto"` is each feature of a table, each token of a text, and a grid else. `"features"`, `"grid"`,
            `"slic"` (superpixels), whole numbers that name the segment of each feature, (H, W) or (B, H, W), or a
            function of one example that returns them; with several inputs a mapping from names to these.
        cells: the grid's cells along each axis; `"slic"` makes at most about as many segments.
        baseline: what is shown in place of hidden segments, see `Sample.baseline`.
        tolerance: goes on, `n_samples` orders at a time, with those examples whose largest standard error is a greater
            share of their largest value. None is content with `n_samples`.
        max_samples: the most orders that `tolerance` may lead to.

    Raises:
        ParameterError: when the segments do not fit the inputs, or `n_samples` is odd where orders come in pairs.
    """

    n_samples: Annotated[int, Ge(2)] = 20
    antithetic: bool = True
    segments: Any = "auto"
    cells: Annotated[int, Ge(1)] = 7
    baseline: Any = "zero"
    tolerance: Annotated[float, Gt(0)] | None = None
    max_samples: Annotated[int, Ge(2)] = 1000

    axioms: ClassVar[frozenset[str]] = frozenset({"completeness", "sensitivity", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[ShapleySampling]:
        """Few orders, in pairs, by themselves, and in rounds."""
        return [
            cls(n_samples=8, cells=4),
            cls(n_samples=4, cells=4, antithetic=False, baseline="mean"),
            cls(n_samples=4, cells=2, tolerance=0.3, max_samples=12),
        ]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.antithetic and (self.n_samples % 2 or self.n_samples < 4):
            raise ParameterError(
                f"n_samples={self.n_samples}: with antithetic=True orders come in pairs, and an error can be told from "
                "two pairs on; expected an even number of at least 4"
            )
        check_most(self.n_samples, self.max_samples, self.tolerance)

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Looks at the sample, the baseline, and `n_samples * (d - 1)` coalitions in between."""

        def play(game: Game) -> Passes[Solution]:
            if game.size == 1:
                return exactly(game)  # the only segment gets all, and there is nothing in between

            def draw(number: int) -> Tensor:
                return self._drawn(game, number)

            return sampled(game, draw, self._solved, self.tolerance, self.max_samples // self.n_samples)

        return explained(
            sample,
            self.segments,
            self.cells,
            self.baseline,
            play,
            lambda f: (completeness(f), noise(f, self.tolerance)),
        )

    def _drawn(self, game: Game, number: int) -> Tensor:
        """The coalitions of a round: nobody, in the first, and of each order its first 1, 2, ... d - 1 segments."""
        generator = game.sample.generator("shapley_sampling", game.size, number)
        count = self.n_samples // 2 if self.antithetic else self.n_samples
        ranks = torch.rand(count, game.size, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
        if self.antithetic:
            ranks = torch.stack([ranks, game.size - 1 - ranks], dim=1).flatten(0, 1)
        coalitions = (ranks[:, None] < torch.arange(1, game.size)[:, None]).flatten(0, 1)
        return coalitions if number else torch.cat([torch.zeros(1, game.size, dtype=torch.bool), coalitions])

    def _solved(self, coalitions: Tensor, scores: Tensor, whole: Tensor) -> Solution:
        size, empty = coalitions.shape[1], scores[0]
        chains = coalitions[1:].reshape(-1, size - 1, size)
        along = scores[1:].reshape(-1, size - 1, len(whole))
        ends = len(chains), 1
        added = torch.cat([empty.expand(*ends, -1), along, whole.expand(*ends, -1)], dim=1).diff(dim=1)
        # A segment that is in c of a chain's d - 1 coalitions joined as number d - 1 - c.
        joined = size - 1 - chains.sum(dim=1)
        gains = added.gather(1, joined[:, :, None].expand(-1, -1, len(whole)))
        values = gains.mean(dim=0).T
        single = (gains[::2] + gains[1::2]) / 2 if self.antithetic else gains
        error = single.std(dim=0).T / len(single) ** 0.5
        return Solution(values, error, completeness_error(values, whole, empty))
