"""Checks of projectors: maps of points that move through time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results import Projection
from pellucid.testing.case import Case, require_same
from pellucid.testing.laws import IN_EARNEST, LINEAR, OF_MAPS, TIMELESS, Group, require
from pellucid.testing.models import SmallTable
from pellucid.testing.planted import require_preferred
from pellucid.testing.projectors import radius, require_apart, unit

trajectory_check = Group("Maps through time", frozenset({"projector"}))

CLUSTERS, MEMBERS, DIMENSIONS, TIMES = 3, 10, 8, 6
PAUSE = 2
"""The time after which nothing moves until the next."""
STILL = 1e-6
"""Of the map's radius: how far what stands still may be drawn to move."""
BACK = 0.1
"""Of the whole drift on the map: how far a single step may lead back."""
UNSEEN = 0.02
"""Of the map's radius: what a map that does not show the drift may move without any order."""


@dataclass(frozen=True, eq=False)
class Drift:
    """Three clusters of points: one stands still, the others drift steadily.

    Attributes:
        states: (6, 30, 8), the points in a random order; between times 2 and 3 nothing moves.
        labels: (30,) the cluster of each point: 0 stands still, the others drift.
    """

    states: Tensor
    labels: Tensor


def drift(case: Case) -> Drift:
    """Clusters far apart, of which two drift by several times their own width."""
    generator = case.generator("drift")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    directions = torch.linalg.qr(normal(DIMENSIONS, CLUSTERS))[0].T
    labels = torch.arange(CLUSTERS).repeat_interleave(MEMBERS)[torch.randperm(CLUSTERS * MEMBERS, generator=generator)]
    clock = torch.tensor([time - (time > PAUSE) for time in range(TIMES)], dtype=torch.float64)
    speeds = torch.tensor([0.0, 1.5, 1.5], dtype=torch.float64)
    # Outward, along which the clusters differ, so that a map which tells them apart shows the drift as well.
    moved = clock[:, None, None] * (speeds[:, None] * directions)[labels]
    start = 15 * directions[labels] + 0.7 * normal(len(labels), DIMENSIONS)
    return Drift(unit(case) * (start + moved), labels)


@trajectory_check("places every point at every time, also at a single one")
def shape(case: Case) -> None:
    """A `Projection` (T, n, d) of finite values for states (T, n, d)."""
    states = drift(case).states
    for given in (states, states[:1]):
        result = case.projection(given)
        require(isinstance(result, Projection), f"it returns {type(result).__name__}; expected a Projection")
        found = tuple(result.values.shape)
        require(
            result.values.dim() == 3 and found[:2] == tuple(given.shape[:2]),
            f"states {tuple(given.shape)} became places {found}; expected {(*given.shape[:2], 'd')}",
        )
        require(bool(torch.isfinite(result.values).all()), "some places are not finite")


@trajectory_check("draws what stands still as standing still")
def still(case: Case) -> None:
    """Points whose state is the same at all times, and all points while nothing moves, to a millionth of the map."""
    given = drift(case)
    values = case.projection(given.states).values
    size = radius(values)
    for what, moves in (
        ("points whose state never changes", values[:, given.labels == 0].diff(dim=0)),
        (f"points between the equal times {PAUSE} and {PAUSE + 1}", values[PAUSE + 1] - values[PAUSE]),
    ):
        furthest = float(moves.norm(dim=-1).max())
        require(
            furthest <= STILL * size,
            f"{what} move by up to {furthest:.2g} on a map of radius {size:.2g}; expected {STILL:g} of it at most. "
            "Equal states belong at equal places: fit one map of all times, each different state once",
        )


@trajectory_check("keeps drifting clusters apart at every time", IN_EARNEST)
def apart(case: Case) -> None:
    """A point's nearest neighbour of its own time is of its own cluster, for 95 of 100 points."""
    given = drift(case)
    for time, places in enumerate(case.projection(given.states).values):
        require_apart(places, given.labels, f"at time {time} ")


@trajectory_check("draws a steady drift as one that leads on and on")
def steady(case: Case) -> None:
    """The centre of a drifting cluster leaves its first place further behind with every step."""
    given = drift(case)
    _require_steady(case.projection(given.states).values, given.labels)


@trajectory_check("does not care for the order of the times", TIMELESS)
def times(case: Case) -> None:
    """Times in another order: each place goes with its state; to the same map where it is linear."""
    given = drift(case)
    order = torch.randperm(TIMES, generator=case.generator("times"))
    found = case.projection(given.states[order]).values[order.argsort()]
    if LINEAR.holds(case.subject):
        expected = [case.projection(given.states).values]
        require_same([found], expected, "the times in another order, put back in order", 1e-6)
    for time, places in enumerate(found if IN_EARNEST.holds(case.subject) else ()):
        require_apart(places, given.labels, f"with the times in another order, at time {time} ")
    _require_steady(found, given.labels)


@trajectory_check("refuses a state that is not finite at some time, or shows it as such")
def broken(case: Case) -> None:
    """With an `InputError`, or with a place that is not a number for this state alone."""
    states = drift(case).states.clone()
    states[4, 7, 1] = torch.nan
    try:
        values = case.projection(states).values
    except InputError as error:
        require(len(str(error)) > 20, f"the message '{error}' does not say what was expected")
        return
    lost = ~torch.isfinite(values).all(dim=-1)
    expected = torch.zeros_like(lost)
    expected[4, 7] = True
    require(
        torch.equal(lost, expected),
        f"a state of NaN at one time left {int(lost.sum())} places that are not finite; expected an InputError, or "
        "NaN at the place of this state and nowhere else",
    )


def _require_steady(values: Tensor, labels: Tensor) -> None:
    for cluster in range(1, CLUSTERS):
        centres = values[:, labels == cluster].mean(dim=1)
        gone = (centres - centres[0]).norm(dim=1)
        whole = float(gone.max())
        back = float(-gone.diff().min())
        require(
            whole > 0 and back <= max(BACK * whole, UNSEEN * radius(values)),
            f"a cluster that drifts steadily is drawn at the distances {[round(one, 3) for one in gone.tolist()]} from "
            f"its first place; expected them to grow, and no step to lead back by more than {BACK:.0%} of the way",
        )


@trajectory_check("prefers a faithful map to those of points and times mixed up", OF_MAPS, kinds={"evaluator"})
def evaluators(case: Case) -> None:
    """States that lie on a plane, and that plane as their map."""
    generator = case.generator("plane")
    given = drift(case)
    # Faster and slower points; half of each cluster's do not move at all.
    speeds = (torch.rand(len(given.labels), 1, generator=generator, dtype=torch.float64) - 0.5).clamp_min(0)
    plane = given.states[0, :, :2] + 4 * torch.arange(TIMES)[:, None, None] * speeds
    basis = torch.linalg.qr(torch.randn(DIMENSIONS, 2, generator=generator, dtype=torch.float64))[0]
    states = (plane @ basis.T).transpose(0, 1)
    mixed = torch.randperm(plane[..., 0].numel(), generator=generator)
    maps = {
        "good": Projection(plane, labels=given.labels),
        "a mixed one": Projection(plane.flatten(0, 1)[mixed].view_as(plane), labels=given.labels),
    }
    require_preferred(case, SmallTable().double().eval(), states, 0, maps)
