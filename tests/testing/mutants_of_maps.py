"""Projectors with one seeded bug each, and an evaluator of maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from pellucid import Projection

from .correct import Axes, KeepsDistances, Plane, caught_by

STILL = "draws what stands still as standing still"
APART = "keeps drifting clusters apart at every time"
STEADY = "draws a steady drift as one that leads on and on"


@caught_by("places every point")
@dataclass(frozen=True, eq=False)
class LosesAPoint(Axes):
    """The last point is lost."""

    def placed(self, places):
        return places[:-1]


@caught_by("does not care for the order of the points")
@dataclass(frozen=True, eq=False)
class OrderMatters(Axes):
    """Points drift with their index."""

    def placed(self, places):
        return places + torch.arange(len(places))[:, None].to(places) * 1e-3


@caught_by("places duplicates together")
@dataclass(frozen=True, eq=False)
class DuplicatesApart(Axes):
    """The last point is thrown far away."""

    def placed(self, places):
        return torch.cat([places[:-1], places[-1:] + 5.0])


@caught_by("keeps planted clusters apart")
@dataclass(frozen=True, eq=False)
class Mixed(Axes):
    """Points in another order than they came."""

    def placed(self, places):
        return places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))]


@caught_by("refuses states that are not finite, and what is no list of points")
@dataclass(frozen=True, eq=False)
class TakesAnything(Axes):
    """Zero in place of what is not a number."""

    def checked(self, states):
        return states.nan_to_num()


@caught_by("leaves the states and the random states as they were")
@dataclass(frozen=True, eq=False)
class CentresInPlace(Axes):
    """Centres the user's states."""

    def checked(self, states):
        return super().checked(states).sub_(0.0)


@caught_by("keeps planted clusters apart")
@dataclass(frozen=True, eq=False)
class OnePlace(Axes):
    """All points at one place."""

    def placed(self, places):
        return torch.zeros_like(places)


@caught_by("keeps planted clusters apart")
@dataclass(frozen=True, eq=False)
class InOrderOfPlace(Axes):
    """Points from left to right in place of the caller's order."""

    def placed(self, places):
        return places[places[:, 0].argsort()] if places.dim() == 2 else places


@caught_by("places the same states the same way under the same seed")
@dataclass(frozen=True, eq=False)
class Jitters(Axes):
    """A little noise of the global random state."""

    def placed(self, places):
        return places + 1e-9 * torch.rand(places.shape)


@caught_by("places states otherwise under another seed")
@dataclass(frozen=True, eq=False)
class SeedIgnored(Axes):
    """Says that it draws random numbers, which the seed does not reach."""

    record: ClassVar[Any] = {"tags": {"linear", "stochastic"}, "explains": "data"}

    def placed(self, places):
        return places * (1 + torch.rand((), generator=torch.Generator().manual_seed(0)).to(places))


@caught_by("places states the same way under any seed")
@dataclass(frozen=True, eq=False)
class SeedUsed(Axes):
    """Turns the map by the seed without saying so."""

    def project(self, states, *, seed=0):
        found = super().project(states, seed=seed)
        return replace(found, values=found.values * (1 + seed % 7))


@caught_by("places states of single precision as those of double precision")
@dataclass(frozen=True, eq=False)
class HalfPrecision(Axes):
    """Half precision on the way, where states are single."""

    def checked(self, states):
        states = super().checked(states)
        return states.bfloat16().to(states.dtype) if states.dtype == torch.float32 else states


@caught_by("takes features that are constant, and states that are all the same or says that they are")
@dataclass(frozen=True, eq=False)
class Standardises(Axes):
    """Divides every feature by its standard deviation."""

    def checked(self, states):
        states = super().checked(states)
        return states / states.flatten(0, -2).std(dim=0)


@caught_by("places few points, or says that they are too few")
@dataclass(frozen=True, eq=False)
class TenNeighbours(Axes):
    """Pulls each point to its ten neighbours, of which there may be fewer."""

    def placed(self, places):
        flat = places.flatten(0, -2)
        near = torch.cdist(flat, flat).topk(10, dim=1, largest=False).indices
        return (0.9 * flat + 0.1 * flat[near].mean(dim=1)).view_as(places)


@caught_by("places the states that it was fitted to where its map has them")
@dataclass(frozen=True, eq=False)
class TransformsOtherwise(Axes):
    """Forgets the mean when states are placed later."""

    def project(self, states, *, seed=0):
        states = self.checked(states)
        plane = super().fit(states)
        return Projection(plane.transform(states))

    def fit(self, states):
        plane = super().fit(states)
        return Plane(plane.mean * 0 + 1, plane.vectors)


# --- points through time -------------------------------------------------------------------------------------------


@caught_by("places every point at every time, also at a single one")
@dataclass(frozen=True, eq=False)
class LosesATime(Axes):
    """Takes a single time for points without time."""

    def placed(self, places):
        return places[0] if places.dim() == 3 and len(places) == 1 else places


@caught_by(STILL)
@dataclass(frozen=True, eq=False)
class EachTimeAlone(Axes):
    """A map for each time, which no one brings into line with the others."""

    def project(self, states, *, seed=0):
        if states.dim() == 2:
            return super().project(states, seed=seed)
        return Projection(torch.stack([super(EachTimeAlone, self).project(one).values for one in self.checked(states)]))


@caught_by(STILL)
@dataclass(frozen=True, eq=False)
class Trembles(Axes):
    """Everything moves a little at every time."""

    def placed(self, places):
        return places + 1e-3 * torch.rand(places.shape, generator=torch.Generator().manual_seed(0)).to(places)


@caught_by(STILL)
@dataclass(frozen=True, eq=False)
class Drifts(Axes):
    """The whole map moves on with time."""

    def placed(self, places):
        return places + torch.arange(len(places))[:, None, None] if places.dim() == 3 else places


@caught_by(APART)
@dataclass(frozen=True, eq=False)
class MixedAtEachTime(Axes):
    """Points in another order at each time."""

    def placed(self, places):
        if places.dim() == 2:
            return places
        generator = torch.Generator().manual_seed(0)
        return torch.stack([one[torch.randperm(len(one), generator=generator)] for one in places])


@caught_by(STEADY)
@dataclass(frozen=True, eq=False)
class TimesMixed(Axes):
    """Times in another order."""

    def placed(self, places):
        return places[torch.arange(len(places)).argsort(descending=True).roll(2)] if places.dim() == 3 else places


@caught_by(STEADY)
@dataclass(frozen=True, eq=False)
class Jumps(Axes):
    """Mirrors every second time, as maps of single times do whose axes have no sign of their own."""

    def placed(self, places):
        if places.dim() == 2:
            return places
        return places * torch.where(torch.arange(len(places)) % 2 == 0, 1.0, -1.0).to(places)[:, None, None]


@caught_by(STEADY)
@dataclass(frozen=True, eq=False)
class Stands(Axes):
    """The first time at all times."""

    def placed(self, places):
        return places[:1].expand_as(places).clone() if places.dim() == 3 else places


@caught_by("does not care for the order of the times")
@dataclass(frozen=True, eq=False)
class FirstTimeOnly(Axes):
    """Axes of the first time, on which the others are placed."""

    def fit(self, states):
        return super().fit(states[0] if states.dim() == 3 else states)


@caught_by("refuses a state that is not finite at some time, or shows it as such")
@dataclass(frozen=True, eq=False)
class ZeroForNaN(Axes):
    """Zero in place of what is not a number, where points move."""

    def checked(self, states):
        return super().checked(states.nan_to_num() if states.dim() == 3 else states)


@caught_by("refuses a state that is not finite at some time, or shows it as such")
@dataclass(frozen=True, eq=False)
class AllLost(Axes):
    """One state that is not a number loses all."""

    def checked(self, states):
        return states

    def fit(self, states):
        found = super().fit(states.nan_to_num())
        return Plane(found.mean + 0 * states.double().sum(), found.vectors)


@caught_by("prefers a faithful map to those of points and times mixed up")
@dataclass(frozen=True, eq=False)
class PraisesLoss(KeepsDistances):
    """Calls its good scores bad."""

    better: ClassVar[str] = "lower"
