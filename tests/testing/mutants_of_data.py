"""Techniques that explain by training data, examples and concepts, each with one seeded bug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pellucid import Influence

from .correct import caught_by
from .correct_of_data import (
    CHANCE,
    CONCEPTS,
    COPIES,
    LABELS,
    NEAREST,
    PARTS,
    PROTOTYPES,
    UNITS,
    Directions,
    Excited,
    Nearest,
    NearestLabels,
    Parts,
    Stand,
    Steps,
    WrongLabels,
)


@caught_by(COPIES)
@dataclass(frozen=True, eq=False)
class OtherConvention(Steps):
    """Above zero what raises the loss."""

    def answer(self, values, own):
        return Influence(-values, self_influence=own)


@caught_by(COPIES)
@dataclass(frozen=True, eq=False)
class SortedByLabel(Steps):
    """Goes class by class and leaves the columns so."""

    def order(self, labels):
        return labels.argsort(stable=True)


@caught_by(COPIES)
@dataclass(frozen=True, eq=False)
class Strengths(Steps):
    """How much each example counts, without its sign."""

    def answer(self, values, own):
        return Influence(values.abs(), self_influence=own)


@caught_by(COPIES)
@dataclass(frozen=True, eq=False)
class OneFurther(Steps):
    """Every example has its neighbour's influence."""

    def answer(self, values, own):
        return Influence(values.roll(1, dims=1), self_influence=own)


@caught_by(LABELS)
@dataclass(frozen=True, eq=False)
class OwnSortedByLabel(Steps):
    """The self-influence in the order of the labels."""

    def answer(self, values, own):
        return Influence(values, self_influence=own[self.train[1].argsort(stable=True)])


@caught_by(LABELS)
@dataclass(frozen=True, eq=False)
class OwnOpposite(Steps):
    """The self-influence with the other sign."""

    def answer(self, values, own):
        return Influence(values, self_influence=-own)


@caught_by("refuses training data that do not fit the queries, or have labels that there are not")
@dataclass(frozen=True, eq=False)
class TakesAnyLabel(Steps):
    """Labels below zero count from the end."""

    def checked(self, sample):
        inputs, labels = self.train
        return inputs, labels % 4


@caught_by(NEAREST)
@dataclass(frozen=True, eq=False)
class LeavesTheQueryOut(Nearest):
    """Takes the first for the query itself, which it is only in its own data set."""

    def answer(self, distances, places, labels):
        return super().answer(distances[:, 1:], places[:, 1:], labels)


@caught_by(NEAREST)
@dataclass(frozen=True, eq=False)
class Farthest(Nearest):
    """The largest distance first."""

    def answer(self, distances, places, labels):
        return super().answer(distances.flip(1), places.flip(1), labels)


@caught_by(NEAREST)
@dataclass(frozen=True, eq=False)
class PlacesByLabel(Nearest):
    """Places in the data as sorted by label."""

    def answer(self, distances, places, labels):
        return super().answer(distances, labels.argsort(stable=True).argsort()[places], labels)


@caught_by(PROTOTYPES)
@dataclass(frozen=True, eq=False)
class Crowds(Stand):
    """Takes what is near to most, however many such prototypes there are: duplicates first of all."""

    def worth(self, kernel, chosen):
        return -torch.inf if len(set(chosen)) < len(chosen) else float(kernel[chosen].mean())


@caught_by(PROTOTYPES)
@dataclass(frozen=True, eq=False)
class CriticisesTheUsual(Stand):
    """Criticises where there are more prototypes than data."""

    def strange(self, witness):
        return super().strange(-witness)


@caught_by(PROTOTYPES)
@dataclass(frozen=True, eq=False)
class PlacesFromOne(Stand):
    """Counts the examples from one."""

    def named(self, places, count):
        return (places + 1) % count


@caught_by(UNITS)
@dataclass(frozen=True, eq=False)
class NextUnit(Excited):
    """Each unit gets the examples of the next."""

    def answer(self, values):
        return super().answer(values.roll(-1, dims=0))


@caught_by(UNITS)
@dataclass(frozen=True, eq=False)
class Unexcited(Excited):
    """The examples that excite a unit least."""

    def answer(self, values):
        return super().answer(-values)


@caught_by(CONCEPTS)
@dataclass(frozen=True, eq=False)
class PointsAway(Directions):
    """Vectors that lead away from the concept."""

    def along(self, vectors):
        return -vectors


@caught_by(CONCEPTS)
@dataclass(frozen=True, eq=False)
class ColumnsByScore(Directions):
    """The scores in their own order, under the names in theirs."""

    def answer(self, values, magnitudes, p_values):
        order = magnitudes[0].argsort(descending=True)
        return super().answer(values[:, order], magnitudes[:, order], p_values[:, order])


@caught_by(CONCEPTS)
@dataclass(frozen=True, eq=False)
class SharesAway(Directions):
    """The share of the examples whose score falls, beside a right magnitude."""

    def answer(self, values, magnitudes, p_values):
        return super().answer(1 - values, magnitudes, p_values)


@caught_by(CONCEPTS)
@dataclass(frozen=True, eq=False)
class NothingCounts(Directions):
    """Holds no concept for significant."""

    def p_values(self, effects, null):
        return torch.ones(len(effects), dtype=torch.float64)


@caught_by(CHANCE)
@dataclass(frozen=True, eq=False)
class RunsAsDraws(Directions):
    """Takes a concept's runs, which share its examples, for independent draws."""

    def p_values(self, effects, null):
        from scipy.stats import ttest_ind

        return torch.from_numpy(ttest_ind(effects.numpy(), null.numpy()[None], axis=1).pvalue)


@caught_by("explains the target that is asked")
@dataclass(frozen=True, eq=False)
class ClassesMixed(Directions):
    """Every class gets the mean over the examples of all."""

    def answer(self, values, magnitudes, p_values):
        every = [part.mean(dim=0, keepdim=True).expand_as(part).clone() for part in (values, magnitudes, p_values)]
        return super().answer(*every)


@caught_by(PARTS)
@dataclass(frozen=True, eq=False)
class WithoutTheLast(Parts):
    """Counts the segments from 0 to before the last."""

    def masks(self, labels):
        return torch.stack([labels == one for one in range(int(labels.max()))])


@caught_by(PARTS)
@dataclass(frozen=True, eq=False)
class WithoutTheFirst(Parts):
    """Takes segment 0 for the background."""

    def masks(self, labels):
        return torch.stack([labels == one for one in range(1, int(labels.max()) + 1)])


@caught_by(PARTS)
@dataclass(frozen=True, eq=False)
class OneSegmentOff(Parts):
    """Puts each segment into the cluster of the one before."""

    def clustered(self, points):
        return super().clustered(points).roll(1)


@caught_by(PARTS)
@dataclass(frozen=True, eq=False)
class PartsAway(Parts):
    """Scores that fall towards what raises the class."""

    def answer(self, values, shown):
        return super().answer(-values, shown)


@caught_by("prefers true influences to chance and to their reverse")
@dataclass(frozen=True, eq=False)
class PraisesRightLabels(WrongLabels):
    """Calls its good scores bad."""

    better: ClassVar[str] = "lower"


@caught_by("prefers prototypes of every cluster to those of one")
@dataclass(frozen=True, eq=False)
class PraisesErrors(NearestLabels):
    """Calls its good scores bad."""

    better: ClassVar[str] = "higher"


@caught_by("refuses to choose more examples than there are")
@dataclass(frozen=True, eq=False)
class TakesWhatThereIs(Nearest):
    """As many as there are, where more were asked."""

    def check(self, count):
        pass


@caught_by("refuses concepts of a few examples or of another shape")
@dataclass(frozen=True, eq=False)
class TwoWillDo(Directions):
    """Any number of examples."""

    def check(self, concepts, sample):
        pass


@caught_by("refuses segments that cover nothing or do not fit the image")
@dataclass(frozen=True, eq=False)
class AnySegments(Parts):
    """Takes what is outside of all segments for one more."""

    def masks(self, labels):
        return labels == labels.unique()[:, None, None]
