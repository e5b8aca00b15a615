"""The Gauss-Newton matrix by its greatest directions in the examples' outputs, inverted through their kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pellucid import Blocks, Look, ModelError, Passes, Sample, Score, Target, Training, Unsuitable
from pellucid_influence.training import LARGEST, Kernel, factored, kernel


def hessians(logits: Tensor, temperature: float) -> Tensor:
    """The Hessian of each example's loss by the outputs, diag(p) - p p^T at a temperature of one: (B, C, C) doubles."""
    p = (logits.detach().double() / temperature).softmax(dim=1)
    return (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / temperature**2


@dataclass(frozen=True, eq=False)
class Along(Target):
    """The outputs along an eigenvector of the loss's Hessian by them, times the root of its eigenvalue.

    Attributes:
        places: (B,) which eigenvector, in ascending order of the eigenvalues.
        temperature: the loss's.
    """

    places: Tensor
    temperature: float

    def score(self, given: Score) -> Tensor:
        """The outputs of each row times the direction, which is not differentiated itself."""
        logits = given.logits()
        values, vectors = torch.linalg.eigh(hessians(logits, self.temperature))
        places = self.places[given.examples].to(logits.device)[:, None]
        directions = vectors.gather(2, places[:, None].expand(-1, logits.shape[1], 1))[..., 0]
        scaled = directions * values.gather(1, places).clamp_min(0).sqrt()
        score: Tensor = (logits * scaled.to(logits)).sum(dim=1)
        return score

    def picked(self, examples: Tensor) -> Target:
        """Those of some examples."""
        return replace(self, places=self.places[examples])


@dataclass(frozen=True, eq=False)
class Rows(Training):
    """Rows of R, where R^T R / N is the Gauss-Newton matrix of N training examples.

    Attributes:
        examples: (M,) of which training example each row is.
        places: (M,) along which eigenvector of its Hessian by the outputs.
        temperature: the loss's.
    """

    examples: Tensor = field(default_factory=lambda: torch.empty(0))
    places: Tensor = field(default_factory=lambda: torch.empty(0))
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, chosen: slice | Tensor) -> Sample:
        return replace(super().__getitem__(self.examples[chosen]), target=Along(self.places[chosen], self.temperature))


@dataclass(frozen=True, eq=False)
class LowRank:
    """The Gauss-Newton matrix through the kernel of M of its rows and of the examples' gradients.

    Attributes:
        found: the inner products of the queries', the rows' and the examples' gradients, and what was seen of these.
        kept: which share of the loss's Hessians by the outputs the rows have, by the trace.
    """

    found: Kernel
    kept: float

    @property
    def mean(self) -> float:
        """The mean eigenvalue."""
        return float(self.found.own.diagonal().double().sum()) / len(self.found.losses) / self.found.size

    def solved(self, damping: float) -> tuple[Tensor, Tensor, float]:
        """The products of the queries (Q, N) and of the examples with themselves (N,) by the damped inverse.

        By Woodbury's identity, (R^T R / N + c)^-1 = (1 - R^T (N c + R R^T)^-1 R) / c. The third is the trace of the
        matrix times its damped inverse.
        """
        shift = len(self.found.losses) * damping
        own, rank = self.found.own, len(self.found.own)
        factor = factored(own[:, :rank], shift)
        cross, along, inverse = (
            torch.linalg.solve_triangular(factor, right.to(factor), upper=False)
            for right in (own[:, rank:], self.found.along.T, torch.eye(rank))
        )
        values = (self.found.values.double() - along.T @ cross) / damping
        selves = (self.found.squares.double() - cross.square().sum(dim=0)) / damping
        return values, selves, rank - shift * float(inverse.square().sum())


def low_rank(
    sample: Sample, train: Training, parameters: Sequence[str], rank: int, temperature: float, blocks: Blocks
) -> Passes[LowRank]:
    """Forward passes of the examples, and forward and backward ones of queries, examples and rows.

    Args:
        sample: the queries.
        train: the training examples, with their loss as the target.
        parameters: by which parameters, as names with wildcards.
        rank: how many rows are kept.
        temperature: that of the training examples' loss.
        blocks: where finished blocks of their kernel are kept, and taken from.

    Raises:
        Unsuitable: when the model is no classifier.
    """
    sizes = yield from _eigenvalues(train, temperature)
    chosen = sizes.flatten().topk(min(rank, sizes.numel())).indices.sort().values
    examples, places = chosen // sizes.shape[1], chosen % sizes.shape[1]
    rows = Rows(train.source, train.queries, examples=examples, places=places, temperature=temperature)
    found = yield from kernel(sample, train, parameters, rows=rows, blocks=blocks)
    return LowRank(found, float(sizes.flatten()[chosen].sum() / sizes.sum()))


def _eigenvalues(train: Training, temperature: float) -> Passes[Tensor]:
    """Those of each example's Hessian by the outputs, ascending: (N, C)."""
    found = []
    for start in range(0, len(train), LARGEST):
        outputs = (yield Look(at=train[start : start + LARGEST], outputs=True)).outputs
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise ModelError("the Gauss-Newton matrix needs a model that returns a tensor (B, classes)")
        if not bool(torch.isfinite(outputs).all()):
            raise ModelError(
                "the model's outputs for the training examples are not finite; expected finite ones for all of them"
            )
        found.append(torch.linalg.eigvalsh(hessians(outputs, temperature)).clamp_min(0).cpu())
    if train.labels.is_floating_point():
        raise Unsuitable(
            "of the squared error every direction of the outputs counts alike, so that no few of them stand for the "
            "Gauss-Newton matrix; take rank=None, or solver='cg'"
        )
    return torch.cat(found)
