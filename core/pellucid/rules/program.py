"""Programs: a lowered graph that runs forward, and back by the rules of a rule set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import ProtocolError
from pellucid.rules.graph import Graph, slots_in
from pellucid.rules.ledger import Entry
from pellucid.rules.lower import EXACT
from pellucid.rules.meter import Meter
from pellucid.rules.node import Node, Site
from pellucid.rules.rule import Gradient, RuleSet
from pellucid.rules.signs import nonnegative, rectified
from pellucid.rules.step import Step, Values, run_both

FRESH = frozenset({"convolution", "addmm", "mm", "bmm", "add", "batch_norm"})
"""Operations whose results share no memory with anything."""

LARGE = 2**14
"""From how many numbers on a product of constants, such as a folded weight, is made again rather than kept: it takes a
fraction of the time that new memory for all of them would take."""

CHEAP = frozenset({"add", "sub", "mul", "div", "neg", "exp", "pow", "reciprocal", "shift", "gelu", "silu", "tanh"})
"""Operations number by number, which take a small part of the time that the products of matrices around them take."""

SUMS = 2
"""Of how many sums, one made of the other, what is made again may be made."""

VIEWS = frozenset({"view", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "select"})
"""Operations that show the same memory in another form."""

IN_PLACE = {"relu": torch.ops.aten.relu_.default, "hardtanh": torch.ops.aten.hardtanh_.default}
"""What runs in place of operations whose operand nothing else needs: on a CPU new memory costs more than they do."""


class SignsUnknown(Exception):
    """A rule handed to other nodes' inputs, so that the program now claims nothing of signs: the pass starts anew."""


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
        self._plan_signs()
        self._plan_memory()
        self._plan_places()

    def _plan_signs(self) -> None:
        """Finds where nothing is carried but at positive values."""
        self.claims = self.rules.carries == "relevance"
        if self.claims:
            sites = [step.site for step in self.steps]
            found = rectified(sites, [step.rule for step in self.steps], self.graph.outputs, nonnegative(sites))
            for step in self.steps:
                step.rectified = bool(step.site.out) and found.issuperset(step.site.out)

    def give_up_signs(self) -> None:
        """Takes back what was found of signs, which holds only where each rule hands to its own inputs alone."""
        self.claims = False
        for step in self.steps:
            step.rectified = False
        self._plan_memory()
        self._plan_places()

    def _plan_memory(self) -> None:
        """Finds when each value is used for the last time, and what is made again rather than kept."""
        wanted: dict[int, set[int]] = {}
        behind: set[int] = set()
        for step in self.steps:
            site = step.site
            if not site.active:
                continue
            needs = self._needs(step)
            own = {slot for slot in slots_in((step.template, site.kwargs)) if slot not in site.slots}
            own.update(site.slots if "i" in needs else ())
            own.update(step.out if "o" in needs else ())
            behind.update(_behind(site) if "s" in needs else ())
            wanted[id(step)] = own
        always = {*self.graph.outputs, *self.graph.inputs, *self.graph.constants, *behind, -1}
        again = self._made_again(always, set().union(*wanted.values()))
        for step in self.steps:
            step.remade = tuple((slot, again[slot]) for slot in _chain(wanted.get(id(step), set()), again))
        kept = always.union(*wanted.values(), *(_operands(step) for step in again.values())) - again.keys()
        last: dict[int, Step] = {}
        for step in self.steps:
            for slot in (*_operands(step), *step.out):
                last[slot] = step
        done: dict[int, list[int]] = {}
        for slot, step in last.items():
            if slot not in kept:
                done.setdefault(id(step), []).append(slot)
        for step in self.steps:
            step.done_with = tuple(done.get(id(step), ()))

    def _made_again(self, always: set[int], wanted: set[int]) -> dict[int, Step]:
        """The values that the way back needs and that are made again rather than kept, by slot.

        Those are large products of constants; and, where more is needed than by gradients, what is quickly made of
        values that are kept anyway or are small. Few sums are made of sums, or the residual stream would be made again
        from the beginning at every block; without a reference none is, for the time it takes.
        """
        again: dict[int, Step] = {}
        wanted = set(wanted)
        for step in reversed(self.steps):  # what something kept is a view of is there anyway
            if step.site.op in VIEWS and wanted.intersection(step.out):
                wanted.update(_operands(step))
        at_hand = always | wanted
        depth: dict[int, int] = {}
        sizes = [math.prod(shape) for shape in self.graph.shapes]
        for step in self.steps:
            slot = step.out[0] if step.single else -1
            given = _operands(step)
            sums = max((depth.get(one, 0) for one in given), default=0)
            if slot in always or sizes[slot] < LARGE:
                continue
            if not step.varies:
                cheap = slot in wanted and step.site.op == "mul" and not given & again.keys()
            elif not (self.rules.needs_reference or self.rules.carries == "relevance"):
                cheap = False
            elif step.site.op in VIEWS:
                cheap = given <= at_hand
            else:
                cheap = slot in wanted and step.site.op in CHEAP
                cheap &= step.site.op != "add" or (self.rules.needs_reference and sums < SUMS)
                cheap &= all(one in at_hand or sizes[one] <= sizes[slot] / 8 for one in given)
            if cheap:
                again[slot] = step
                at_hand.add(slot)
                depth[slot] = sums + (step.site.op == "add")
        return again

    def _plan_places(self) -> None:
        """Finds the operations that may run in the memory of their operand, which nothing else sees."""
        uses = Counter(slot for step in self.steps for slot in slots_in((step.template, step.site.kwargs)))
        fresh = {step.out[0] for step in self.steps if step.site.op in FRESH}
        for step in self.steps:
            if step.site.base in IN_PLACE:
                slot = step.flat[0][1]
                alone = slot in fresh and slot in step.done_with and uses[slot] == 1
                step.target = IN_PLACE[step.site.base] if alone else step.site.target

    def _needs(self, step: Step) -> str:
        """Which values are needed on the way back."""
        needs = step.site.needs
        if self.content and self.rules.needs_reference:
            # So that the ledger knows what each operand got; what is linear in one hands on all that it takes.
            linear = self._exact(step) or (type(step.rule) is Gradient and step.site.kind in EXACT)
            needs += "" if linear and len(step.site.slots) == 1 else "i"
        if step.rule is not None:
            needs += step.rule.needs_at(Node(step.site, rectified=step.rectified))
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
            run_both(step, values, there)
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
        meter = Meter(values, there, carried, metered=self.content)
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
                step.remake(values, there)
                given = self._given(step, arrived, values, there)
                if self.claims and not all(slot in step.site.slots for slot, _ in given):
                    self.give_up_signs()
                    raise SignsUnknown
                meter.note(step, arrived, given)
                for slot, one in given:
                    carried[slot] = carried[slot] + one if slot in carried else one
                step.forget(values, there)
            if free:
                for slot in out:
                    values[slot] = None
                    if there is not None:
                        there[slot] = None
        found.update({slot: carried[slot] for slot in asked if slot in carried})
        return Sweep(found, meter.entries(self.name_of))

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


def _operands(step: Step) -> set[int]:
    return set(slots_in((step.template, step.site.kwargs)))


def _chain(wanted: set[int], again: Mapping[int, Step]) -> list[int]:
    """What must be made again for some values, in the order in which it can be."""
    chain: dict[int, None] = {}
    for slot in sorted(again.keys() & wanted):
        chain.update(dict.fromkeys([*_chain(_operands(again[slot]), again), slot]))
    return list(chain)


def _behind(site: Site) -> set[int]:
    """The operands and results of the operations that made an operation's operands, seen through what only moves."""
    found: set[int] = set()
    for source in site.sources:
        if source is not None:
            found.update((*source.slots, *source.made.out))
            found.update(_behind(source) if source.kind == "move" else ())
    return found


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
