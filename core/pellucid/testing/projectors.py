"""Checks of projectors: maps of points."""

from __future__ import annotations

import contextlib
import inspect
import random

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import InputError, ParameterError
from pellucid.results import Projection
from pellucid.testing.case import Case, require_same
from pellucid.testing.laws import FITTED, IN_EARNEST, LINEAR, STEADY, STOCHASTIC, Group, require

projector_check = Group("Maps of points", frozenset({"projector"}))

CLUSTERS, MEMBERS, DIMENSIONS = 3, 20, 8
NEAR = 0.1
"""Of the map's radius: how far half of the states may be from their places when they are placed once more."""


def states(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """Three clusters of twenty points, a duplicate of the first, and a constant feature."""
    generator = case.generator("states")
    centres = 12 * torch.linalg.qr(torch.randn(DIMENSIONS, CLUSTERS, generator=generator, dtype=torch.float64))[0].T
    points = centres.repeat_interleave(MEMBERS, dim=0)
    points = points + torch.randn(points.shape, generator=generator, dtype=torch.float64)
    points = torch.cat([points, points[:1]])
    points = torch.cat([points, torch.full((len(points), 1), 7.0, dtype=torch.float64)], dim=1)
    return (unit(case) * points).to(dtype)


def unit(case: Case) -> float:
    """What one of the states' numbers is worth: where they are logits, some of 40 would leave nothing of the others."""
    return 0.15 if "function_space" in case.subject.tags else 1.0


@projector_check("places every point")
def shape(case: Case) -> None:
    """A `Projection` (n, d) with finite values."""
    points = states(case)
    result = case.projection(points)
    require(isinstance(result, Projection), f"it returns {type(result).__name__}; expected a Projection")
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
    gap, width = float((values[0] - values[-1]).norm()), radius(values)
    require(gap <= 0.01 * width, f"a duplicate lies {gap:.2g} away, on a map of radius {width:.2g}")


@projector_check("keeps planted clusters apart", IN_EARNEST)
def clusters(case: Case) -> None:
    """A point's nearest neighbour on the map is of its own cluster, for 95 of 100 points, in any order."""
    points = states(case)[:-1]
    order = torch.randperm(len(points), generator=case.generator("shuffled"))
    require_apart(case.projection(points[order]).values, torch.arange(CLUSTERS).repeat_interleave(MEMBERS)[order])


def require_apart(places: Tensor, labels: Tensor, when: str = "") -> None:
    """Fails unless 95 of 100 points (n, d) have their nearest neighbour in their own cluster, and are not all one."""
    distances = torch.cdist(places.double(), places.double()).fill_diagonal_(float("inf"))
    kept = float((labels[distances.argmin(dim=1)] == labels).double().mean())
    require(
        kept >= 0.95,
        f"{when}the nearest neighbour is of the same cluster for {kept:.0%} of the points; expected 95 %, with the "
        "places in the order of the states",
    )


def radius(places: Tensor) -> float:
    """How far the outermost of places (..., d) lies from their mean."""
    flat = places.flatten(0, -2)
    return float((flat - flat.mean(dim=0)).norm(dim=1).max())


@projector_check("places states of single precision as those of double precision", LINEAR)
def precision(case: Case) -> None:
    """To a thousandth of the greatest value."""
    single = case.projection(states(case, torch.float32))
    require_same(single, case.projection(states(case)), "single and double precision", 1e-3)


@projector_check("takes features that are constant, and states that are all the same or says that they are")
def constant(case: Case) -> None:
    """Constants of any size leave the clusters apart; of states without any difference there is no map."""
    points = states(case)[:-1]
    generator = case.generator("constants")
    constants = unit(case) * torch.tensor([0.0, -1.0, 40.0], dtype=torch.float64).expand(len(points), -1)
    order = torch.randperm(points.shape[1] + 3, generator=generator)
    values = case.projection(torch.cat([points, constants], dim=1)[:, order]).values
    require(bool(torch.isfinite(values).all()), "constant features gave places that are not finite")
    if IN_EARNEST.holds(case.subject):
        require_apart(values, torch.arange(CLUSTERS).repeat_interleave(MEMBERS), "with constant features ")
    with contextlib.suppress(InputError):
        values = case.projection(points[:1].repeat(len(points), 1)).values
        require(
            bool(torch.isfinite(values).all()) and radius(values) <= 1e-6 * max(1.0, float(values.abs().max())),
            "states that are all the same were placed apart, or nowhere; expected one place, or an InputError",
        )


@projector_check("places few points, or says that they are too few")
def few(case: Case) -> None:
    """From two points on, whatever number of neighbours it looks for."""
    for count in (2, 3, 6):
        points = states(case)[::10][:count]
        try:
            values = case.projection(points).values
        except (InputError, ParameterError) as error:
            require(len(str(error)) > 20, f"{count} points: the message '{error}' does not say what was expected")
            continue
        require(
            len(values) == count and bool(torch.isfinite(values).all()),
            f"{count} points became places {tuple(values.shape)}, or some that are not finite",
        )


@projector_check("places the states that it was fitted to where its map has them", FITTED)
def transformed(case: Case) -> None:
    """`fit(states).transform(states)` is the map of `project(states)`; near it, where the method only estimates it."""
    points = states(case)
    seeded = "seed" in inspect.signature(case.technique.fit).parameters
    fitted = case.technique.fit(points, **({"seed": case.seed} if seeded else {}))
    again, values = fitted.transform(points), case.projection(points).values
    if LINEAR.holds(case.subject):
        require_same([again], [values], "the states that it was fitted to", 1e-6)
    require(again.shape == values.shape, f"transform gives {tuple(again.shape)}; the map is {tuple(values.shape)}")
    gap, size = float((again - values).norm(dim=1).median()), radius(values)
    require(
        gap <= NEAR * size,
        f"half of the states that it was fitted to are placed {gap:.2g} and more from their places on the map, whose "
        f"radius is {size:.2g}; expected {NEAR:.0%} of it at most",
    )


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
