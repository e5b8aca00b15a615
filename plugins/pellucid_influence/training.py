"""What the family shares: examples looked at in blocks, and tangent kernels between samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid import Blocks, Check, Factors, Look, ParameterError, Passes, Sample, Unsuitable, digest
from pellucid_influence.data import Training

LARGEST = 1024
"""The most examples that are looked at together."""
LOOK = 256
"""How many examples are looked at first, before it is known how much memory the factors of one take."""
BLOCK_BYTES = 16 * 2**20
"""How much memory the factors of one block of training examples take."""
PANEL_BYTES = 512 * 2**20
"""How much memory the factors take that are held against all blocks."""


def block_rows(factors: Factors, budget: int = BLOCK_BYTES) -> int:
    """How many examples' factors fit a budget, from those of some."""
    return max(1, min(LARGEST, budget * len(factors) // max(factors.nbytes, 1)))


class Panel(NamedTuple):
    """As many examples as fit in memory.

    Attributes:
        factors: theirs.
        scores: theirs.
        stop: where the next panel starts.
        classes: how many classes the model tells apart; 0 where it is no classifier.
        digest: of the model and of all that was seen, where it was asked.
    """

    factors: Factors
    scores: Tensor
    stop: int
    classes: int = 0
    digest: str = ""


def some(examples: Sample | Training, start: int, stop: int) -> Sample:
    """Some of the examples; of a sample's all, the sample itself, whose passes other techniques share."""
    if isinstance(examples, Sample) and stop - start == len(examples):
        return examples
    return examples[start:stop]


def panel(sample: Sample | Training, start: int, **asked: Any) -> Passes[Panel]:
    """The factors of as many examples from one on as fit in memory."""
    found: list[Factors] = []
    scores: list[Tensor] = []
    step = LOOK
    while start < len(sample) and (not found or sum(one.nbytes for one in found) < PANEL_BYTES):
        stop = min(len(sample), start + step)
        seen = yield Look(at=some(sample, start, stop), **asked)
        check_covered(seen.factors)
        found.append(seen.factors)
        scores.append(seen.scores)
        step = max(1, min(LOOK, PANEL_BYTES // 4 * len(seen.factors) // max(seen.factors.nbytes, 1)))
        start = stop
    outputs, factors = seen.outputs, Factors.cat(found)
    classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.dim() == 2 else 0
    told = digest(seen.digest, [(layer.names, layer.tensors) for layer in factors]) if seen.digest else ""
    return Panel(factors, torch.cat(scores), start, classes, told)


def check_covered(factors: Factors) -> None:
    """Refuses a model of whose parameters none is covered.

    Raises:
        Unsuitable: with the names.
    """
    if not factors.layers:
        raise Unsuitable(
            f"none of the parameters {sorted(factors.uncovered)[:5]} has per-example gradients in closed form; "
            "expected linear layers, convolutions, embeddings or normalisations"
        )


@dataclass(frozen=True, eq=False)
class Kernel:
    """Inner products of the queries' and the training examples' gradients, and what was seen on the way.

    Attributes:
        values: (Q, N), the gradient of each query's score times that of each training example's loss.
        squares: (N,) the squared norms of the losses' gradients.
        losses: (N,).
        gradient: the norm of the losses' mean gradient, where it is known.
        covered: the certificate of the parameters that are left out.
        own: (N, N) the inner products of the losses' gradients with each other, where they were asked for.
        classes: how many classes the model tells apart; 0 where it is no classifier.
        size: how many parameters there are.
    """

    values: Tensor
    squares: Tensor
    losses: Tensor
    gradient: float | None
    covered: Check
    own: Tensor = field(default_factory=lambda: torch.empty(0))
    classes: int = 0
    size: int = 0


def kernel(
    queries: Sample | Training,
    train: Training,
    parameters: Sequence[str],
    weights: Mapping[str, Tensor] | None = None,
    *,
    own: bool = False,
    blocks: Blocks | None = None,
) -> Passes[Kernel]:
    """One forward and backward pass of each example, in memory that does not grow with their number.

    Where the factors of the queries, or with `own` of the training examples, do not fit in memory at once, there is one
    more pass over the training examples for each part that does.

    Args:
        queries: whose target's gradient is taken.
        train: the training examples, in blocks.
        parameters: by which parameters, as names with wildcards.
        weights: those of a checkpoint, in place of the model's own.
        own: whether the training examples' inner products with each other are wanted.
        blocks: where finished blocks are kept, and taken from; not with `own`.
    """
    blocks = blocks or Blocks(None)
    asked: dict[str, Any] = {"factors": parameters, "weights": weights}
    values, told, whole = torch.empty(0), Told(), torch.empty(0)
    mine: Factors | None = None
    at = until = classes = 0
    while at < len(queries):
        first, begin = at == 0, at
        query = yield from panel(queries, begin, outputs=True, digest=bool(blocks), **asked)
        at, classes, step, start = query.stop, query.classes, block_rows(query.factors), 0
        while start < len(train):
            place = start
            if own and first and start == 0:
                seen = yield from panel(train, 0, **asked)
                mine, until = seen.factors, seen.stop
                whole = mine.squares().new_empty(len(train), len(train))
                _triangle(whole, mine, 0)
                part = _part(query.factors, mine, seen.scores, first)
                start = until
            else:
                sample = train[start : start + step]
                key = digest(query.digest, first, sample.inputs, vars(sample.target)) if blocks else ""
                if (known := blocks.found(key)) is not None:
                    part = known
                else:
                    shown = yield Look(at=sample, **asked)
                    part = _part(query.factors, shown.factors, shown.scores, first)
                    blocks.keep(key, part)
                    if mine is not None:
                        _place(whole, 0, start, mine.inner(shown.factors))
                    del shown  # before the next block's factors are made
                start += len(sample)
            if not values.numel():
                values = part["values"].new_empty(len(queries), len(train), device=query.scores.device)
            values[begin:at, place:start] = part["values"]
            if first:
                told.add(part)
    if own:
        yield from _rest(whole, train, until, asked)
    squares, losses = (torch.cat(parts).to(values.device) for parts in (told.squares, told.losses))
    return Kernel(values, squares, losses, told.gradient, query.factors.check(), whole, classes, query.factors.numel)


@dataclass(eq=False)
class Told:
    """What is gathered of the training examples block by block."""

    squares: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    unknown: bool = False

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Adds a block."""
        self.squares.append(part["squares"])
        self.losses.append(part["losses"])
        self.unknown |= "gradient" not in part
        if not self.unknown:
            self.total = part["gradient"] if self.total is None else self.total + part["gradient"].to(self.total.device)

    @property
    def gradient(self) -> float | None:
        """The norm of the mean of the gradients, unless there were too many parameters for it."""
        if self.unknown or self.total is None:
            return None
        return float(self.total.norm()) / sum(len(losses) for losses in self.losses)


def _part(query: Factors, train: Factors, losses: Tensor, first: bool) -> dict[str, Tensor]:
    """A finished block: the inner products, and at the first queries what concerns the training examples alone."""
    part = {"values": query.inner(train)}
    if first:
        squares = train.squares()
        part |= {"squares": squares, "losses": losses}
        if train.numel * squares.element_size() <= BLOCK_BYTES:
            part["gradient"] = train.weighted(torch.ones_like(squares)[None])[0]
    return part


def _rest(whole: Tensor, train: Training, at: int, asked: dict[str, Any]) -> Passes[None]:
    """The inner products of the training examples from one on with each other."""
    while at < len(train):
        begin = at
        mine = yield from panel(train, begin, **asked)
        at = mine.stop
        _triangle(whole, mine.factors, begin)
        step, start = block_rows(mine.factors), at
        while start < len(train):
            seen = yield Look(at=train[start : start + step], **asked)
            _place(whole, begin, start, mine.factors.inner(seen.factors))
            start += step


def _triangle(whole: Tensor, mine: Factors, begin: int) -> None:
    """Writes the inner products of a panel with itself, of which by symmetry half are computed."""
    for start in range(0, len(mine), LOOK):
        stop = min(len(mine), start + LOOK)
        _place(whole, begin, begin + start, mine[:stop].inner(mine[start:stop]))


def _place(whole: Tensor, row: int, column: int, values: Tensor) -> None:
    """Writes inner products and, by symmetry, their transpose."""
    rows, columns = slice(row, row + values.shape[0]), slice(column, column + values.shape[1])
    whole[rows, columns] = values
    whole[columns, rows] = values.T


def inverse(matrix: Tensor, damping: float) -> Tensor:
    """The inverse of a symmetric positive semi-definite matrix plus a damping, in double precision; see `factored`."""
    return torch.cholesky_inverse(factored(matrix, damping))


def factored(matrix: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of a symmetric positive semi-definite matrix plus a damping, in double precision.

    Raises:
        ParameterError: when the damped matrix is singular.
    """
    damped = matrix.double().clone()
    damped.diagonal().add_(damping)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    diagonal = factor.diagonal()
    if int(failed) or not float(diagonal.min()) > 1e-7 * float(diagonal.max()):
        mean = float(matrix.diagonal().double().mean())
        raise ParameterError(
            f"the curvature is singular or nearly so with a damping of {damping:.3g} against a mean eigenvalue of "
            f"{mean:.3g}; expected a greater damping, such as 'auto'"
        )
    return factor


def certificates(found: Kernel, train: Training) -> list[Check]:
    """What stands beside every influence: what was left out, and whether the model has learnt its training data."""
    labels = train.labels
    guess = constant_loss(labels)
    share = float(found.losses.double().mean()) / guess if guess > 0 else 0.0
    mean = float(found.squares.double().clamp_min(0).sqrt().mean())
    note = f"the mean training loss as a share of the best constant guess's; gradient norms are {mean:.3g} on average"
    if found.gradient is not None:
        note += f", that of the mean loss is {found.gradient:.3g}"
    if share >= UNTRAINED:
        note += "; the model looks untrained, so that what an example adds to it says little"
    checks = [found.covered, Check.bound("training loss", share, UNTRAINED, note)]
    if found.classes and not labels.is_floating_point():
        absent = (torch.bincount(labels.reshape(-1), minlength=found.classes) == 0).nonzero()[:, 0].tolist()
        named = ", ".join(map(str, absent[:10])) + (" and others" if len(absent) > 10 else "")
        lacking = f"no training example is of the classes {named}, for which none can speak" if absent else "none"
        checks.append(Check.bound("classes without examples", len(absent), 0, lacking))
    return checks


UNTRAINED = 0.9


def constant_loss(labels: Tensor) -> float:
    """The mean loss of the best guess that does not look at the inputs."""
    if labels.is_floating_point():
        spread = (labels - labels.mean(dim=0)).double().square()
        return float(spread.reshape(len(labels), -1).sum(dim=1).mean())
    shares = torch.bincount(labels.reshape(-1)).double() / labels.numel()
    shares = shares[shares > 0]
    return -float((shares * shares.log()).sum())


def shown(train: Training) -> dict[str, Any]:
    """What an `Influence` keeps of the training examples: their classes, and the inputs where they are images."""
    labels, inputs = train.labels, train.source.inputs
    classes = None if labels.is_floating_point() or labels.dim() > 1 else labels
    return {"train_labels": classes, "train": inputs if inputs is not None and inputs.dim() == 4 else None}
