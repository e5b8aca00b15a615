"""How far a map keeps each frame's neighbourhoods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge

from pellucid import Evaluator, Sample, Scores, Unsuitable
from pellucid_evaluation.maps import frames_of, kept, name_of, order_of, rank_of, within


@dataclass(frozen=True, eq=False)
class Trustworthiness(Evaluator):
    """How far points that are near on the map are near as states.

    1 - 2 / (k (2n - 3k - 1)) sum (r - k) for each point, over its k neighbours on the map that are not among its k
    nearest as states, with r their rank there: 1 where there are none, .5 for a map at random. Mean over the frames of
    a map that moves. The mean over points is scikit-learn's.

    Venna and Kaski, "Neighborhood preservation in nonlinear projection methods", 2001.

    Attributes:
        n_neighbors: k; at most half of the points.

    Raises:
        InputError: when the states do not fit the map, or there are fewer than three points.
        Unsuitable: for what is no projection.
    """

    n_neighbors: Annotated[int, Ge(1)] = 15

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares neighbours; the model is not needed."""
        return self._scored(sample, explanation, swapped=False)

    def _scored(self, sample: Sample, explanation: Any, *, swapped: bool) -> Scores:
        scores = []
        for states, places in zip(*frames_of(sample, explanation), strict=True):
            n = len(states)
            k = within(self.n_neighbors, n)
            truth, shown = (places, states) if swapped else (states, places)
            ranks = rank_of(order_of(truth)).gather(1, order_of(shown)[:, :k])
            lost = (ranks - k).clamp_min(0).sum(dim=1).double()
            scores.append(1 - 2 * lost / (k * (2 * n - 3 * k - 1)))
        values = torch.stack(scores).mean(dim=0)
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=values, better="higher"
        )


@dataclass(frozen=True, eq=False)
class Continuity(Trustworthiness):
    """How far points that are near as states are near on the map.

    As `Trustworthiness`, with states and map exchanged: it counts what the map tore apart, not what it put together.

    Venna and Kaski, 2001.
    """

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares neighbours; the model is not needed."""
        return self._scored(sample, explanation, swapped=True)


@dataclass(frozen=True, eq=False)
class NeighbourhoodPreservation(Evaluator):
    """The share of each point's nearest neighbours that it keeps on the map, frame by frame.

    A map at random keeps k / (n - 1) of them.

    Attributes:
        n_neighbors: k; at most half of the points.

    Raises:
        As `Trustworthiness`.
    """

    n_neighbors: Annotated[int, Ge(1)] = 15

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares neighbours; the model is not needed."""
        states, places = frames_of(sample, explanation)
        k = within(self.n_neighbors, states.shape[1])
        pairs = zip(states, places, strict=True)
        values = torch.stack([kept(order_of(one), order_of(other), k) for one, other in pairs]).mean(dim=0)
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=values, better="higher"
        )


@dataclass(frozen=True, eq=False)
class BoundaryPreservation(Evaluator):
    """How far neighbourhoods are as mixed in their labels on the map as they are as states.

    A point is as near to a boundary as its neighbours have other labels than its own. The score is 1 minus the
    difference of that share of the k nearest on the map and as states: points at a boundary should be drawn at one, and
    others not. Mean over the frames. Maps without labels, `Projection.labels`, cannot be scored.

    Attributes:
        n_neighbors: k; at most half of the points.

    Raises:
        Unsuitable: for what is no projection, or one without labels.
        InputError: as `Trustworthiness`.
    """

    n_neighbors: Annotated[int, Ge(1)] = 15

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """Compares neighbours' labels; the model is not needed."""
        states, places = frames_of(sample, explanation)
        if explanation.labels is None:
            raise Unsuitable("'boundary_preservation' needs the points' labels; give Projection(labels=...)")
        labels = explanation.labels.cpu()
        k = within(self.n_neighbors, states.shape[1])

        def mixed(points: torch.Tensor) -> torch.Tensor:
            others = labels[order_of(points)[:, :k]]
            return torch.ne(others, labels.unsqueeze(1)).double().mean(dim=1)

        pairs = zip(states, places, strict=True)
        values = torch.stack([1 - (mixed(one) - mixed(other)).abs() for one, other in pairs]).mean(dim=0)
        return Scores.single(
            metric=name_of(self), explanation=explanation.meta.technique, values=values, better="higher"
        )
