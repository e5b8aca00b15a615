"""What the family shares: training data as a sample, looked at in blocks, and tangent kernels between samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pellucid import Check, Factors, InputError, Look, Loss, ParameterError, Passes, Sample, Unsuitable

LARGEST = 1024
"""The most examples that are looked at together."""
LOOK = 256
"""How many examples are looked at first, before it is known how much memory the factors of one take."""
BLOCK_BYTES = 32 * 2**20
"""How much memory the factors of one block of training examples take."""
PANEL_BYTES = 512 * 2**20
"""How much memory the factors take that are held against all blocks."""


def data(train: Any) -> tuple[Tensor, Tensor]:
    """Training inputs (N, ...) and labels of what a technique is given as `train`.

    Args:
        train: `(inputs, labels)`, or a data set with these as its `tensors`.

    Raises:
        InputError: when it is neither, or the two do not fit together.
    """
    pair = getattr(train, "tensors", train)
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(hasattr(part, "__array__") for part in pair):
        raise InputError(
            f"train is a {type(train).__name__}; expected (inputs, labels) as two tensors, or a TensorDataset of them"
        )
    inputs, labels = (torch.as_tensor(part).detach() for part in pair)
    if inputs.dim() < 2 or labels.dim() < 1 or len(inputs) != len(labels) or len(inputs) == 0:
        raise InputError(
            f"train has inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)}; expected (N, ...) and (N, ...) "
            "with the same N of at least 1"
        )
    return inputs, labels


def training_sample(train: Any, queries: Sample) -> Sample:
    """The training examples as a sample whose target is their loss.

    Args:
        train: as for `data`.
        queries: what is explained, whose form the training inputs must have.

    Raises:
        InputError: when they have another form, are not finite, or a label is negative.
    """
    inputs, labels = data(train)
    if not isinstance(queries.inputs, Tensor) or queries.frame.extras:
        raise InputError("influence is for models of one input; the queries have several")
    if inputs.shape[1:] != queries.inputs.shape[1:]:
        raise InputError(
            f"the training inputs have shape {tuple(inputs.shape)}, the queries {tuple(queries.inputs.shape)}; "
            "expected the same shape of each example"
        )
    if not inputs.is_floating_point() or not bool(torch.isfinite(inputs).all()):
        raise InputError(f"the training inputs are of type {inputs.dtype} or not finite; expected finite numbers")
    if labels.is_floating_point():
        if not bool(torch.isfinite(labels).all()):
            raise InputError("some training labels are not finite; remove these examples")
        labels = labels.to(queries.inputs)
    elif labels.numel() and int(labels.min()) < 0:
        raise InputError(f"a training label is {int(labels.min())}; expected class indices of 0 or more")
    else:
        labels = labels.long().to(queries.device)
    return Sample(inputs.to(queries.inputs), Loss(labels), queries.seed, queries.mean, queries.std, queries.frame)


def block_rows(factors: Factors, budget: int = BLOCK_BYTES) -> int:
    """How many examples' factors fit a budget, from those of some."""
    return max(1, min(LARGEST, budget * len(factors) // max(factors.nbytes, 1)))


def panel(sample: Sample, start: int, **asked: Any) -> Passes[tuple[Factors, Tensor, int]]:
    """The factors of as many examples as fit in memory, their scores, and where the next panel starts."""
    found: list[Factors] = []
    scores: list[Tensor] = []
    step = LOOK
    while start < len(sample) and (not found or sum(one.nbytes for one in found) < PANEL_BYTES):
        stop = min(len(sample), start + step)
        seen = yield Look(at=sample if stop - start == len(sample) else sample[start:stop], **asked)
        check_covered(seen.factors)
        found.append(seen.factors)
        scores.append(seen.scores)
        step = max(1, min(LOOK, PANEL_BYTES // 4 * len(seen.factors) // max(seen.factors.nbytes, 1)))
        start = stop
    return Factors.cat(found), torch.cat(scores), start


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
    """

    values: Tensor
    squares: Tensor
    losses: Tensor
    gradient: float | None
    covered: Check
    own: Tensor = field(default_factory=lambda: torch.empty(0))


def kernel(
    queries: Sample,
    train: Sample,
    parameters: Sequence[str],
    weights: Mapping[str, Tensor] | None = None,
    *,
    own: bool = False,
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
    """
    asked: dict[str, Any] = {"factors": parameters, "weights": weights}
    rows: list[Tensor] = []
    squares, losses = [], []
    total, covered, whole = torch.zeros(()), None, torch.empty(0)
    at = until = 0
    while at < len(queries):
        query, _, at = yield from panel(queries, at, **asked)
        columns, first, start = [], not rows, 0
        mine: Factors | None = None
        while start < len(train):
            begin = start
            if own and first and begin == 0:
                seen, scores, start = yield from panel(train, 0, **asked)
                whole, mine, until = seen.squares().new_empty(len(train), len(train)), seen, start
                _triangle(whole, mine, 0)
            else:
                stop = begin + min(LOOK if begin == 0 else LARGEST, block_rows(query if begin == 0 else seen))
                shown = yield Look(at=train[begin:stop], **asked)
                seen, scores, start = shown.factors, shown.scores, min(stop, len(train))
                if mine is not None:
                    _place(whole, 0, begin, mine.inner(seen))
            columns.append(query.inner(seen))
            if first:
                covered = covered or seen.check()
                squares.append(seen.squares())
                losses.append(scores)
                total = total + seen.weighted(torch.ones_like(squares[-1])[None])[0]
        rows.append(torch.cat(columns, dim=1))
    assert covered is not None
    if own:
        yield from _rest(whole, train, until, asked)
    gradient = float(total.norm()) / len(train)
    return Kernel(torch.cat(rows), torch.cat(squares), torch.cat(losses), gradient, covered, whole)


def _rest(whole: Tensor, train: Sample, at: int, asked: dict[str, Any]) -> Passes[None]:
    """The inner products of the training examples from one on with each other."""
    while at < len(train):
        begin = at
        mine, _, at = yield from panel(train, begin, **asked)
        _triangle(whole, mine, begin)
        step, start = block_rows(mine), at
        while start < len(train):
            seen = yield Look(at=train[start : start + step], **asked)
            _place(whole, begin, start, mine.inner(seen.factors))
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
    """The inverse of a symmetric positive semi-definite matrix plus a damping, in double precision.

    Raises:
        ParameterError: when the damped matrix is singular.
    """
    damped = matrix.double().clone()
    damped.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    diagonal = factor.diagonal()
    if int(failed) or not float(diagonal.min()) > 1e-7 * float(diagonal.max()):
        mean = float(matrix.diagonal().double().mean())
        raise ParameterError(
            f"the curvature is singular or nearly so with a damping of {damping:.3g} against a mean eigenvalue of "
            f"{mean:.3g}; expected a greater damping, such as 'auto'"
        )
    return torch.cholesky_inverse(factor)


def certificates(found: Kernel, train: Sample) -> list[Check]:
    """What stands beside every influence: what was left out, and whether the model has learnt its training data."""
    guess = constant_loss(train)
    share = float(found.losses.double().mean()) / guess if guess > 0 else 0.0
    mean = float(found.squares.double().clamp_min(0).sqrt().mean())
    note = f"the mean training loss as a share of the best constant guess's; gradient norms are {mean:.3g} on average"
    if found.gradient is not None:
        note += f", that of the mean loss is {found.gradient:.3g}"
    if share >= UNTRAINED:
        note += "; the model looks untrained, so that what an example adds to it says little"
    return [found.covered, Check.bound("training loss", share, UNTRAINED, note)]


UNTRAINED = 0.9


def constant_loss(train: Sample) -> float:
    """The mean loss of the best guess that does not look at the inputs."""
    assert isinstance(train.target, Loss)
    labels = train.target.labels
    if labels.is_floating_point():
        spread = (labels - labels.mean(dim=0)).double().square()
        return float(spread.reshape(len(labels), -1).sum(dim=1).mean())
    shares = torch.bincount(labels.reshape(-1)).double() / labels.numel()
    shares = shares[shares > 0]
    return -float((shares * shares.log()).sum())


def shown(train: Sample) -> dict[str, Any]:
    """What an `Influence` keeps of the training examples: their classes, and the inputs where they are images."""
    assert isinstance(train.target, Loss)
    labels = train.target.labels
    classes = None if labels.is_floating_point() or labels.dim() > 1 else labels
    return {"train_labels": classes, "train": train.inputs if train.inputs.dim() == 4 else None}
