"""Programs: a lowered graph that runs forward, and back by the rules of a rule set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import ProtocolError
from pellucid.rules.expansions import lowest_of, maximum_of, shifted_by
from pellucid.rules.graph import Graph, Slot, slots_in
from pellucid.rules.ledger import Entry
from pellucid.rules.lower import EXACT
from pellucid.rules.node import Arguments, Node, Site
from pellucid.rules.rule import Rule, RuleSet

Values = list[Any]

REARRANGE = frozenset({"view", "permute", "transpose", "t", "clone", "squeeze", "unsqueeze", "alias", "contiguous"})
"""Operations that hand on all that they take, number by number."""


class Step:
    """An operation, ready to run: its arguments are filled from a list of values."""

    def __init__(self, site: Site) -> None:
        op = site.made
        aten = torch.ops.aten
        self.site = site
        self.target = aten.reshape.default if op.target in (aten.view.default, aten._unsafe_view.default) else op.target
        self.single = op.single
        self.out = op.out
        self.template = op.args
        self.flat = [(index, part.index) for index, part in enumerate(op.args) if isinstance(part, Slot)]
        self.nested = [
            (index, [(place, inner.index) for place, inner in enumerate(part) if isinstance(inner, Slot)])
            for index, part in enumerate(op.args)
            if isinstance(part, (tuple, list)) and any(isinstance(inner, Slot) for inner in part)
        ]
        self.varies = False
        self.rule: Rule | None = None
        self.done_with: tuple[int, ...] = ()
        site.step = self

    def fill(self, values: Values) -> Arguments:
        """The positional arguments."""
        args = Arguments(self.template)
        args.values = values
        for index, slot in self.flat:
            args[index] = values[slot]
        for index, parts in self.nested:
            inner = list(args[index])
            for place, slot in parts:
                inner[place] = values[slot]
            args[index] = inner
        return args

    def run(self, values: Values) -> None:
        """Runs the operation and puts its results where they belong."""
        args = self.fill(values)
        self.put(values, self.target(*args, **self.site.kwargs_of(args)))

    def put(self, values: Values, result: Any) -> None:
        """Puts results where they belong."""
        if self.single:
            values[self.out[0]] = result
        else:
            for slot, one in zip(self.out, result, strict=True):
                if slot >= 0:
                    values[slot] = one

    def node(self, values: Values, there: Values | None) -> Node:
        """The operation as a rule sees it."""
        if there is None:
            return Node(self.site, self.fill(values), self.results(values))
        return Node(self.site, self.fill(values), self.results(values), self.fill(there), self.results(there))

    def results(self, values: Values) -> Any:
        """The results that were kept."""
        if self.single:
            return values[self.out[0]]
        return tuple(values[slot] if slot >= 0 else None for slot in self.out)


@dataclass(eq=False)
class Sweep:
    """What one sweep from the outputs back to the inputs gave.

    Attributes:
        found: what was carried to the slots that were asked for.
        entries: the ledger's rows.
    """

    found: dict[int, Tensor]
    entries: list[Entry]


class Program:
    """A rule set's way through one captured graph.

    Attributes:
        graph: the graph, lowered for the rule set.
        leaves: how many of its inputs are explained.
        rules: the rule set.
        content: whether what is carried is conserved, and metered.
    """

    def __init__(self, graph: Graph, sites: Sequence[Site], leaves: int, rules: RuleSet) -> None:
        self.rules = rules
        self.leaves = leaves
        self.graph = graph
        self.steps = [Step(site) for site in sites]
        self.content = rules.metered and (rules.carries == "relevance" or rules.needs_reference)
        self._plans: dict[frozenset[int], list[Step]] = {}
        depends = set(self.graph.inputs[:leaves])
        for step in self.steps:
            step.rule = None if step.site.kind in ("move", "constant") else rules.rule_for(Node(step.site))
            step.varies = bool(depends.intersection(slots_in((step.site.made.args, step.site.made.kwargs))))
            if step.varies:
                depends.update(step.out)
        self._plan_memory()

    def _plan_memory(self) -> None:
        """Finds when each value is used for the last time."""
        kept = {*self.graph.outputs, *self.graph.inputs, *self.graph.constants, -1}
        for step in self.steps:
            site = step.site
            if not site.active:
                continue
            needs = self._needs(step)
            kept.update(slot for slot in slots_in((step.template, site.kwargs)) if slot not in site.slots)
            if "i" in needs:
                kept.update(site.slots)
            if "o" in needs:
                kept.update(step.out)
        last: dict[int, Step] = {}
        for step in self.steps:
            for slot in (*slots_in((step.template, step.site.kwargs)), *step.out):
                last[slot] = step
        done: dict[int, list[int]] = {}
        for slot, step in last.items():
            if slot not in kept:
                done.setdefault(id(step), []).append(slot)
        for step in self.steps:
            step.done_with = tuple(done.get(id(step), ()))

    def _needs(self, step: Step) -> str:
        """Which values are needed on the way back."""
        if self.content and self.rules.needs_reference:
            return "io"
        needs = step.site.needs
        if step.rule is not None:
            needs += step.rule.needs
        elif not self._exact(step):
            needs += "io"
        return needs

    def _exact(self, step: Step) -> bool:
        """Whether the vector-Jacobian product is right for a step that has no rule."""
        kind = step.site.kind
        return kind in ("move", "constant") or (self.rules.carries == "gradient" and kind in EXACT)

    def forward(
        self, inputs: Sequence[Tensor], reference: Sequence[Tensor] | None = None
    ) -> tuple[Values, Values | None]:
        """Runs the model at the inputs and, in lockstep, at the reference's leaves; returns all values kept."""
        values: Values = [None] * len(self.graph.shapes)
        for slot, tensor in self.graph.constants.items():
            values[slot] = tensor.detach()
        there = None if reference is None else list(values)
        for slot, tensor in zip(self.graph.inputs, inputs, strict=True):
            values[slot] = tensor
        if there is None or reference is None:
            for step in self.steps:
                step.run(values)
                for slot in step.done_with:
                    values[slot] = None
            return values, None
        for slot, tensor in zip(self.graph.inputs, (*reference, *inputs[self.leaves :]), strict=True):
            there[slot] = tensor
        for step in self.steps:
            _together(step, values, there)
            for slot in step.done_with:
                values[slot] = there[slot] = None
        return values, there

    def _plan(self, asked: frozenset[int]) -> list[Step]:
        """The steps through which something reaches what was asked for, from the output to the input."""
        if asked not in self._plans:
            reached = set(asked)
            plan = []
            for step in self.steps:
                if reached.intersection(step.site.slots):
                    reached.update(step.site.out)
                    plan.append(step)
            self._plans[asked] = plan[::-1]
        return self._plans[asked]

    def backward(
        self,
        starts: Iterable[tuple[int, Tensor]],
        asked: frozenset[int],
        values: Values,
        there: Values | None,
        *,
        free: bool,
    ) -> Sweep:
        """Carries from some slots back to others.

        Args:
            starts: slots with what they carry at first.
            asked: the slots that it is wanted for.
            values: as `forward` gave them.
            there: the values at the reference.
            free: whether the values are given up on the way, since nothing needs them any more.
        """
        carried: dict[int, Tensor] = {}
        for slot, tensor in starts:
            carried[slot] = carried[slot] + tensor if slot in carried else tensor
        found: dict[int, Tensor] = {}
        meter = _Meter(self, values, there, carried)
        for step in self._plan(asked):
            site = step.site
            out = site.out
            if site.primary:
                arrived: Any = carried.pop(out[0], None) if out else None
                if arrived is not None and out[0] in asked:
                    found[out[0]] = arrived
            else:
                parts = [carried.pop(slot, None) for slot in step.out]
                found.update({s: p for s, p in zip(step.out, parts, strict=True) if s in asked and p is not None})
                arrived = parts if any(part is not None for part in parts) else None
            if arrived is not None:
                given = self._given(step, arrived, values, there)
                meter.note(step, given)
                for slot, one in given:
                    carried[slot] = carried[slot] + one if slot in carried else one
            if free:
                for slot in out:
                    values[slot] = None
                    if there is not None:
                        there[slot] = None
        found.update({slot: carried[slot] for slot in asked if slot in carried})
        return Sweep(found, meter.entries())

    def _given(self, step: Step, arrived: Any, values: Values, there: Values | None) -> list[tuple[int, Tensor]]:
        """What a step hands on, with the slots of those who get it: its active operands, or those of its sources."""
        site, rule = step.site, step.rule
        if rule is None or not isinstance(arrived, Tensor):
            args, out = step.fill(values), step.results(values)
            if self._exact(step) or self.rules.carries == "gradient":
                plain = site.backward(site, arrived, args, out)
            else:
                plain = _by_share(Node(site, args, out), arrived)
            return [(slot, one) for slot, one in zip(site.slots, plain, strict=True) if one is not None]
        node = step.node(values, there)
        given = rule(node, arrived)
        handed: list[tuple[int, Tensor]] = []
        for other, parts in given.items() if isinstance(given, Mapping) else [(node, given)]:
            shapes = other.shapes
            if len(parts) != len(shapes) or any(
                one is not None and tuple(one.shape) != shape for one, shape in zip(parts, shapes, strict=False)
            ):
                raise ProtocolError(
                    f"rule {type(rule).__name__} of rule set '{self.rules.name}' gave "
                    f"{[None if one is None else tuple(one.shape) for one in parts]} at {other!r}; expected a tensor "
                    f"or None for each of its active inputs, of shapes {[tuple(shape) for shape in shapes]}"
                )
            handed += [(slot, one) for slot, one in zip(other.operands, parts, strict=True) if one is not None]
        return handed

    def name_of(self, step: Step) -> str:
        """How the ledger names what a step went by."""
        if step.rule is not None:
            return type(step.rule).__name__
        return "vjp" if self._exact(step) else ""


def _together(step: Step, values: Values, there: Values) -> None:
    """Runs a step at the inputs and at the reference."""
    name = step.site.base
    if name not in ("shift", "pad_below"):
        step.run(values)
        if step.varies:
            step.run(there)
        else:
            for slot in step.out:
                there[slot] = values[slot]
        return
    (x, how), (y, _) = step.fill(values), step.fill(there)
    if name == "shift":
        most = torch.maximum(maximum_of(x, how), maximum_of(y, how))
        step.put(values, shifted_by(x, most))
        step.put(there, shifted_by(y, most))
    else:
        least = min(lowest_of(x), lowest_of(y))
        step.put(values, torch.nn.functional.pad(x, how, value=least))
        step.put(there, torch.nn.functional.pad(y, how, value=least))


def _by_share(node: Node, arrived: Any) -> list[Tensor | None]:
    """Relevance through an operation without a rule: by each input's share in the result's linearisation."""
    outs = node.outputs if isinstance(arrived, list) else (node.output,)
    parts = arrived if isinstance(arrived, list) else [arrived]
    shares = [
        None if part is None else torch.where(out == 0, 0.0, part / torch.where(out == 0, 1.0, out))
        for part, out in zip(parts, outs, strict=True)
    ]
    back = node.product(shares if isinstance(arrived, list) else shares[0])
    return [None if one is None else value * one for one, value in zip(back, node.inputs, strict=True)]


class _Meter:
    """Sums what each node takes in and hands on, without waiting for the numbers.

    What is carried is summed once, when it is handed on: what a node takes in is the sum of what it was handed.
    """

    def __init__(self, program: Program, values: Values, there: Values | None, begun: Mapping[int, Tensor]) -> None:
        self.program = program
        self.values = values
        self.there = there
        self.steps: list[Step] = []
        self.sums: list[Any] = []
        self.totals = {slot: self._content(slot, one) for slot, one in begun.items()} if program.content else {}

    def note(self, step: Step, given: Sequence[tuple[int, Tensor]]) -> None:
        """Takes a node down."""
        self.steps.append(step)
        if not self.program.content:
            return
        taken: Any = sum(self.totals.pop(slot) for slot in step.out if slot in self.totals)
        if step.site.op in REARRANGE and len(given) == 1:
            handed = [taken]
        else:
            handed = [self._content(slot, one) for slot, one in given]
        for (slot, _), one in zip(given, handed, strict=True):
            self.totals[slot] = self.totals[slot] + one if slot in self.totals else one
        self.sums += [taken, sum(handed)]

    def _content(self, slot: int, carried: Tensor) -> Tensor:
        # A conversion to float64 would take several times as long as the sum, which is in a tree of partial sums.
        whole = content(carried, self.values[slot], None if self.there is None else self.there[slot])
        return (whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole).sum().double()

    def entries(self) -> list[Entry]:
        """The rows of the ledger."""
        like = next((one for one in self.sums if isinstance(one, Tensor)), torch.zeros((), dtype=torch.float64))
        sums = [one if isinstance(one, Tensor) else torch.full_like(like, one) for one in self.sums]
        pairs = torch.stack(sums).reshape(-1, 2).tolist() if sums else [[0.0, 0.0]] * len(self.steps)
        return [
            Entry(step.site.op, step.site.kind, step.site.layer, self.program.name_of(step), a, b, abs(a - b))
            for step, (a, b) in zip(self.steps, pairs, strict=True)
        ]


def content(carried: Tensor, value: Tensor, there: Tensor | None) -> Tensor:
    """What is conserved of what is carried: itself, or multiplier times difference from the reference."""
    if there is None:
        return carried
    # Masked scores are minus infinity in both, which is no difference.
    return carried * (value - there).masked_fill_(value == there, 0)
