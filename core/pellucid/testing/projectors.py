"""Checks of projectors: maps of points."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results import Projection
from pellucid.testing.case import Case, require_same
from pellucid.testing.laws import LINEAR, STEADY, STOCHASTIC, Group, require

projector_check = Group("Maps of points", frozenset({"projector"}))

CLUSTERS, MEMBERS, DIMENSIONS = 3, 20, 8


def states(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """Three clusters of twenty points, a duplicate of the first, and a constant feature."""
    generator = case.generator("states")
    centres = 12 * torch.linalg.qr(torch.randn(DIMENSIONS, CLUSTERS, generator=generator, dtype=torch.float64))[0].T
    points = centres.repeat_interleave(MEMBERS, dim=0)
    points = points + torch.randn(points.shape, generator=generator, dtype=torch.float64)
    points = torch.cat([points, points[:1]])
    return torch.cat([points, torch.full((len(points), 1), 7.0, dtype=torch.float64)], dim=1).to(dtype)


@projector_check("places every point")
def shape(case: Case) -> None:
    """A `Projection` (n, d) with finite values."""
    points = states(case)
    result = case.projection(points)
    require(isinstance(result, Projection), f"it returns a {type(result).__name__}; expected a Projection")
    require(len(result.values) == len(points), f"{len(points)} points became {tuple(result.values.shape)}")
    require(bool(torch.isfinite(result.values).all()), "some places are not finite")


@projector_check("places the same states the same way under the same seed")
def same_seed(case: Case) -> None:
    """With the same bits, whatever the global random states."""
    first = case.projection(states(case))
    torch.manual_seed(1234)
    np.random.seed(1234)
    require_same(case.projection(states(case)), first, "the same seed a second time", tolerance=0)


@projector_check("places states otherwise under another seed", STOCHASTIC)
def other_seed(case: Case) -> None:
    """Or the seed does not reach its random numbers."""
    gap = (case.projection(states(case), seed=case.seed + 1).values - case.projection(states(case)).values).abs().max()
    require(float(gap) > 0, "another seed gave the same map, although it is tagged 'stochastic'")


@projector_check("places states the same way under any seed", STEADY)
def any_seed(case: Case) -> None:
    """What draws random numbers is tagged 'stochastic'."""
    require_same(
        case.projection(states(case), seed=case.seed + 1), case.projection(states(case)), "another seed", tolerance=0
    )


@projector_check("leaves the states and the random states as they were")
def untouched(case: Case) -> None:
    """Values, versions, and the states of torch, numpy and Python."""
    points = states(case)
    copy, version = points.clone(), points._version
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    case.projection(points)
    require(torch.equal(points, copy) and points._version == version, "the states were changed in place")
    require(torch.equal(torch.get_rng_state(), before[0]), "torch's random state moved")
    require(str(np.random.get_state()) == before[1], "numpy's random state moved")
    require(random.getstate() == before[2], "Python's random state moved")


@projector_check("does not care for the order of the points", LINEAR)
def permutation(case: Case) -> None:
    """Permuted points, permuted places."""
    points = states(case)
    order = torch.randperm(len(points), generator=case.generator("order"))
    expected = [case.projection(points).values[order]]
    require_same(case.projection(points[order]), expected, "the points in another order", 1e-6)


@projector_check("places duplicates together")
def duplicates(case: Case) -> None:
    """To a hundredth of the map's width."""
    values = case.projection(states(case)).values
    gap, width = float((values[0] - values[-1]).norm()), float((values - values.mean(dim=0)).norm(dim=1).max())
    require(gap <= 0.01 * width, f"a duplicate lies {gap:.2g} away, on a map of radius {width:.2g}")


@projector_check("keeps planted clusters apart")
def clusters(case: Case) -> None:
    """A point's nearest neighbour on the map is of its own cluster, for 95 of 100 points."""
    values = case.projection(states(case)).values[:-1]
    labels = torch.arange(CLUSTERS).repeat_interleave(MEMBERS)
    distances = torch.cdist(values, values).fill_diagonal_(float("inf"))
    kept = float((labels[distances.argmin(dim=1)] == labels).double().mean())
    require(kept >= 0.95, f"the nearest neighbour is of the same cluster for {kept:.0%} of the points; expected 95 %")


@projector_check("places states of single precision as those of double precision", LINEAR)
def precision(case: Case) -> None:
    """To a thousandth of the greatest value."""
    single = case.projection(states(case, torch.float32))
    require_same(single, case.projection(states(case)), "single and double precision", 1e-3)


@projector_check("refuses states that are not finite, and what is no list of points")
def bad_states(case: Case) -> None:
    """With an `InputError`."""
    broken = states(case)
    broken[3, 2] = torch.nan
    for what, points in (("NaN", broken), ("a single number", torch.tensor(1.0)), ("no point", states(case)[:0])):
        try:
            case.projection(points)
        except InputError:
            continue
        require(False, f"{what} was taken without a word; expected InputError")
