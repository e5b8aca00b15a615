"""The meter: sums what each step of a rule pass takes in and hands on, for the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.rules.ledger import Entry
from pellucid.rules.step import Step, Values

REARRANGE = frozenset({"view", "permute", "transpose", "t", "clone", "squeeze", "unsqueeze", "alias", "contiguous"})
"""Operations that hand on all that they take, number by number."""


class Meter:
    """Sums what each node takes in and hands on, without waiting for the numbers.

    What is carried is summed once, when it is handed on: what a node takes in is the sum of what it was handed.
    """

    def __init__(self, values: Values, there: Values | None, begun: Mapping[int, Tensor], *, metered: bool) -> None:
        self.metered = metered
        self.values = values
        self.there = there
        self.steps: list[Step] = []
        self.sums: list[Tensor] = []
        # What arrived at a slot, and what each node took and gave, as places in `sums`.
        self.totals = {slot: self._content(slot, one) for slot, one in begun.items()} if metered else {}
        self.rows: list[tuple[list[int], list[int]]] = []

    def note(self, step: Step, arrived: Any, given: Sequence[tuple[int, Tensor]]) -> None:
        """Takes a node down."""
        self.steps.append(step)
        if not self.metered:
            return
        taken = [one for slot in step.out for one in self.totals.pop(slot, ())]
        # What arrived is handed on whole, or what is linear hands on to a value that nobody keeps.
        alone = len(given) == 1 and (
            step.site.op in REARRANGE
            or (given[0][1] is arrived if self.there is None else self.values[given[0][0]] is None)
        )
        handed = [taken] if alone else [self._content(slot, one) for slot, one in given]
        for (slot, _), one in zip(given, handed, strict=True):
            self.totals[slot] = self.totals.get(slot, []) + one
        self.rows.append((taken, [place for one in handed for place in one]))

    def _content(self, slot: int, carried: Tensor) -> list[int]:
        # A conversion to float64 would take several times as long as the sum, which is in a tree of partial sums.
        whole = content_of(carried, self.values[slot], None if self.there is None else self.there[slot])
        self.sums.append((whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole).sum())
        return [len(self.sums) - 1]

    def entries(self, name_of: Callable[[Step], str]) -> list[Entry]:
        """The rows of the ledger, with the names of the rules."""
        sums = torch.stack(self.sums).double().tolist() if self.sums else []
        rows = [(sum(sums[at] for at in taken), sum(sums[at] for at in given)) for taken, given in self.rows]
        return [
            Entry(step.site.op, step.site.kind, step.site.layer, name_of(step), a, b, abs(a - b))
            for step, (a, b) in zip(self.steps, rows or [(0.0, 0.0)] * len(self.steps), strict=True)
        ]


def content_of(carried: Tensor, value: Tensor, there: Tensor | None) -> Tensor:
    """What is conserved of what is carried: itself, or multiplier times difference from the reference."""
    if there is None:
        return carried
    # Masked scores are minus infinity in both, which is no difference.
    return carried * (value - there).masked_fill_(value == there, 0)
