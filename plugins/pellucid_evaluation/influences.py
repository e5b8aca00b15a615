"""What the evaluators of influence share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid import Influence, InputError, Sample, Trainer, create


def influence_of(explanation: Any, sample: Sample, examples: int) -> Influence:
    """The explanation, where it is an influence of so many training examples on the sample's queries.

    Raises:
        InputError: when it is not.
    """
    if not isinstance(explanation, Influence):
        raise InputError(f"the explanation is a {type(explanation).__name__}; expected an Influence")
    if explanation.values.shape != (len(sample), examples):
        raise InputError(
            f"the influence is {tuple(explanation.values.shape)}; expected {len(sample)} queries and the {examples} "
            "training examples of the evaluator, in its order"
        )
    return explanation


def controls(explanation: Any, train: Any, kinds: Sequence[str] = ("random", "similarity", "loss")) -> dict[str, Any]:
    """What influences are held against: the controls of some kinds, made of the training data."""
    if not isinstance(explanation, Influence):
        return {}
    return {kind: create("influence_control", train=train, kind=kind) for kind in kinds}


def ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis, those of ties averaged; NaN where one of the values is."""
    order = values.argsort(dim=-1, stable=True)
    places = torch.arange(values.shape[-1], dtype=torch.float64, device=values.device).expand(values.shape)
    placed = torch.empty(values.shape, dtype=torch.float64, device=values.device).scatter_(-1, order, places)
    result = placed.clone()
    for row, place in zip(values.reshape(-1, values.shape[-1]), result.reshape(-1, values.shape[-1]), strict=True):
        _, group = torch.unique(row, return_inverse=True)
        sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=values.device)
        counts = sums.clone().index_add_(0, group, torch.ones_like(place))
        place.copy_((sums.index_add_(0, group, place) / counts)[group])
    return result.masked_fill_(values.isnan().any(dim=-1, keepdim=True), torch.nan)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation along the last axis; zero where one side is constant, NaN where a value is."""
    one, other = (values.double() - values.double().mean(dim=-1, keepdim=True) for values in (one, other))
    norms = one.norm(dim=-1) * other.norm(dim=-1)
    products = (one * other).sum(dim=-1)
    return torch.where(norms == 0, 0.0, products / norms)


def small_trainer() -> Trainer:
    """One epoch on ten images of noise, of the conformance kit's network."""
    from pellucid.testing.models import SmallNet

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Trainer(lambda: SmallNet().double(), inputs, torch.arange(10) % 4, epochs=1, batch_size=5)
