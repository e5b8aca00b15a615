"""Explainers by rules: a correct one, and one seeded bug in each of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import pellucid
from pellucid import Attribution, Explainer, Look, Rule, RuleSet

from .correct import GLYPH, caught_by, correct
from .mutants_behind import captured


@dataclass(frozen=True)
class Share(Rule):
    """Relevance by each input's part of the output."""

    kept: float = 1.0

    def __call__(self, node, carried):
        z = node.output
        each = torch.where(z == 0, 0.0, carried / torch.where(z == 0, 1.0, z))
        return [self.kept * x * one for x, one in zip(node.inputs, node.vjp(each), strict=True)]


@dataclass(frozen=True)
class Keep(Rule):
    """Relevance past what works number by number."""

    needs: ClassVar[str] = ""

    def __call__(self, node, carried):
        return [carried]


@dataclass(frozen=True)
class Positive(Rule):
    """What is positive of the gradient, as at a hooked module."""

    def __call__(self, node, carried):
        return [one.clamp(min=0) for one in node.vjp(carried)]


SHARES = RuleSet(
    "shares", {"weighted": Share(), "sum": Share(), "pointwise": Keep(), "max": Share()}, carries="relevance"
)


@correct
@dataclass(frozen=True, eq=False)
class ByShares(Explainer):
    """Relevance, handed back by shares."""

    axioms: ClassVar[frozenset[str]] = frozenset({"conservation"})
    record: ClassVar[Any] = {"uses": {"gradients", "rules"}}
    rules: ClassVar[RuleSet] = SHARES

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"], rules=self.rules)
        return Attribution(seen.gradients["input"])


@caught_by("conserves the score")
@dataclass(frozen=True, eq=False)
class LosesSome(ByShares):
    """A tenth of the relevance is lost at every layer with weights."""

    rules: ClassVar[RuleSet] = SHARES | {"weighted": Share(kept=0.9)}


@caught_by(GLYPH)
@dataclass(frozen=True, eq=False)
class ChangesSigns(ByShares):
    """Every relevance with the opposite sign."""

    axioms: ClassVar[frozenset[str]] = frozenset()

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"], rules=self.rules)
        return Attribution(-seen.gradients["input"])


@caught_by("asks only what its record declares")
@dataclass(frozen=True, eq=False)
class RulesUndeclared(ByShares):
    """Asks for rules without saying so."""

    record: ClassVar[Any] = {"uses": {"gradients"}}


@caught_by("does not depend on how the network is written")
@dataclass(frozen=True, eq=False)
class HooksModules(ByShares):
    """Treats the ReLUs that are modules of that name, and no others."""

    axioms: ClassVar[frozenset[str]] = frozenset()
    rules: ClassVar[RuleSet] = RuleSet("hooks", {"layer:*relu*": Positive()})


@caught_by("counts its passes truly")
@dataclass(frozen=True, eq=False)
class RunsTheGraph(ByShares):
    """Forward and back by rules once more than it says; the model, captured before, sees nothing of it."""

    adapters: ClassVar[dict[int, Any]] = {}

    def explain(self, sample):
        _, model = yield from captured(Look(at=sample, outputs=True))
        adapter = self.adapters.setdefault(id(model), pellucid.adapt(model))  # keeps the model, and its graph
        pellucid.explain(adapter, sample.inputs, ByShares(), target=0, batch_size=1, progress=False)
        return (yield from super().explain(sample))
