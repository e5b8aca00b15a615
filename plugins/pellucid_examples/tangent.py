"""Distances by the tangent kernel: how little a step on one example moves the other's score."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pellucid import Check, ClassLogit, Look, Passes, Sample, Seen, Target, Training, Unsuitable
from pellucid_examples.nearest import Nearest
from pellucid_examples.streaming import streamed

FEW = 2
"""How many examples' gradients are looked at first: of a large network they take much memory."""


def by_kernel(sample: Sample, train: Training, k: int) -> Passes[tuple[Nearest, Check]]:
    """The k training examples whose target's gradient by the parameters has the greatest cosine with each input's.

    The target is that of the input, also at the training examples: each class among the targets costs a backward pass.

    Raises:
        Unsuitable: for a model of whose parameters none has gradients for each example.
    """
    seen = yield Look(at=sample, factors=("*",))
    queries, groups = seen.factors, _groups(sample, seen)
    if not queries.layers:
        raise Unsuitable(
            f"none of the parameters {sorted(queries.uncovered)[:5]} has per-example gradients in closed form; "
            "expected linear layers, convolutions, embeddings or normalisations, or another metric"
        )
    lengths = queries.squares().clamp_min(0).sqrt()
    nearest = Nearest(len(sample), k, lengths)

    def look(at: Sample) -> Look:
        return Look(at=at, factors=("*",), targets=[target(len(at)) for target, _ in groups])

    def reduced(seen: Seen) -> dict[str, Tensor]:
        cosines = lengths.new_zeros(len(lengths), seen.scores.shape[-1])
        for (_, rows), theirs in zip(groups, seen.factors, strict=True):
            scale = lengths[rows, None] * theirs.squares().clamp_min(0).sqrt()
            inner = queries[rows].inner(theirs)
            cosines[rows] = torch.where(scale > 0, inner / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)
        return {"distances": 1 - cosines}

    def take(start: int, found: dict[str, Tensor]) -> None:
        nearest.add(torch.arange(start, start + found["distances"].shape[1]), found["distances"])

    yield from streamed(train, look, reduced, take, first=FEW)
    return nearest, queries.check()


def _groups(sample: Sample, seen: Seen) -> list[tuple[Callable[[int], Target], Tensor]]:
    """The targets of the inputs, as functions of the number of examples that they are for, and whose each is (n,)."""
    target = sample.target
    if isinstance(target, ClassLogit) and seen.classes is not None:
        probability, classes = target.probability, seen.classes.cpu()
        return [
            (functools.partial(_of_class, int(one), probability), (classes == one).nonzero().flatten())
            for one in torch.unique(classes)
        ]
    if target.picked(torch.zeros(1, dtype=torch.long)) is target:
        return [(lambda _: target, torch.arange(len(sample)))]
    fixed = target.fixed_by(sample)
    return [(functools.partial(_of_query, fixed, query), torch.tensor([query])) for query in range(len(sample))]


def _of_class(index: int, probability: bool, _: int) -> Target:
    return ClassLogit(index, probability)


def _of_query(target: Target, query: int, count: int) -> Target:
    return target.picked(torch.full((count,), query))
