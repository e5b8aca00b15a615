"""Exact Shapley values: every coalition is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Attribution, Explainer, ParameterError, Passes, Sample
from pellucid_perturbation.games import Game, Solution, completeness, completeness_error, explained, seen_at

MOST = 16
"""Segments; 2^16 passes for each example."""


@dataclass(frozen=True, eq=False)
class ExactShapley(Explainer):
    """Shares out f(x) - f(baseline) by what each segment adds to every coalition of the others.

    With v(S) the score when the segments in S are shown and all others are hidden, segment i of d gets the mean of
    v(S + i) - v(S) over the sizes of S and over all S of a size. It is the only way to share that is complete, linear,
    symmetric, and gives nothing to what never matters. It takes 2^d forward passes.

    Shapley, "A value for n-person games", 1953. Every feature has its segment's value, undivided, so that the sum over
    the segments, and not over the features, is f(x) - f(baseline); see `Attribution.of_segments`.

    Attributes:
        segments: `"auto"` is each feature of a table, each token of a text, and a grid else. `"features"`, `"grid"`,
            `"slic"` (superpixels), whole numbers that name the segment of each feature, (H, W) or (B, H, W), or a
            function of one example that returns them; with several inputs a mapping from names to these.
        cells: the grid's cells along each axis; `"slic"` makes at most about as many segments.
        baseline: what is shown in place of hidden segments, see `Sample.baseline`.

    Raises:
        ParameterError: when there are more than 16 segments, or they do not fit the inputs.
    """

    segments: Any = "auto"
    cells: Annotated[int, Ge(1)] = 3
    baseline: Any = "zero"

    axioms: ClassVar[frozenset[str]] = frozenset(
        {"completeness", "linearity", "symmetry", "sensitivity", "implementation_invariance"}
    )

    @classmethod
    def test_instances(cls) -> list[ExactShapley]:
        """A coarse grid, whose border halves the image."""
        return [cls(cells=2)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """2^d forward passes."""
        return explained(sample, self.segments, self.cells, self.baseline, exactly, lambda f: (completeness(f),))


def exactly(game: Game) -> Passes[Solution]:
    """The Shapley values of a game, from all of its coalitions.

    Raises:
        ParameterError: when there are more than 2^16 of them.
    """
    if game.size > MOST:
        raise ParameterError(
            f"there are {game.size} segments, and so 2^{game.size} coalitions; exact_shapley looks at 2^{MOST} at "
            "most. Use kernel_shap or shapley_sampling, or make fewer segments (segments=, cells=)"
        )
    # Bit i of a coalition's number says whether segment i is shown; the last one, of all, is the input itself.
    numbers = torch.arange(2**game.size - 1)
    coalitions = (numbers[:, None] >> torch.arange(game.size)) & 1 == 1
    whole, scores = yield from seen_at(game, coalitions)
    values = shared_out(torch.cat([scores, whole[None]]))
    certificate = completeness_error(values, whole, scores[0])
    return Solution(values, torch.zeros_like(values), certificate)


def shared_out(worth: Tensor) -> Tensor:
    """The Shapley values (b, d) of games whose coalitions are worth (2^d, b), where bit i of a row's number is i."""
    size = (len(worth) - 1).bit_length()
    # Among the 2^(d-1) coalitions without a segment, those of a size share 1/d, as they do for every segment.
    numbers = torch.arange(2 ** (size - 1))
    members = sum((numbers >> bit) & 1 for bit in range(size - 1)) + torch.zeros_like(numbers)
    shares = torch.tensor([1 / (size * math.comb(size - 1, k)) for k in range(size)], dtype=worth.dtype)[members]
    values = []
    for bit in range(size):
        without, joined = worth.reshape(-1, 2, 2**bit, worth.shape[1]).unbind(dim=1)
        values.append(shares @ (joined - without).flatten(0, 1))
    return torch.stack(values, dim=1)
