"""How far a map keeps each point's own trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from pellucid import Evaluator, Sample, Scores
from pellucid_evaluation.maps import frames_of, kept, moving, name_of, order_of

MOST_POINTS = 2000
"""Stress compares all pairs; of more states so many are taken, evenly spaced."""


@dataclass(frozen=True, eq=False)
class TrajectoryPreservation(Evaluator):
    """The share of the nearest times of each point's own trajectory that are its nearest on the map.

    For each point and time, the k times at which its state was most like the present one. A map at random keeps
    k / (T - 1) of them.

    Attributes:
        n_neighbors: k; at most half of the other times.

    Raises:
        Unsuitable: for what is no projection, or one that does not move.
        InputError: when the states do not fit the map.
    """

    n_neighbors: Annotated[int, Ge(1)] = 3

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares times; the model is not needed."""
        moving(self, explanation)
        states, places = frames_of(sample, explanation)
        k = min(self.n_neighbors, max(1, (len(states) - 1) // 2))
        pairs = zip(states.transpose(0, 1), places.transpose(0, 1), strict=True)
        values = torch.stack([kept(order_of(one), order_of(other), k).mean() for one, other in pairs])
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=values, better="higher"
        )


@dataclass(frozen=True, eq=False)
class MovementCorrelation(Evaluator):
    """Spearman's correlation of how far points move on the map with how far their states move.

    One number for the map, over all points and pairs of consecutive times. NaN where nothing moves, or everything
    equally far.

    Raises:
        Unsuitable: for what is no projection, or one that does not move.
        InputError: when the states do not fit the map.
    """

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares moves; the model is not needed."""
        moving(self, explanation)
        one, other = (moves(points).flatten() for points in frames_of(sample, explanation))
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=spearman(one, other), better="higher"
        )


@dataclass(frozen=True, eq=False)
class TemporalStability(Evaluator):
    """How still points stand on the map while their states stand still.

    With a the mean length of the moves that are shortest as states, divided by that of all moves, on the map and b the
    same as states: (1 - a) / (1 - b), at most 1. So it is 1 where what hardly moves is drawn to move no further than it
    does, and 0 where it is drawn to move like anything else. Where the shortest moves are as long as the others nothing
    stands still, and the score is NaN, as it is where nothing moves on the map. One number for the map.

    A map that draws short moves shorter than they are scores no more than one that draws them as they are;
    `movement_correlation` and `explained_stress` tell these apart.

    Attributes:
        share: of all moves, how many count as standing still.

    Raises:
        Unsuitable: for what is no projection, or one that does not move.
        InputError: when the states do not fit the map.
    """

    share: Annotated[float, Gt(0), Le(0.5)] = 0.1

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares moves; the model is not needed."""
        moving(self, explanation)
        one, other = (moves(points).flatten() for points in frames_of(sample, explanation))
        still = one.argsort(stable=True)[: max(1, math.floor(self.share * len(one)))]
        states, drawn = (
            1 - float(lengths[still].mean()) / max(float(lengths.mean()), 1e-300) for lengths in (one, other)
        )
        value = min(1.0, drawn / states) if states > 1e-9 and float(other.mean()) > 0 else math.nan
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=value, better="higher"
        )


@dataclass(frozen=True, eq=False)
class ExplainedStress(Evaluator):
    """How much of all distances between states, at all times, the map explains.

    1 - |D - s D'| / |D| over all pairs of points at all times, with D' the map's distances and s the scale that fits
    best: 1 for a map that keeps every distance. One number for the map.

    Raises:
        Unsuitable: for what is no projection.
        InputError: when the states do not fit the map.
    """

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares distances; the model is not needed."""
        states, places = (points.flatten(0, 1) for points in frames_of(sample, explanation))
        chosen = torch.linspace(0, len(states) - 1, min(len(states), MOST_POINTS)).round().long()
        true, drawn = torch.pdist(states[chosen]), torch.pdist(places[chosen])
        fit = float((true * drawn).sum()) / max(float(drawn.square().sum()), 1e-300)
        size = float(true.norm())
        value = 1 - float((true - fit * drawn).norm()) / size if size > 0 else math.nan
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=value, better="higher"
        )


def moves(points: Tensor) -> Tensor:
    """(T - 1, n) how far each point (T, n, d) moves at each step."""
    lengths: Tensor = points.diff(dim=0).norm(dim=-1)
    return lengths


def spearman(one: Tensor, other: Tensor) -> float:
    """The correlation of two lists' ranks; NaN where one has no spread."""
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(values.numpy())) for values in (one, other)]
    first, second = (rank - rank.mean() for rank in ranks)
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size > 0 else math.nan
