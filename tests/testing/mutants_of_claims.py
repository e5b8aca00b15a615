"""Explainers that claim too much, and evaluators with one seeded bug each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from pellucid import Attribution, Explainer, Look

from .correct import ALONE, Flipping, GradientTimesInput, caught_by


@caught_by("is linear in the score")
@dataclass(frozen=True, eq=False)
class Sizes(GradientTimesInput):
    """Sizes, with the claims of signed values."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"]).abs())


@caught_by("treats what is symmetric alike")
@dataclass(frozen=True, eq=False)
class Leaning(GradientTimesInput):
    """Counts the left more than the right."""

    def answer(self, sample, seen):
        values = sample.inputs * seen.gradients["input"]
        return Attribution(values * torch.linspace(2, 1, values.shape[-1]).to(values))


@caught_by("gives nothing to what the model ignores, and something to what changed the score")
@dataclass(frozen=True, eq=False)
class Saturating(GradientTimesInput):
    """The plain gradient, with a claim that only paths can make."""

    axioms: ClassVar[frozenset[str]] = frozenset({"sensitivity"})


@caught_by("knows nothing of the planted glyph")
@dataclass(frozen=True, eq=False)
class KnowingControl(GradientTimesInput):
    """A control that looks at the model."""

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "tags": {"control"}}


@caught_by("gives the same for every target")
@dataclass(frozen=True, eq=False)
class NotAgnostic(GradientTimesInput):
    """Tagged as the same for every target, which it is not."""

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "tags": {"class_agnostic"}}


@caught_by("answers with what its record names")
@dataclass(frozen=True, eq=False)
class AnotherAnswer(GradientTimesInput):
    """Recorded as answering with scores."""

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "output": "scores"}


@caught_by("explains rows of a table as well")
@dataclass(frozen=True, eq=False)
class OnlyImages(GradientTimesInput):
    """Tagged for tables, whose rows have another shape than it gives."""

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "tags": {"table", "image"}}

    def answer(self, sample, seen):
        values = sample.inputs * seen.gradients["input"]
        return Attribution(values if values.dim() == 4 else values[:, :-1])


@caught_by("claims only axioms and excuses only checks that there are")
@dataclass(frozen=True, eq=False)
class Misspelt(GradientTimesInput):
    """Claims an axiom that there is not."""

    axioms: ClassVar[frozenset[str]] = frozenset({"completness"})


@caught_by("is a frozen dataclass of its record's kind")
@dataclass(eq=False)
class Thawed(Explainer):
    """A dataclass that can be changed."""

    scale: float = 1.0

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"])
        return Attribution(self.scale * sample.inputs * seen.gradients["input"])


@caught_by("has a docstring whose first line stands alone")
@dataclass(frozen=True, eq=False)
class Undescribed(GradientTimesInput):
    """computes the input times the gradient, which
    is done by torch"""


# --- evaluators with one bug each -----------------------------------------------------------------------------


@caught_by("prefers the planted truth to chance and to its reverse")
@dataclass(frozen=True, eq=False)
class WrongDirection(Flipping):
    """Calls its good scores bad."""

    better: ClassVar[str] = "lower"


@caught_by("prefers the planted truth to chance and to its reverse")
@dataclass(frozen=True, eq=False)
class BlindToSigns(Flipping):
    """Cannot tell an explanation from its reverse."""

    def relevance(self, explanation):
        return explanation.values.abs()


@caught_by(ALONE)
@dataclass(frozen=True, eq=False)
class ScoresTheBatch(Flipping):
    """Every example gets the batch's mean."""

    def scored(self, explanation, values):
        return super().scored(explanation, values.mean().expand_as(values).clone())


@caught_by("names itself, and says which scores are good")
@dataclass(frozen=True, eq=False)
class Nameless(Flipping):
    """Does not say what it is."""

    def scored(self, explanation, values):
        scores = super().scored(explanation, values)
        return replace(scores, rows=(replace(scores.rows[0], metric=""),))
