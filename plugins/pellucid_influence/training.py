"""What the family shares: examples looked at in blocks, and tangent kernels between samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid import (
    Blocks,
    Check,
    Factors,
    Look,
    ModelError,
    ParameterError,
    Passes,
    Sample,
    Training,
    Unsuitable,
    digest,
)

LARGEST = 1024
"""The most examples that are looked at together."""
LOOK = 256
"""How many examples are looked at first, before it is known how much memory the factors of one take."""
BLOCK_BYTES = 16 * 2**20
"""How much memory the factors of one block of training examples take."""
PANEL_BYTES = 512 * 2**20
"""How much memory the factors take that are held against all blocks."""


def block_rows(factors: Factors) -> int:
    """How many examples' factors a block has, from those of some."""
    return max(1, min(LARGEST, BLOCK_BYTES * len(factors) // max(factors.nbytes, 1)))


def precision(sample: Sample) -> torch.dtype:
    """The type of an influence on queries: theirs, but for half precision, in which it would overflow or vanish."""
    kind: torch.dtype = sample.inputs.dtype
    return torch.float32 if kind in (torch.float16, torch.bfloat16) else kind


def told(sample: Sample) -> str:
    """A digest of examples and of what is asked of each."""
    return digest(sample.inputs, type(sample.target).__qualname__, vars(sample.target))


class Panel(NamedTuple):
    """As many examples as fit in memory.

    Attributes:
        factors: theirs.
        scores: theirs.
        stop: where the next panel starts.
        classes: how many classes the model tells apart; 0 where it is no classifier.
        digest: of the model and of which parameters are covered, where it was asked.
    """

    factors: Factors
    scores: Tensor
    stop: int
    classes: int = 0
    digest: str = ""


def some(examples: Sample | Training | Joined, start: int, stop: int) -> Sample:
    """Some of the examples; of a sample's all, the sample itself, whose passes other techniques share."""
    if isinstance(examples, Sample) and stop - start == len(examples):
        return examples
    return examples[start:stop]


@dataclass(frozen=True, eq=False)
class Joined:
    """Training examples after others, which are asked something else: what is looked at together is of one kind.

    Attributes:
        first: the ones.
        second: the others.
    """

    first: Training
    second: Training

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, places: slice) -> Sample:
        border = len(self.first)
        if places.stop <= border:
            return self.first[places]
        return self.second[places.start - border : places.stop - border]


def panel(sample: Sample | Training | Joined, start: int, last: int = 0, **asked: Any) -> Passes[Panel]:
    """The factors of the examples from one on to a last one, or, where none is named, of as many as fit in memory."""
    found: list[Factors] = []
    scores: list[Tensor] = []
    step, end = LOOK, last or len(sample)
    while start < end and (last or not found or sum(one.nbytes for one in found) < PANEL_BYTES):
        stop = min(end, start + step)
        seen = yield Look(at=some(sample, start, stop), **asked)
        check_covered(seen.factors)
        found.append(seen.factors)
        scores.append(seen.scores)
        step = max(1, min(LOOK, PANEL_BYTES // 4 * len(seen.factors) // max(seen.factors.nbytes, 1)))
        start = stop
    factors, classes = Factors.cat(found), classes_of(seen.outputs)
    model = digest(seen.digest, [layer.names for layer in factors]) if seen.digest else ""
    return Panel(factors, torch.cat(scores), start, classes, model)


def classes_of(outputs: Any) -> int:
    """How many classes a model with such outputs tells apart; 0 where it is no classifier."""
    return outputs.shape[1] if isinstance(outputs, Tensor) and outputs.dim() == 2 else 0


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
        own: (N, N) the inner products of the losses' gradients with each other, where they were asked for; of M further
            rows (M, M + N), theirs with each other and with the losses' gradients.
        along: (Q, M), the queries' gradients times further rows.
        classes: how many classes the model tells apart; 0 where it is no classifier.
        size: how many parameters there are.
    """

    values: Tensor
    squares: Tensor
    losses: Tensor
    gradient: float | None
    covered: Check
    own: Tensor = field(default_factory=lambda: torch.empty(0))
    along: Tensor = field(default_factory=lambda: torch.empty(0))
    classes: int = 0
    size: int = 0


def kernel(
    queries: Sample | Training,
    train: Training,
    parameters: Sequence[str],
    weights: Mapping[str, Tensor] | None = None,
    *,
    own: bool = False,
    rows: Training | None = None,
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
        rows: further examples, in place of `own`, whose inner products with all others and each other are wanted.
        blocks: where finished blocks are kept, and taken from. What they are held against is made anew: the queries'
            factors and, with `own` or `rows`, those of as many of these as fit in memory.
    """
    further = 0 if rows is None else len(rows)
    examples = train if rows is None else Joined(rows, train)
    asked: dict[str, Any] = {"factors": parameters, "weights": weights}
    blocks = blocks or Blocks(None)
    query: Panel | None = yield from panel(queries, 0, outputs=True, digest=bool(blocks), **asked)
    assert query is not None
    count, classes, covered, size = len(examples), query.classes, query.factors.check(), query.factors.numel
    step, model, wanted, told = block_rows(query.factors), query.digest, count if own else further, Told()
    starts = [*range(0, further, step), *range(further, count, step)]
    held = step * max(1, PANEL_BYTES * len(query.factors) // max(1, step * query.factors.nbytes))
    like = query.factors.layers[0].tensors[-1]
    values, whole = like.new_empty(len(queries), count), like.new_empty(wanted, count)
    top = until = 0
    while query is not None or until < wanted:
        begin, until = until, min(wanted, until + held)
        sweep = Sweep(examples, asked, blocks, query, top == 0, begin, until)
        if blocks:
            sweep.tell(model, step)
        for start in (start for start in starts if query is not None or start >= begin):
            stop = min(start + step, further if start < further else count)
            part = yield from sweep.block(start, stop)
            if query is not None:
                values[top : query.stop, start:stop] = part["values"]
                if top == 0 and start >= further:
                    told.add(part, like.device)
            if "own" in part:
                _place(whole, begin, start, part["own"])
        if query is not None:
            top, query = query.stop, None
        del sweep  # before the next one's factors are made
        if top < len(queries):
            query = yield from panel(queries, top, **asked)
    squares, losses = torch.cat(told.squares), torch.cat(told.losses)
    along, values = values[:, :further], values[:, further:]
    return Kernel(values, squares, losses, told.gradient, covered, whole, along, classes, size)


@dataclass(eq=False)
class Sweep:
    """One way through the training examples, held block by block against queries and against some of themselves.

    Attributes:
        train: the training examples, perhaps after further ones.
        asked: what is asked of each.
        blocks: where finished blocks are kept, and taken from.
        query: the queries, where there are any left.
        first: whether they are the first ones.
        begin: the first of the training examples that later ones are held against.
        until: the first after these, at the end of a block.
        digest: of all that a block depends on besides its own examples, where blocks are kept.
        mine: the factors of the examples from `begin` to `until`, made when a block needs them.
    """

    train: Training | Joined
    asked: Mapping[str, Any]
    blocks: Blocks
    query: Panel | None
    first: bool
    begin: int
    until: int
    digest: str = ""
    mine: Panel | None = None

    def tell(self, model: str, step: int) -> None:
        """Makes the digest.

        Args:
            model: that of the model and the parameters.
            step: in blocks of how many examples these are read.
        """
        queries = [layer.tensors for layer in self.query.factors] if self.query is not None else []
        own = [told(self.train[start : min(start + step, self.until)]) for start in range(self.begin, self.until, step)]
        self.digest = digest(model, queries, self.first, own)

    def block(self, start: int, stop: int) -> Passes[Mapping[str, Tensor]]:
        """A finished block: inner products, and at the first queries what concerns its examples alone."""
        upper = max(0, min(stop, self.until) - self.begin)  # of a square, half is enough
        within = upper > 0 and start < self.until
        # Where nothing is kept, no example that is held is read once more.
        sample = self.train[start:stop] if self.blocks or not within else None
        key = digest(self.digest, upper, told(sample)) if self.blocks and sample else ""
        if (known := self.blocks.found(key)) is not None:
            return known
        if upper and self.mine is None:
            self.mine = yield from panel(self.train, self.begin, self.until, **self.asked)
        if within and self.mine is not None:
            chosen = slice(start - self.begin, stop - self.begin)
            factors, losses = self.mine.factors[chosen], self.mine.scores[chosen]
        else:
            assert sample is not None
            seen = yield Look(at=sample, **self.asked)
            factors, losses = seen.factors, seen.scores
        part = {} if self.query is None else _part(self.query.factors, factors, losses, self.first)
        if upper and self.mine is not None:
            part["own"] = self.mine.factors[:upper].inner(factors)
        self.blocks.keep(key, part)
        return part


@dataclass(eq=False)
class Told:
    """What is gathered of the training examples block by block."""

    squares: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    unknown: bool = False

    def add(self, part: Mapping[str, Tensor], device: torch.device) -> None:
        """Adds a block."""
        self.squares.append(part["squares"].to(device))
        self.losses.append(part["losses"].to(device))
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
    return {"values": query.inner(train), **(alone(train, losses) if first else {})}


def alone(train: Factors, losses: Tensor) -> dict[str, Tensor]:
    """What concerns the training examples alone; of a model none of whose parameters is covered, the losses."""
    if not train.layers:
        return {"squares": losses[:0], "losses": losses}
    squares = train.squares()
    part = {"squares": squares, "losses": losses}
    if train.numel * squares.element_size() <= BLOCK_BYTES:
        part["gradient"] = train.weighted(torch.ones_like(squares)[None])[0]
    return part


def _place(whole: Tensor, row: int, column: int, values: Tensor) -> None:
    """Writes inner products and, by symmetry, their transpose where it belongs there."""
    rows, columns = slice(row, row + values.shape[0]), slice(column, column + values.shape[1])
    whole[rows, columns] = values
    if columns.stop <= len(whole):
        whole[columns, rows] = values.T


def inverse(matrix: Tensor, damping: float, word: str = "damping") -> Tensor:
    """The inverse of a symmetric positive semi-definite matrix plus a damping, in double precision; see `factored`."""
    return torch.cholesky_inverse(factored(matrix, damping, word))


def factored(matrix: Tensor, damping: float, word: str = "damping") -> Tensor:
    """The lower Cholesky factor of a symmetric positive semi-definite matrix plus a damping, in double precision.

    Args:
        matrix: (n, n).
        damping: what is added to its eigenvalues.
        word: what messages call that.

    Raises:
        ModelError: when the matrix is not finite.
        ParameterError: when the damped matrix is singular.
    """
    mean = float(matrix.diagonal().double().mean())
    if not math.isfinite(mean):
        raise ModelError(
            "the gradients of the training examples are not finite; expected a model that gives finite outputs for all "
            "of them. Look for the examples at which it does not, and for weights that are not numbers"
        )
    damped = matrix.double().clone()
    damped.diagonal().add_(damping)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    diagonal = factor.diagonal()
    if int(failed) or not float(diagonal.min()) > 1e-7 * float(diagonal.max()):
        raise ParameterError(
            f"the examples' gradients are linearly dependent, as those of duplicates are: their matrix is singular or "
            f"nearly so with a {word} of {damping:.3g} against a mean eigenvalue of {mean:.3g}; expected a greater "
            f"{word}, such as the default"
        )
    return factor
