"""Segments: the rows of one pass that belong to one sample, and what the pass gave for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pellucid.engine.watch import Place
from pellucid.protocol.target import Target

INPUT = "input"


@dataclass(frozen=True, eq=False)
class Scored:
    """One target of a pass, and what its score is differentiated by.

    Attributes:
        target: the target.
        layers: the places of the target's own layers, by name.
        by: what the gradient is wanted by: places, and "input".
    """

    target: Target
    layers: Mapping[str, Place]
    by: tuple[Place | str, ...]


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
    """

    inputs: Any
    extras: dict[str, Tensor]
    examples: Tensor
    targets: tuple[Scored, ...]
    base: tuple[Tensor | str | None, ...]
    draws: Tensor

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
        gradients: for each target, by place or "input".
        backwards: how many backward passes it took.
    """

    raw: Any
    logits: Tensor | None
    scores: list[Tensor]
    activations: dict[Place, Tensor]
    gradients: list[dict[Place | str, Any]]
    backwards: int
