"""Correct techniques, which the kit must pass, and what the mutants of them need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge

from pellucid import (
    Attribution,
    Evaluator,
    Explainer,
    InputError,
    Look,
    Mean,
    Projection,
    Projector,
    Scores,
    Technique,
    together,
)

CORRECT: dict[str, type] = {}
CAUGHT_BY: dict[type, str] = {}
USES = frozenset({"outputs", "activations", "gradients"})

GLYPH = "finds the glyph that decides, not the distractor of equal energy"
CLASS = "finds the glyph of the class that is asked, not another class's"
ALONE = "explains an example as it does in a batch"
BEHIND = "reaches nothing but through its looks: without the guard, model and process stay as they were"
TWICE = "looks at no place twice"


def recorded(cls: type, **changes: Any) -> Technique:
    """The record of a class of this module."""
    kind = next(
        kind for base, kind in ((Evaluator, "evaluator"), (Projector, "projector"), (Explainer, "explainer"))
        if issubclass(cls, base)
    )  # fmt: skip
    output = {"explainer": "attribution", "evaluator": "scores", "projector": "projection"}[kind]
    fields = {"explains": "decision", "output": output, "better": "higher" if kind == "evaluator" else ""}
    fields |= {"uses": {"outputs", "gradients"} if kind == "explainer" else (), **getattr(cls, "record", {}), **changes}
    return Technique("mutant", kind, "Does what its class says.", f"{cls.__module__}:{cls.__name__}", **fields)


def correct(cls):
    CORRECT[cls.__name__] = cls
    return cls


def caught_by(sentence):
    def mark(cls):
        CAUGHT_BY[cls] = sentence
        return cls

    return mark


@correct
@dataclass(frozen=True, eq=False)
class GradientTimesInput(Explainer):
    """The input times the gradient."""

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "symmetry", "conservation"})

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"])
        return self.answer(sample, seen)

    def answer(self, sample, seen):
        return Attribution(sample.inputs * seen.gradients["input"])


@correct
@dataclass(frozen=True, eq=False)
class Columns(Explainer):
    """Hides one column of a table at a time; it knows of no positions."""

    record: ClassVar[Any] = {"uses": {"outputs"}, "tags": {"table"}}

    def explain(self, sample):
        hidden = [sample.inputs.index_fill(1, torch.tensor([place]), 0) for place in range(sample.inputs.shape[1])]
        whole, *seen = yield from together(Look(at=sample), *(Look(at=sample.at(inputs)) for inputs in hidden))
        return Attribution(torch.stack([whole.scores - one.scores for one in seen], dim=1))


@correct
@dataclass(frozen=True, eq=False)
class Path(Explainer):
    """Integrated gradients from zero by the midpoint rule."""

    n_steps: Annotated[int, Ge(1)] = 32

    axioms: ClassVar[frozenset[str]] = frozenset({"completeness", "linearity", "symmetry", "sensitivity"})

    def places(self):
        return (torch.arange(self.n_steps, dtype=torch.float64) + 0.5) / self.n_steps

    def explain(self, sample):
        seen = yield Look(at=sample.along("zero", self.places()), gradients=["input"], fold=Mean())
        return Attribution(sample.inputs * seen.gradients["input"])


@correct
@dataclass(frozen=True, eq=False)
class Maps(Explainer):
    """Weights a layer's maps by the mean gradient."""

    layer: str = "auto"

    record: ClassVar[Any] = {"uses": USES}

    def explain(self, sample):
        seen = yield Look(at=sample, activations=[self.layer], gradients=[self.layer])
        values = (seen.map_gradients(self.layer).mean(dim=(2, 3), keepdim=True) * seen.maps(self.layer)).sum(dim=1)
        return self.answer(values)

    def answer(self, values):
        return Attribution(values, over=self.layer)


@correct
@dataclass(frozen=True, eq=False)
class Noisy(Explainer):
    """The mean gradient under noise, times the input."""

    n_samples: Annotated[int, Ge(1)] = 4

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "tags": {"stochastic"}}

    def noise(self, sample, draw, shape):
        return torch.randn(shape, generator=sample.generator("noisy", draw))

    def explain(self, sample):
        noise = [self.noise(sample, draw, sample.inputs.shape[1:]) for draw in range(self.n_samples)]
        stacked = torch.stack(noise).to(sample.inputs)

        def make(rows, draws, examples):
            return rows + 0.1 * stacked[draws]

        seen = yield Look(at=sample.derived(self.n_samples, make), gradients=["input"], fold=Mean())
        return Attribution(sample.inputs * seen.gradients["input"])


@correct
@dataclass(frozen=True, eq=False)
class Flipping(Evaluator):
    """How far the score falls when the positive half of the relevance is hidden."""

    record: ClassVar[Any] = {"uses": {"outputs"}, "tags": {"faithfulness"}, "explains": "explanation"}
    better: ClassVar[str] = "higher"

    def relevance(self, explanation):
        return explanation.values

    def evaluate(self, sample, explanation):
        relevance = self.relevance(explanation)
        least = relevance.double().flatten(1).quantile(0.9, dim=1).reshape(-1, *(1,) * (relevance.dim() - 1))
        keep = relevance <= least

        def make(rows, draws, examples):
            return rows * keep[examples]

        whole, hidden = yield from together(self.look(sample), self.look(sample.derived(1, make)))
        return self.scored(explanation, whole.scores - hidden.scores[0])

    def scored(self, explanation, values):
        return Scores.single(
            metric="flipping", values=values, better=self.better, explanation=explanation.meta.technique
        )

    def look(self, at):
        return (yield Look(at=at))


@dataclass(frozen=True, eq=False)
class Plane:
    """Two axes and where they meet."""

    mean: torch.Tensor
    vectors: torch.Tensor

    def transform(self, states):
        return ((states.double() - self.mean) @ self.vectors).to(states.dtype)


@correct
@dataclass(frozen=True, eq=False)
class Axes(Projector):
    """Places states on their first two principal axes."""

    record: ClassVar[Any] = {"tags": {"linear"}, "explains": "data"}

    def checked(self, states):
        if states.dim() not in (2, 3) or len(states) == 0 or not bool(torch.isfinite(states).all()):
            raise InputError("the states are no finite points (n, d) or (T, n, d)")
        return states

    def project(self, states, *, seed=0):
        states = self.checked(states)
        return Projection(self.placed(self.fit(states).transform(states)))

    def fit(self, states):
        points = states.double().flatten(0, -2)
        mean = points.mean(dim=0)
        vectors = torch.linalg.eigh((points - mean).T @ (points - mean)).eigenvectors[:, [-1, -2]]
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        return Plane(mean, vectors * largest.sign())

    def placed(self, places):
        return places


@correct
@dataclass(frozen=True, eq=False)
class KeepsDistances(Evaluator):
    """How far distances on the map go with those of the states."""

    record: ClassVar[Any] = {"uses": (), "tags": {"map", "across_examples"}, "explains": "projection"}
    better: ClassVar[str] = "higher"

    def evaluate(self, sample, explanation):
        states, places = sample.inputs.double().transpose(0, 1).flatten(2), explanation.values.double()
        pairs = torch.stack([torch.pdist(points.flatten(0, 1)) for points in (states, places)])
        return Scores.single(metric="distances", values=torch.corrcoef(pairs)[0, 1], better=self.better)
