"""Syntheses: inputs that were made, such as what excites a unit most, with the objective's course."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.base import ENTRY_PER_EXAMPLE, Explanation, per_example

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Synthesis(Explanation):
    """Made inputs: by optimisation, inversion or attack.

    Attributes:
        values: (B, C, H, W), or any shape of the model's inputs, normalised as these are.
        trace: (B, steps) the objective at each step, or None.
        names: what each one is of, such as a unit; or None.
        objective: what was optimised, in words, for the axis of the plot.
        compare: whether the inputs that it started from are drawn beside it, as for an adversarial example.
    """

    values: Tensor = field(metadata=per_example())
    trace: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    names: tuple[str, ...] | None = field(default=None, kw_only=True, metadata=ENTRY_PER_EXAMPLE)
    objective: str = field(default="objective", kw_only=True)
    compare: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trace is not None and self.trace.dim() != 2:
            raise InputError(f"the objective's trace has shape {tuple(self.trace.shape)}; expected (B, steps)")

    def row_names(self) -> tuple[str, ...]:
        """What each one is of: its given name, or its target class."""
        return self.names or self.class_names()

    def plot(self, examples: Iterable[int] | None = None) -> Figure:
        """Draws the made pictures with the course of the objective below, and returns a matplotlib figure.

        Args:
            examples: which; None is the first eight.
        """
        from pellucid.results import galleries

        return galleries.synthesis(self, examples)
