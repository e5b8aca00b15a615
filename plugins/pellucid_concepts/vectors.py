"""Concept activation vectors and their statistics, from inner products of activations alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from pellucid import ParameterError

Classifier = Literal["logistic", "ridge"]

STEPS = 100
"""The most Newton steps of a logistic regression; five to ten are usual."""
HELD_OUT = 3
"""One of so many examples is held out to measure a vector's accuracy."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Linear classifiers between two sets, as weights of the centred examples that each was fitted to.

    Attributes:
        weights: (R, n) the direction of each as a sum of its n examples, scaled to unit length.
        scores: (R, m) the classifiers' decision values at all m examples of the sets, above zero for the first.
    """

    weights: Tensor
    scores: Tensor


def fitted(gram: Tensor, labels: Tensor, train: Tensor, penalty: float, classifier: Classifier) -> Fit:
    """Fits linear classifiers by Newton steps on inner products, all at once.

    Each minimises the mean loss, both sets weighing the same, plus `penalty` / 2 times the squared length of its
    direction, with an intercept that is free; the loss is the logistic one, or half the squared distance to 1 and -1.
    The activations are scaled so that their mean squared distance from the mean is one, which frees `penalty` of their
    unit.

    Args:
        gram: (R, m, m) inner products of the m examples of each pair of sets.
        labels: (m,) 1 for the first set, -1 for the second.
        train: (n,) the examples that are fitted to.
        penalty: how much length costs.
        classifier: the loss.

    Raises:
        ParameterError: when Newton's method does not settle.
    """
    sign = labels[train].to(gram)
    share = torch.where(sign > 0, 0.5 / (sign > 0).sum(), 0.5 / (sign < 0).sum())  # both sets weigh the same
    # Everything is seen from the mean of what is fitted to: rows and columns alike.
    inside = gram[:, train][:, :, train]
    middle = gram[:, :, train].mean(dim=2)
    level = middle[:, train].mean(dim=1)
    inside = inside - middle[:, train, None] - middle[:, None, train] + level[:, None, None]
    across = gram[:, :, train] - middle[:, :, None] - middle[:, None, train] + level[:, None, None]
    scale = inside.diagonal(dim1=1, dim2=2).mean(dim=1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None, None]
    inside, across = inside / scale, across / scale

    alpha, intercept = torch.zeros_like(inside[:, 0]), torch.zeros_like(inside[:, 0, :1])
    for _ in range(STEPS if classifier == "logistic" else 1):
        values = (inside @ alpha[:, :, None]).squeeze(2) + intercept
        pull, curve = _slopes(values, sign, share, classifier)
        # (K + penalty / W) alpha + intercept = values + pull / W, and alpha sums to zero; made symmetric, so that it is
        # safe as W goes to zero.
        root = curve.sqrt()
        system = root[:, :, None] * inside * root[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(penalty)
        right = torch.stack([root * values + pull / root.clamp_min(1e-150), root], dim=2)
        solved = root[:, :, None] * torch.linalg.solve(system, right)
        step = solved.sum(dim=1)
        new_intercept = step[:, :1] / step[:, 1:]
        new = solved[:, :, 0] - new_intercept * solved[:, :, 1]
        settled = bool(((new - alpha).abs().amax(dim=1) <= 1e-9 * new.abs().amax(dim=1)).all())
        alpha, intercept = new, new_intercept
        if settled:
            break
    else:
        if classifier == "logistic":
            raise ParameterError(f"the logistic regression did not settle in {STEPS} steps; give a larger penalty")
    weights = alpha - alpha.mean(dim=1, keepdim=True)
    length = (weights[:, None] @ inside @ weights[:, :, None]).squeeze(2).clamp_min(0).sqrt()
    # A classifier between equal sets has no direction: it stays zero.
    unit = torch.where(length > 1e-12, weights / (length * scale[:, :, 0].sqrt()), torch.zeros_like(weights))
    return Fit(unit, (across @ alpha[:, :, None]).squeeze(2) + intercept)


def _slopes(values: Tensor, sign: Tensor, share: Tensor, classifier: Classifier) -> tuple[Tensor, Tensor]:
    """The loss's negative slope and its curvature at decision values (R, n), each example weighing its share."""
    if classifier == "ridge":
        return share * (sign - values), share.expand_as(values)
    wrong = torch.sigmoid(-sign * values)
    return share * sign * wrong, share * wrong * torch.sigmoid(sign * values)


@dataclass(eq=False)
class Activations:
    """What concepts are scored on at one layer: activations of sets of examples, and the classes' gradients.

    Attributes:
        sets: (n, d) the activations of each concept's examples.
        random: (m, d) the activations of each random set's examples.
        slopes: (B, d) the target's gradients at the explained examples.
        penalty: of the classifiers.
        classifier: their kind.
    """

    sets: Sequence[Tensor]
    random: Sequence[Tensor]
    slopes: Tensor
    penalty: float
    classifier: Classifier
    _nulls: dict[int, Runs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = [*self.sets, *self.random]
        features = torch.cat(groups)
        # Directions do not depend on the origin; near it the inner products lose the fewest digits.
        features -= features.mean(dim=0)
        ends = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).tolist()
        self._features = features
        self._places = [torch.arange(start, stop) for start, stop in pairwise(ends)]
        self._gram = (features @ features.T).double().cpu()
        self._along = (self.slopes @ features.T).double().cpu()
        self._steep = self.slopes.double().norm(dim=1).cpu()

    def concept(self, index: int) -> tuple[Runs, Runs]:
        """The runs of a concept against every random set, and those of every random set against the others.

        Where the concept has fewer examples than the random sets, as many of these are taken: smaller sets make
        vectors that vary more, and the two would not be alike under the null hypothesis.
        """
        places = self._places[index]
        size = min(len(places), *(len(group) for group in self.random))
        others = [group[:size] for group in self._places[len(self.sets) :]]
        return self._run([places] * len(others), others, held_out=True), self.null(size)

    def null(self, size: int) -> Runs:
        """The runs of every random set against every other, each cut to a size: (N, N - 1) of them."""
        if size not in self._nulls:
            groups = [group[:size] for group in self._places[len(self.sets) :]]
            n = len(groups)
            first, second = torch.triu_indices(n, n, 1)
            half = self._run([groups[i] for i in first], [groups[j] for j in second])
            # The classifier of b against a is that of a against b turned round.
            table, reach = half.weights.new_zeros(n, n, half.weights.shape[1]), half.reach.new_zeros(n, n)
            table[first, second], table[second, first] = half.weights, -half.weights
            reach[first, second] = reach[second, first] = half.reach
            off = ~torch.eye(n, dtype=torch.bool)
            weights, reach = table[off].reshape(n, n - 1, -1), reach[off].reshape(n, n - 1)
            self._nulls[size] = Runs(weights, reach, self._along, self._steep)
        return self._nulls[size]

    def direction(self, given: Tensor) -> tuple[Tensor, Runs]:
        """The cosines (1, B) of a given direction, and the runs of the random sets."""
        along = (self.slopes @ (given / given.norm()).to(self.slopes)).double().cpu()
        return _cosines(along, self._steep)[None], self.null(min(map(len, self.random)))

    def vector(self, runs: Runs) -> Tensor:
        """The mean of a concept's vectors, each as long as it reaches."""
        weights = (runs.weights * runs.reach[:, None]).mean(dim=0)
        found: Tensor = weights.to(self._features) @ self._features
        return found

    def _run(self, first: list[Tensor], second: list[Tensor], held_out: bool = False) -> Runs:
        """Classifiers between pairs of sets, as weights of all examples; sets of a place in the pairs are as long."""
        pairs = torch.stack([torch.cat(pair) for pair in zip(first, second, strict=True)])
        gram = self._gram[pairs[:, :, None], pairs[:, None, :]]
        labels = torch.cat([torch.ones(len(first[0])), -torch.ones(len(second[0]))])
        every = torch.arange(len(labels))
        weights = fitted(gram, labels, every, self.penalty, self.classifier).weights
        spread = weights.new_zeros(len(pairs), len(self._gram)).scatter_(1, pairs, weights)
        accuracy = math.nan
        if held_out:
            held = torch.cat([torch.arange(len(group)) for group in (first[0], second[0])]) % HELD_OUT == HELD_OUT - 1
            scores = fitted(gram, labels, every[~held], self.penalty, self.classifier).scores
            right = (scores * labels > 0).double()
            accuracy = sum(float(right[:, held & (labels == side)].mean()) for side in (1, -1)) / 2
        side = torch.where(labels > 0, 1 / len(first[0]), -1 / len(second[0])).to(gram)
        reach = ((gram @ side) * weights).sum(dim=1)
        return Runs(spread, reach, self._along, self._steep, accuracy)


@dataclass(frozen=True, eq=False)
class Runs:
    """Vectors of a concept, one for each random set that it was held against.

    Attributes:
        weights: (..., M) the vectors, of length one, as weights of all M examples.
        reach: (...) how far the concept's mean lies from the random set's along the vector.
        along: (B, M) the gradients' inner products with the examples' activations.
        steep: (B,) the gradients' lengths.
        accuracy: the share of held-out examples on the right side, the mean over both sets and all runs.
    """

    weights: Tensor
    reach: Tensor
    along: Tensor
    steep: Tensor
    accuracy: float = math.nan

    @property
    def cosines(self) -> Tensor:
        """(..., B) the directional derivatives along unit vectors, as shares of the gradients' lengths."""
        return _cosines(self.weights @ self.along.T, self.steep)

    @property
    def effects(self) -> Tensor:
        """(..., B) the cosines, each times how far its vector reaches."""
        return self.cosines * self.reach[..., None]


def _cosines(along: Tensor, steep: Tensor) -> Tensor:
    cosines = torch.where(steep > 0, along / steep.clamp_min(1e-300), 0.0)
    found: Tensor = torch.where(cosines.abs() > 1e-12, cosines, 0.0)  # what is no more than rounding has no sign
    return found


def p_value(found: float, null: Tensor) -> float:
    """How often a random set would be as far from the random sets as a concept is, if both were of one kind.

    Student's t for one more draw: the concept's mean over N random sets against the N means (N,) that these have over
    each other. Such a mean lacks the run against the set itself, which would be zero, so that the N means spread
    N / (N - 1) times as much as what they are held against.
    """
    from scipy.special import stdtr

    n = len(null)
    error = float(null.std(correction=1)) * (n - 1) / n * math.sqrt(1 + 1 / n)
    gap = abs(found - float(null.mean()))
    if error <= 1e-12:
        return 1.0 if gap <= 1e-12 else 0.0
    return float(2 * stdtr(n - 1, -gap / error))
