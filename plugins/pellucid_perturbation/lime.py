"""LIME: a linear model of the score near the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from pellucid import Attribution, Check, Explainer, ParameterError, Passes, Sample
from pellucid_perturbation.games import Game, Solution, check_most, estimator, explained, noise, sampled, standard_error


@dataclass(frozen=True, eq=False)
class LIME(Explainer):
    """Fits a linear model to the score of random coalitions of segments, of which those near the whole count more.

    Each coalition z in {0, 1}^d shows every segment with probability 1/2; the input itself is the first. The values are
    the coefficients of the linear model, with an intercept, that has the least sum of w(z) (v(z) - model(z))^2 plus
    `alpha` times the squared coefficients, where w(z) = exp(-D(z)^2 / (2 kernel_width^2)) and D is the distance from
    the coalition of all. How much of v the model leaves unexplained stands in the checks, as 1 - R^2.

    Ribeiro, Singh & Guestrin, "Why should I trust you?", 2016. Defaults, and the kernel's 2, are those of the authors'
    program for photos; for tables that one draws features from the training data, where ours hides them. The paper's
    K-LASSO is `n_features=K`. All examples see the same coalitions.

    Every feature has its segment's value, undivided; see `Attribution.of_segments`. In `Attribution.error` is what
    another draw of the coalitions would change, with the same choice of features.

    Attributes:
        n_samples: the forward passes for each example, at least two more than segments.
        n_features: how many segments the model may have: those that enter the path of a weighted lasso first. The
            others get 0. None is all.
        alpha: the ridge penalty.
        distance: `"cosine"`, or `"l2"`, the root of the number of hidden segments.
        kernel_width: the distance in which the weight falls to exp(-1/2). None is 0.25 for cosines and 0.75 sqrt(d) for
            l2.
        segments: `"auto"` is each feature of a table, each token of a text, and a grid else. `"features"`, `"grid"`,
            `"slic"` (superpixels), whole numbers that name the segment of each feature, (H, W) or (B, H, W), or a
            function of one example that returns them; with several inputs a mapping from names to these.
        cells: the grid's cells along each axis; `"slic"` makes at most about as many segments.
        baseline: what is shown in place of hidden segments, see `Sample.baseline`; the authors' is "mean", of each
            segment.
        tolerance: goes on, `n_samples` at a time, with those examples whose largest standard error is a greater share
            of their largest value. None is content with `n_samples`.
        max_samples: the most passes that `tolerance` may lead to.

    Raises:
        ParameterError: when the segments do not fit the inputs, or `n_samples` is too small for them.
    """

    n_samples: Annotated[int, Ge(2)] = 1000
    n_features: Annotated[int, Ge(1)] | None = None
    alpha: Annotated[float, Ge(0)] = 1.0
    distance: Literal["cosine", "l2"] = "cosine"
    kernel_width: Annotated[float, Gt(0)] | None = None
    segments: Any = "auto"
    cells: Annotated[int, Ge(1)] = 7
    baseline: Any = "zero"
    tolerance: Annotated[float, Gt(0)] | None = None
    max_samples: Annotated[int, Ge(2)] = 20_000

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[LIME]:
        """Few coalitions, by either distance, with few features, and in rounds."""
        return [
            cls(n_samples=96, cells=4),
            cls(n_samples=60, cells=3, n_features=4),
            cls(n_samples=64, cells=3, distance="l2", alpha=0.0, baseline="mean"),
            cls(n_samples=60, cells=3, tolerance=0.2, max_samples=180),
        ]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self.n_samples, self.max_samples, self.tolerance)

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_samples` forward passes."""

        def checks(found: Solution) -> tuple[Check, ...]:
            note = "the share of the weighted variance of the score that the linear model does not explain, 1 - R^2"
            return (Check.bound("local fit", found.certificate, 0.5, note), noise(found, self.tolerance))

        return explained(sample, self.segments, self.cells, self.baseline, self._play, checks)

    def _play(self, game: Game) -> Passes[Solution]:
        if self.n_samples < game.size + 2:
            raise ParameterError(
                f"n_samples={self.n_samples} is too few for {game.size} segments; expected at least {game.size + 2}, "
                "or fewer segments (segments=, cells=)"
            )

        def draw(number: int) -> Tensor:
            generator = game.sample.generator("lime", game.size, number)
            count = self.n_samples if number else self.n_samples - 1
            return torch.rand(count, game.size, generator=generator) < 0.5

        return sampled(game, draw, self._solved, self.tolerance, self.max_samples // self.n_samples)

    def _solved(self, coalitions: Tensor, scores: Tensor, whole: Tensor) -> Solution:
        members = torch.cat([torch.ones(1, coalitions.shape[1]), coalitions]).double()
        outcomes = torch.cat([whole[None], scores])
        root = self.weights(members).sqrt()[:, None]
        share = root**2 / (root**2).sum()
        # Centred by the weighted means, the fit needs no intercept.
        rows = root * (members - (share * members).sum(dim=0))
        outcomes = root * (outcomes - (share * outcomes).sum(dim=0))
        if self.n_features is None or self.n_features >= members.shape[1]:
            return self._fitted(rows, outcomes)
        found = Solution.blank(len(whole), members.shape[1])
        for example, column in enumerate(outcomes.T):
            chosen = _first_in(rows, column, self.n_features)
            part = self._fitted(rows[:, chosen], column[:, None])
            found.values[example, chosen], found.error[example, chosen] = part.values[0], part.error[0]
            found.certificate[example] = part.certificate[0]
        return found

    def weights(self, members: Tensor) -> Tensor:
        """How much each coalition (n, d) counts, (n,)."""
        size, shown = members.shape[1], members.sum(dim=1)
        if self.distance == "cosine":
            distance, width = 1 - (shown / size).sqrt(), 0.25
        else:
            distance, width = (size - shown).sqrt(), 0.75 * size**0.5
        return torch.exp(-0.5 * (distance / (self.kernel_width or width)) ** 2)

    def _fitted(self, rows: Tensor, outcomes: Tensor) -> Solution:
        linear, leverage = estimator(rows, self.alpha)
        values = linear @ outcomes
        residuals = outcomes - rows @ values
        spread = outcomes.square().sum(dim=0)
        unexplained = torch.where(spread == 0, spread, residuals.square().sum(dim=0) / spread)
        return Solution(values.T, standard_error(linear, leverage, residuals), unexplained)


def _first_in(rows: Tensor, outcomes: Tensor, count: int) -> Tensor:
    """The columns, at most `count`, that the lasso takes in first as its penalty falls."""
    from sklearn.linear_model import lars_path

    if not bool(torch.isfinite(outcomes).all()):
        return torch.arange(rows.shape[1])  # the values will not be numbers, which shows
    _, _, path = lars_path(rows.numpy(), outcomes.numpy(), method="lasso")
    few = [step for step in range(path.shape[1]) if 0 < (path[:, step] != 0).sum() <= count]
    return torch.from_numpy(path[:, few[-1]] != 0).nonzero()[:, 0] if few else torch.arange(0)
