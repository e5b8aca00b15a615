"""The ledger: what every node of a rule pass took in and handed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pellucid.results import Check


@dataclass(frozen=True, eq=False)
class Entry:
    """One node of a rule pass.

    Attributes:
        op: the operation.
        kind: its kind.
        layer: the module that ran it.
        rule: the rule's name, "vjp" where it had none and needed none, "" where it has none.
        taken: what its output carried, summed over everything; see `Ledger`.
        given: what its inputs got, likewise.
        lost: the absolute difference, summed over the batches.
    """

    op: str
    kind: str
    layer: str
    rule: str
    taken: float = 0.0
    given: float = 0.0
    lost: float = 0.0

    @property
    def where(self) -> str:
        """The operation and its layer, for messages."""
        return f"{self.op} of '{self.layer}'" if self.layer else self.op


@dataclass(eq=False)
class Ledger:
    """What a rule pass carried, node by node, in float64.

    Summed is what is carried itself where that is relevance, and multiplier times difference from the reference where
    it is a gradient with a reference; a gradient without one has no content, and nothing is summed.

    Attributes:
        entries: the nodes, from the output to the input.
        started: (examples,) what the scores' gradients put in, for each example; (T, examples) for several targets.
        arrived: what reached what was asked for, likewise.
        unruled: how many nodes of each operation had no rule; they went by their vector-Jacobian product.
        nodes: how many nodes were visited.
        capture_seconds: how long the model's capture and lowering took when it was captured, before this pass.
        metered: whether there is content, and it was summed.
        by_forward: the autograd functions with a backward pass of their own, written in Python, that the model runs:
            rules go through what their forward passes do.
    """

    entries: list[Entry] = field(default_factory=list, metadata={"tensors": False})
    started: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    arrived: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    capture_seconds: float = 0.0
    metered: bool = False
    by_forward: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        """How many nodes were visited."""
        return len(self.entries)

    @property
    def unruled(self) -> dict[str, int]:
        """How many nodes of each operation had no rule."""
        return dict(Counter(entry.op for entry in self.entries if not entry.rule))

    @property
    def residual(self) -> Tensor:
        """What was lost on the way, for each example: `started` less `arrived`."""
        return self.started - self.arrived

    def worst(self, n: int = 5) -> list[Entry]:
        """The nodes at which most is lost or made."""
        return sorted(self.entries, key=lambda entry: entry.lost, reverse=True)[:n]

    def check(self, name: str, tolerance: float) -> Check:
        """A certificate that nothing is lost, which names the node at which most is.

        Its value is the absolute residual as a share of what started; over several targets or draws the worst.
        """
        if not self.metered:
            return Check.info(name, note="not measured: what is carried is a gradient without a reference")
        share = self.residual.abs() / self.started.abs().clamp_min(torch.finfo(torch.float64).tiny)
        share = torch.where(self.residual == 0, 0.0, share)
        each = share.reshape(-1, share.shape[-1]).amax(dim=0) if share.numel() else share
        worst = self.worst(1)
        total = float(self.started.abs().sum()) or 1.0
        told = ""
        if worst and worst[0].lost > 0:
            told = f"most at {worst[0].where} ({worst[0].lost / total:.2g} of what started)"
        return Check.bound(name, each, tolerance, told)

    def check_ruled(self, name: str = "operations without a rule") -> Check:
        """A certificate that every operation met has a rule, which names those that have none.

        It also names the functions whose own backward pass was passed by.
        """
        unruled = self.unruled
        told = ", ".join(f"{op} x{count}" for op, count in sorted(unruled.items()))
        if self.by_forward:
            passed = f"by the forward pass alone of what has its own backward: {', '.join(self.by_forward)}"
            told = f"{told}; {passed}" if told else passed
        return Check.bound(name, sum(unruled.values()), 0, told)

    @classmethod
    def of(cls, by_target: Sequence[Ledger], *, several: bool, draws: int | None) -> Ledger:
        """The ledger of a look, of those of its targets, with the axes that its scores have."""

        def shaped(rows: Tensor) -> Tensor:
            return rows if draws is None else rows.reshape(draws, -1)

        first = by_target[0]
        if not several:
            return replace(first, started=shaped(first.started), arrived=shaped(first.arrived))
        return cls(
            [entry for ledger in by_target for entry in ledger.entries],
            torch.stack([shaped(ledger.started) for ledger in by_target]),
            torch.stack([shaped(ledger.arrived) for ledger in by_target]),
            first.capture_seconds,
            first.metered,
            first.by_forward,
        )

    @classmethod
    def joined(cls, parts: Sequence[Ledger]) -> Ledger:
        """The ledger of several batches of one look, in the order of their rows."""
        if len(parts) == 1:
            return parts[0]
        if len({tuple(entry.where for entry in part.entries) for part in parts}) == 1:
            entries = [_added(rows) for rows in zip(*(part.entries for part in parts), strict=True)]
        else:  # batches of other sizes may have been captured otherwise
            entries = [entry for part in parts for entry in part.entries]
        return cls(
            entries,
            torch.cat([part.started for part in parts], dim=-1),
            torch.cat([part.arrived for part in parts], dim=-1),
            max(part.capture_seconds for part in parts),
            parts[0].metered,
            parts[0].by_forward,
        )


def _added(rows: Sequence[Entry]) -> Entry:
    """One node's entries of several batches."""
    return replace(
        rows[0],
        taken=sum(row.taken for row in rows),
        given=sum(row.given for row in rows),
        lost=sum(row.lost for row in rows),
    )
