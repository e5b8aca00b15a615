"""What evaluators of maps share: the states beside their places, and neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid import Evaluator, InputError, Projection, Sample, Unsuitable


def frames_of(sample: Sample, explanation: Any) -> tuple[Tensor, Tensor]:
    """States (T, n, d) and places (T, n, k) in double precision; T is 1 where nothing moves.

    Raises:
        Unsuitable: when the explanation is no projection, or the inputs are no one tensor.
        InputError: when the inputs are not (n, T, ...), one history for each point of a map (T, n, k), or the map has
            places that are not finite.
    """
    if not isinstance(explanation, Projection):
        raise Unsuitable(f"this metric scores maps; the explanation is a {type(explanation).__name__}")
    states = sample.inputs
    if not isinstance(states, Tensor):
        raise Unsuitable("this metric needs one tensor of states; the inputs are several")
    places = explanation.values.detach().cpu().double()
    states = states.detach().cpu().double()
    if not explanation.moves:
        places, states = (
            places.unsqueeze(0),
            states.flatten(1).unsqueeze(0) if states.dim() > 1 else states.view(1, -1, 1),
        )
    elif states.dim() < 2 or states.shape[1] != len(places):
        raise InputError(f"the states have shape {tuple(states.shape)}; expected (n, {len(places)}, ...) for this map")
    else:
        states = states.transpose(0, 1).flatten(2) if states.dim() > 2 else states.T.unsqueeze(2)
    if states.shape[1] != places.shape[1]:
        raise InputError(f"there are {states.shape[1]} points of states and {places.shape[1]} on the map")
    if not bool(places.isfinite().all()):
        raise InputError("the map has places that are not finite, as of a run that diverged; leave those times out")
    return states, places


def moving(evaluator: Evaluator, explanation: Any) -> None:
    """Refuses a map that does not move."""
    if isinstance(explanation, Projection) and len(explanation.frames) < 2:
        name = evaluator.technique.name if evaluator.technique else type(evaluator).__name__
        raise Unsuitable(f"'{name}' scores how points move; this map is of one time only")


def name_of(evaluator: Evaluator) -> str:
    """What the metric is called in scores."""
    return evaluator.technique.name if evaluator.technique else type(evaluator).__name__


def order_of(points: Tensor) -> Tensor:
    """(n, n - 1) all others, the nearest to each point (n, d) first; of equally near ones the first."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(-1.0)
    return distances.argsort(dim=1, stable=True)[:, 1:] if len(points) > 1 else distances.long()[:, 1:]


def rank_of(order: Tensor) -> Tensor:
    """(n, n) the rank of each other point, 1 for the nearest; 0 for the point itself."""
    n = len(order)
    ranks = torch.zeros(n, n, dtype=torch.long)
    return ranks.scatter_(1, order, torch.arange(1, n).expand(n, -1))


def kept(one: Tensor, other: Tensor, k: int) -> Tensor:
    """(n,) the share of the first k of one order that are among the first k of the other."""
    n = len(one)
    near = torch.zeros(n, n, dtype=torch.bool).scatter_(1, one[:, :k], True)
    return near.gather(1, other[:, :k]).double().mean(dim=1)


def within(k: int, n: int) -> int:
    """A number of neighbours, at most half of the others, beyond which nothing tells a good map.

    Raises:
        InputError: when there are fewer than three points.
    """
    if n < 3:
        raise InputError(f"{n} points have no neighbourhoods to keep; expected at least 3")
    return min(k, (n - 1) // 2)
