"""Drives: techniques at work, what they cost, and what came of them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from pellucid.protocol.look import Look, Seen


@dataclass
class Cost:
    """What passes took, in rows (one example through the model once) and seconds."""

    forward: int = 0
    backward: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """What both took."""
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.calls + other.calls,
            self.seconds + other.seconds,
        )


@dataclass(eq=False)
class Drive:
    """One technique at work.

    Attributes:
        generator: its passes.
        uses: what it declared to ask, or None where nothing is known of it.
        cost: what its looks would cost alone, and its share of the seconds.
    """

    generator: Generator[Look, Seen, Any]
    uses: frozenset[str] | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(eq=False)
class Outcome:
    """What a plan's run gave.

    Attributes:
        results: what each technique returned, by name.
        errors: the exceptions of those that failed.
        total: what the passes cost together; less than the sum of the techniques' costs where they shared.
    """

    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    total: Cost = field(default_factory=Cost)
