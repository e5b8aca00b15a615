"""RISE: random masks, weighted by the scores that they leave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from pellucid import Attribution, Check, ClassLogit, Explainer, Look, Passes, Sample, TargetError
from pellucid_perturbation.leafwise import by_name, formed_like

_CHUNK = 64  # masks of full size in memory at once when they are weighted


@dataclass(frozen=True, eq=False)
class RISE(Explainer):
    """Averages the score over random masks: how much it rises when a pixel is known to be shown.

    With masks m that show each cell of a coarse grid with probability p, enlarged and shifted at random, and s = f of
    the masked input, the value of a pixel is E[s | shown] - E[s] = cov(s, m) / p. All examples see the same masks.

    Petsiuk, Das & Saenko, "RISE: Randomized input sampling for explanation of black-box models", 2018. The paper's
    estimate of E[s | shown], mean(s m) / p, differs from ours by E[s], which is the same everywhere, and by the noise
    E[s] (mean(m) / p - 1), which says how often a pixel happened to be shown and nothing of the model. Since the masks'
    mean is known to be p, ours leaves it out, and a constant model gets zero. `centred=False` is the paper's estimate.

    Attributes:
        n_masks: how many masks. The error falls as 1 / sqrt(n_masks) and stands in the checks.
        cells: the grid's cells along each axis of an image or signal; in a table each feature is a cell.
        p: the probability that a cell is shown.
        centred: whether the mean score is subtracted before the masks are weighted.
        probability: whether the softmax probability of the class is averaged, as in the paper, in place of the target's
            own score, the logit.
        baseline: what is shown where a mask hides, see `Sample.baseline`; the paper's is "black".

    Raises:
        TargetError: when probabilities are asked of a target that is no class.
    """

    n_masks: Annotated[int, Ge(2)] = 500
    cells: Annotated[int, Ge(1)] = 7
    p: Annotated[float, Gt(0), Lt(1)] = 0.5
    centred: bool = True
    probability: bool = False
    baseline: Any = "zero"

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[RISE]:
        """Few masks."""
        return [cls(n_masks=48, cells=4)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Looks at every masked sample, and, where probabilities are asked, first at the sample itself."""
        leaves = by_name(sample.inputs)
        masks = {name: _Masks(sample, name, tuple(leaf.shape[1:]), self) for name, leaf in leaves.items()}

        def shown(draws: Tensor, examples: Tensor) -> Any:
            distinct, place = torch.unique(draws, return_inverse=True)
            return formed_like(sample.inputs, {name: one.at(distinct)[place] for name, one in masks.items()})

        targets = None
        if self.probability:
            whole = yield Look(at=sample)
            if whole.classes is None:
                raise TargetError("rise(probability=True) needs a class as its target; expected an index, or False")
            targets = [ClassLogit(whole.classes.cpu(), probability=True)]
        seen = yield Look(at=sample.masked(self.n_masks, shown, self.baseline), targets=targets)
        scores = seen.scores[0] if targets else seen.scores
        values, errors, largest = {}, [], []
        for name, leaf in leaves.items():
            pixels, error = self._weigh(masks[name], scores)
            # Channels are shown and hidden together: each gets an equal share of the pixel's value.
            share = pixels / leaf.shape[1] if leaf.dim() > 2 else pixels
            values[name] = share.expand(leaf.shape).clone()
            errors.append(error.flatten(1).amax(dim=1))
            largest.append(pixels.abs().flatten(1).amax(dim=1))
        error, most = torch.stack(errors).amax(dim=0), torch.stack(largest).amax(dim=0)
        relative = torch.where(most > 0, error / most, torch.zeros_like(most))
        note = f"the largest standard error over {self.n_masks} masks, as a share of the largest value"
        check = Check.info("Monte-Carlo standard error", relative, note)
        return Attribution(formed_like(sample.inputs, values), over="input", checks=(check,))

    def _weigh(self, masks: _Masks, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The value of every pixel, (B, 1, ...), and its standard error, from the scores (n, B)."""
        n = len(scores)
        # Of centred scores and masks the same products give the covariance, and its error: that of the means cancels.
        centred, known = (scores - scores.mean(dim=0), self.p) if self.centred else (scores, 0.0)
        first = second = torch.zeros((), dtype=scores.dtype, device=scores.device)
        for start, chunk in masks.chunks(_CHUNK):
            mask, score = chunk.to(scores) - known, centred[start : start + len(chunk)]
            first = first + torch.tensordot(score, mask, dims=([0], [0]))
            second = second + torch.tensordot(score**2, mask**2, dims=([0], [0]))
        variance = (second / n - (first / n) ** 2).clamp_min(0) * n / (n - 1)
        return first / ((n - 1 if self.centred else n) * self.p), (variance / n).sqrt() / self.p


class _Masks:
    """Random masks for one input, kept as coarse grids and shifts."""

    def __init__(self, sample: Sample, name: str, shape: tuple[int, ...], rise: RISE) -> None:
        self.table = len(shape) < 2
        self.sizes = shape if self.table else shape[1:]
        cells = self.sizes if self.table else (rise.cells,) * len(self.sizes)
        self.pitch = [math.ceil(size / cell) for size, cell in zip(self.sizes, cells, strict=True)]
        grids, shifts = [], []
        for draw in range(rise.n_masks):
            generator = sample.generator("rise", name, draw)
            grids.append(torch.rand(cells, generator=generator, dtype=torch.float32) < rise.p)
            shifts.append([int(torch.randint(pitch, (), generator=generator)) for pitch in self.pitch])
        self.grids, self.shifts = torch.stack(grids), torch.tensor(shifts)

    def at(self, draws: Tensor) -> Tensor:
        """The masks of some draws, (rows, d) in a table and (rows, 1, ...) else, between 0 and 1."""
        grid = self.grids[draws]
        if self.table:
            return grid
        mask = grid.float()
        for axis, (size, pitch) in enumerate(zip(self.sizes, self.pitch, strict=True)):
            cells = self.grids.shape[axis + 1]
            # The grid is stretched linearly over one cell more than the input needs, and cut where the shift says.
            places = (torch.arange(size) + self.shifts[draws, axis, None]).float() + 0.5
            places = (places * (cells / ((cells + 1) * pitch)) - 0.5).clamp(0, cells - 1)
            weights = (1 - (places[:, :, None] - torch.arange(cells)).abs()).clamp_min(0)
            mask = torch.einsum("rc...,rsc->r...s", mask, weights)
        return mask.unsqueeze(1)

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """All masks in order, some at a time, each with the draw that it starts with."""
        for start in range(0, len(self.grids), size):
            yield start, self.at(torch.arange(start, min(start + size, len(self.grids))))
