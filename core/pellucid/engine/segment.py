"""Segments: the rows of one pass that belong to one sample, and what the pass gave for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pellucid.engine.factors import Parameters
from pellucid.engine.watch import Place
from pellucid.protocol.leaves import each
from pellucid.protocol.target import Target
from pellucid.rules.ledger import Ledger

INPUT = "input"

By: TypeAlias = Place | str | Parameters
"""What a score is differentiated by: a place, "input", or parameters."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One target of a pass, and what its score is differentiated by.

    Attributes:
        target: the target.
        layers: the places of the target's own layers, by name.
        by: what the gradient is wanted by.
    """

    target: Target
    layers: Mapping[str, Place]
    by: tuple[By, ...]


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows of one pass that belong to one sample, with its targets.

    Attributes:
        inputs: (rows, ...).
        extras: further model inputs, by name, (rows, ...).
        examples: (rows,) which example each row is.
        targets: the targets; all segments of a pass have equally many.
        base: for each target, the logits at its base sample, or None; "here" where these rows are that sample's.
        draws: (rows,) which draw of the derived sample each row is.
        derived: whether the rows are of a derived sample.
        reference: (rows, ...) the reference of each row, for rules that compare with one.
    """

    inputs: Any
    extras: dict[str, Tensor]
    examples: Tensor
    targets: tuple[Scored, ...]
    base: tuple[Tensor | str | None, ...]
    draws: Tensor
    derived: bool = False
    reference: Any = None

    def first(self) -> Segment:
        """The first row alone."""
        extras = {name: extra[:1] for name, extra in self.extras.items()}
        inputs = each(lambda leaf: leaf[:1], self.inputs)
        return replace(self, inputs=inputs, extras=extras, examples=self.examples[:1], draws=self.draws[:1])

    def twice(self) -> Segment:
        """Every row, and then every row again."""

        def doubled(leaf: Tensor) -> Tensor:
            return torch.cat([leaf, leaf])

        extras = {name: doubled(extra) for name, extra in self.extras.items()}
        inputs, examples, draws = each(doubled, self.inputs), doubled(self.examples), doubled(self.draws)
        return replace(self, inputs=inputs, extras=extras, examples=examples, draws=draws)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.examples)


@dataclass(frozen=True, eq=False)
class Taken:
    """What one pass gave for a segment.

    Attributes:
        raw: what the model returned for these rows.
        logits: the part of it that holds the scores, or None where it was not needed.
        scores: a tensor (rows,) for each target.
        activations: by place.
        gradients: for each target, by what they are by.
        backwards: how many backward passes it took.
        forwards: how many forward passes it took.
        ledgers: for each target, what a rule pass carried, or None.
        reference_scores: the scores at the reference, where there is one.
    """

    raw: Any
    logits: Tensor | None
    scores: list[Tensor]
    activations: dict[Place, Tensor]
    gradients: list[dict[By, Any]]
    backwards: int
    forwards: int = 1
    ledgers: Sequence[Ledger | None] = ()
    reference_scores: Sequence[Tensor] = ()


def wanted_of(segments: Sequence[Segment]) -> set[By]:
    """What gradients are wanted by."""
    return {by for segment in segments for scored in segment.targets for by in scored.by}
