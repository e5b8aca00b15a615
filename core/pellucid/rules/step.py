"""Steps: the operations of a program, ready to run."""

from __future__ import annotations

from typing import Any

import torch

from pellucid.rules.expansions import lowest_of, maximum_of, shifted_by
from pellucid.rules.graph import Slot
from pellucid.rules.node import Arguments, Node, Site
from pellucid.rules.rule import Rule

Values = list[Any]
"""The tensors of a run, by slot."""


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
        self.rectified = False
        self.done_with: tuple[int, ...] = ()
        self.remade: tuple[tuple[int, Step], ...] = ()
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

    def remake(self, values: Values, there: Values | None) -> None:
        """Makes again what it needs on the way back and was not kept."""
        for slot, step in self.remade:
            if values[slot] is not None:
                continue
            if there is None:
                step.run(values)
            else:
                run_both(step, values, there)

    def forget(self, values: Values, there: Values | None) -> None:
        """Gives up what was made again."""
        for slot, _ in self.remade:
            values[slot] = None
            if there is not None:
                there[slot] = None

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
            return Node(self.site, self.fill(values), self.results(values), rectified=self.rectified)
        return Node(self.site, self.fill(values), self.results(values), self.fill(there), self.results(there))

    def results(self, values: Values) -> Any:
        """The results that were kept."""
        if self.single:
            return values[self.out[0]]
        return tuple(values[slot] if slot >= 0 else None for slot in self.out)


def run_both(step: Step, values: Values, there: Values) -> None:
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
