"""Rule passes: what a look with rules takes in place of a forward and a backward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pellucid.engine.guard import random_states
from pellucid.engine.outputs import mapped, tensors_in
from pellucid.engine.passes import Engine
from pellucid.engine.scores import by_inputs, by_layer, check_rows, scattered, score, shares
from pellucid.engine.segment import INPUT, By, Segment, Taken
from pellucid.engine.watch import Place, Watch
from pellucid.errors import Unsuitable
from pellucid.protocol.leaves import Leaves, tensors_of
from pellucid.protocol.sample import Frame
from pellucid.rules.capture import capture, own_backwards, quiet
from pellucid.rules.captured import Captured
from pellucid.rules.graph import Graph, replay
from pellucid.rules.ledger import Ledger
from pellucid.rules.meter import content_of
from pellucid.rules.program import Program, SignsUnknown
from pellucid.rules.rule import RuleSet
from pellucid.rules.step import Values

MOST_GRAPHS = 16
"""How many captured models are kept with an adapter: lists of operations, without values."""


@dataclass(frozen=True, eq=False)
class Form:
    """What a captured model returns, and what it is bound to.

    Attributes:
        raw: what the model returned, with each tensor's place among the graph's outputs in its stead.
        places: the layers that are asked about; they are the last outputs.
        state: the state of the model by which it is known to be the same still.
        by_forward: the functions with a backward pass of their own, which the graph does not have.
    """

    raw: Any
    places: tuple[Place, ...]
    state: Any
    by_forward: tuple[str, ...]


def rule_pass(engine: Engine, frame: Frame, segment: Segment, places: Sequence[Place], rules: RuleSet) -> Taken:
    """Runs the model forward as a graph, and back by rules for each target.

    Raises:
        Unsuitable: when the model cannot be captured.
    """
    engine.lent = None

    def once() -> Taken:
        with engine.weights_last(), torch.no_grad():
            return _RulePass(engine, frame, segment, tuple(places), rules).run()

    try:
        return engine.somehow(once)
    except SignsUnknown:
        return engine.somehow(once)


class _RulePass:
    """One pass; see `rule_pass`."""

    def __init__(
        self, engine: Engine, frame: Frame, segment: Segment, places: tuple[Place, ...], rules: RuleSet
    ) -> None:
        self.engine, self.frame, self.segment, self.places, self.rules = engine, frame, segment, places, rules
        self.rows = segment.rows
        self.names = tuple(segment.inputs) if isinstance(segment.inputs, Leaves) else None
        self.leaves = [engine.fresh(leaf) for leaf in tensors_of(segment.inputs)]
        self.extras = [extra.clone() for extra in segment.extras.values()]
        reference = segment.reference
        self.reference = None if reference is None else [engine.fresh(leaf) for leaf in tensors_of(reference)]

    def run(self) -> Taken:
        """Forward, score, and back for each target."""
        captured = self._captured()
        inputs = [*self.leaves, *self.extras]
        program = captured.program(self.rules, inputs)
        values, there = program.forward(inputs, self.reference)
        # Scores are differentiated by the outputs alone; what lies before them is the rules' business.
        starts = {slot: _started(self._own(values[slot])) for slot in program.graph.outputs}
        raw, kept = self._returned(captured, program, starts)
        check_rows(kept, self.rows)
        with torch.enable_grad():
            scored = score(self.engine.adapter, [self.segment], raw, kept, self.rows)
            totals = [score.sum() for score in scored[0][3]]
        compared = () if there is None else self._compared(captured, program, there, scored[0][2])
        slots: dict[Any, list[int]] = {INPUT: program.graph.inputs[: captured.leaves]}
        slots |= dict(zip(self.places, [[slot] for slot in program.graph.outputs[-len(self.places) :]], strict=False))
        sweeps = _Sweeps(program, values, there, starts, slots, self.rows)
        wanting = [index for index, scored_by in enumerate(self.segment.targets) if scored_by.by]
        found: list[dict[By, Any]] = [{} for _ in totals]
        ledgers: list[Ledger | None] = [None for _ in totals]
        for index in wanting:
            by = self.segment.targets[index].by
            carried, ledger = sweeps.back(totals[index], by, last=index == wanting[-1])
            ledgers[index] = replace(ledger, by_forward=captured.form.by_forward)
            found[index] = {one: self._shaped(one, parts) for one, parts in carried.items()}
        (taken,) = shares([self.segment], scored, kept, found, len(wanting))
        forwards = 1 if there is None else 2
        return replace(taken, forwards=forwards, ledgers=tuple(ledgers), reference_scores=compared)

    def _own(self, value: Tensor) -> Tensor:
        """A value without the rows that fill up a batch."""
        filled = self.size != self.rows and value.dim() > 0 and value.shape[0] == self.size
        return value[: self.rows] if filled else value

    def _returned(
        self, captured: Captured, program: Program, tensors: Mapping[int, Tensor]
    ) -> tuple[Any, dict[Place, Tensor]]:
        """What the model would return, and the layers' outputs."""
        outputs = [tensors[slot] for slot in program.graph.outputs]
        form: Form = captured.form
        kept = outputs[len(outputs) - len(form.places) :]
        return mapped(lambda place: outputs[int(place)], form.raw), dict(zip(form.places, kept, strict=True))

    def _compared(
        self, captured: Captured, program: Program, there: Values, logits: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The scores at the reference, for the classes that were predicted at the sample itself."""
        tensors = {slot: self._own(there[slot]) for slot in program.graph.outputs}
        raw, kept = self._returned(captured, program, tensors)
        segment = self.segment
        if logits is not None:
            known = scattered(logits.detach(), segment.examples)
            segment = replace(segment, base=tuple(known if isinstance(one, str) else one for one in segment.base))
        return tuple(score(self.engine.adapter, [segment], raw, kept, self.rows)[0][3])

    def _shaped(self, by: By, parts: Sequence[Tensor | None]) -> Any:
        own = [None if part is None else self._own(part) for part in parts]
        return by_inputs(own, self.segment.inputs) if by == INPUT else by_layer(own[0], by)  # type: ignore[arg-type]

    def _captured(self) -> Captured:
        """The model as it was captured for inputs of this form; its rows are filled up where that saves a capture."""
        graphs: dict[Any, Captured] = self.engine.adapter.cache.setdefault("graphs", {})
        key, state = self._key(), _state(self.engine)
        for stale in [other for other, one in graphs.items() if one.form.state != state]:
            del graphs[stale]
        sizes = [rows for rows, other in graphs if other == key and self.rows <= rows <= 2 * self.rows]
        fits = [rows for rows in sizes if rows == self.rows or self.rules.fills]
        self.size = min(fits, default=self.rows)
        if self.size > self.rows:
            index = torch.arange(self.size).clamp_max(self.rows - 1)
            self.leaves, self.extras = ([_picked(one, index) for one in group] for group in (self.leaves, self.extras))
            self.reference = None if self.reference is None else [_picked(one, index) for one in self.reference]
        elif (self.size, key) not in graphs:
            while len(graphs) >= MOST_GRAPHS:
                del graphs[next(iter(graphs))]
            graphs[self.size, key] = self._capture(state)
        return graphs[self.size, key]

    def _key(self) -> Any:
        """What a graph holds for: the form of the inputs and of the call, and the layers asked about."""
        called, spec = pytree.tree_flatten(self._arguments([*self.leaves, *self.extras]))
        fixed = [_form(one) if isinstance(one, Tensor) and one.numel() > 1 else repr(one) for one in called]
        forms = [_form(leaf) for leaf in (*self.leaves, *self.extras)]
        layout = self.engine.memory_format
        return (self.names, tuple(forms), tuple(fixed), repr(spec), self.places, layout, id(self.engine.module))

    def _arguments(self, flat: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the model is called."""
        count = len(self.leaves)
        return self.frame.build(self._inputs(flat[:count]), dict(zip(self.segment.extras, flat[count:], strict=True)))

    def _inputs(self, leaves: Sequence[Tensor]) -> Any:
        return leaves[0] if self.names is None else Leaves(dict(zip(self.names, leaves, strict=True)))

    def _capture(self, state: Any) -> Captured:
        started = time.perf_counter()
        engine = self.engine
        returned: list[Any] = []
        inputs = [*self.leaves, *self.extras]

        def call(*flat: Tensor) -> Any:
            args, kwargs = self._arguments(flat)
            return engine.module(*args, **kwargs)

        def function(*flat: Tensor) -> list[Tensor]:
            watch = Watch(engine.module, self.places, careful=engine.ways)
            with watch():
                returned[:] = [call(*flat)]
            return [*tensors_in(returned[0]), *(watch.kept[place] for place in self.places)]

        with random_states(engine.parts.parameters, 0):
            try:
                graph = capture(function, inputs, engine.module)
            except Unsuitable:
                # A model that fails by itself, as on inputs of the wrong shape, is to say so.
                engine.call(self.frame, self._inputs([leaf.clone() for leaf in self.leaves]), self.segment.extras)
                raise
        numbers = iter(range(len(graph.outputs)))
        raw = mapped(lambda _: torch.tensor(next(numbers)), returned[0])
        by_forward = self._verify(graph, call, inputs)
        graph.seconds = time.perf_counter() - started
        return Captured(graph, len(self.leaves), Form(raw, self.places, state, by_forward))

    def _verify(self, graph: Graph, call: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[str, ...]:
        """Compares graph and model on other inputs of the same form; names what has a backward pass of its own.

        Raises:
            Unsuitable: when they differ.
        """
        others = [0.7 * leaf.flip(-1) for leaf in self.leaves] + list(inputs[len(self.leaves) :])
        try:
            expected, by_forward = self._called(call, others, gradients=True)
        except RuntimeError:
            # A model that does not run with gradients has no backward pass to differ from.
            expected, by_forward = self._called(call, others, gradients=False)
        with random_states(self.engine.parts.parameters, 0):
            found = replay(graph, others)
        if len(found) != len(expected) + len(self.places) or not all(map(_alike, expected, found)):
            raise Unsuitable(
                f"{self.engine.adapter.name} cannot be captured as a graph: on other inputs of the same form the graph "
                "gives other outputs than the model, whose way depends on its inputs' values or on what is outside of "
                "it; choose a technique without rules, such as integrated_gradients"
            )
        return by_forward

    def _called(
        self, call: Callable[..., Any], inputs: Sequence[Tensor], *, gradients: bool
    ) -> tuple[list[Tensor], tuple[str, ...]]:
        """What the model gives, and with gradients the functions of its own that have a backward pass of their own."""
        with torch.set_grad_enabled(gradients), random_states(self.engine.parts.parameters, 0), quiet():
            outputs = list(tensors_in(call(*((_started(leaf) if gradients else leaf).clone() for leaf in inputs))))
        return [output.detach() for output in outputs], own_backwards(outputs)


@dataclass(eq=False)
class _Sweeps:
    """The way back of one forward pass, for each of several scores.

    Attributes:
        program: what is run backwards.
        values: as the forward pass kept them.
        there: the same at the reference.
        starts: the outputs, by slot, as the scores were computed of them.
        slots: where what may be asked for is.
        rows: how many rows there are, without those that fill up.
    """

    program: Program
    values: Values
    there: Values | None
    starts: dict[int, Tensor]
    slots: dict[Any, list[int]]
    rows: int

    def back(self, total: Tensor, by: Sequence[By], *, last: bool) -> tuple[dict[By, list[Tensor | None]], Ledger]:
        """What a score's gradients become at all that was asked for, and the ledger."""
        program = self.program
        begun = self._begun(total)
        started = self._sums(begun)
        asked = frozenset(slot for one in by for slot in self.slots[one])
        # The values asked for are kept for the ledger, also when the sweep gives up the others.
        kept = {slot: (self.values[slot], None if self.there is None else self.there[slot]) for slot in asked}
        sweep = program.backward(begun.items(), asked, self.values, self.there, free=last)
        ends = self.slots[INPUT] if INPUT in by else asked
        arrived = self._sums({slot: sweep.found[slot] for slot in ends if slot in sweep.found}, kept)
        ledger = Ledger(sweep.entries, started.cpu(), arrived.cpu(), program.graph.seconds, program.content)
        return {one: [sweep.found.get(slot) for slot in self.slots[one]] for one in by}, ledger

    def _begun(self, total: Tensor) -> dict[int, Tensor]:
        """What the outputs carry at first."""
        if not total.requires_grad:
            return {}
        leaves = {slot: leaf for slot, leaf in self.starts.items() if leaf.requires_grad}
        gradients = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
        relevance = self.program.rules.carries == "relevance"
        return {
            slot: _widened(gradient * leaf.detach() if relevance else gradient, self.values[slot])
            for (slot, leaf), gradient in zip(leaves.items(), gradients, strict=True)
            if gradient is not None
        }

    def _sums(self, carried: Mapping[int, Tensor], kept: Mapping[int, Any] | None = None) -> Tensor:
        """The content of what is carried, for each row."""
        some = next(iter(carried.values()), torch.zeros(()))
        total = torch.zeros(self.rows, dtype=torch.float64, device=some.device)
        if self.program.content:
            for slot, tensor in carried.items():
                here, there = self.values[slot], None if self.there is None else self.there[slot]
                here, there = (here, there) if kept is None else kept[slot]
                total += _by_row(content_of(tensor, here, there), self.rows)
        return total


def _started(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.is_floating_point())


def _picked(tensor: Tensor, index: Tensor) -> Tensor:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    picked = tensor[index.to(tensor.device)]
    return picked.contiguous(memory_format=torch.channels_last) if last else picked


def _widened(tensor: Tensor, like: Tensor) -> Tensor:
    """With zeros for the rows that fill up a batch."""
    if tensor.shape == like.shape:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((like.shape[0] - tensor.shape[0], *tensor.shape[1:]))])


def _by_row(tensor: Tensor, rows: int) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[0] < rows:
        return tensor.sum(dtype=torch.float64).expand(rows) / rows
    return tensor[:rows].reshape(rows, -1).sum(dim=1, dtype=torch.float64)


def _form(tensor: Tensor) -> Any:
    return tuple(tensor.shape[1:]), tensor.dtype


def _alike(one: Tensor, two: Tensor) -> bool:
    """Whether two results are the same up to rounding."""
    if one.shape != two.shape:
        return False
    tolerance = 0.1 if one.dtype in (torch.float16, torch.bfloat16) else 1e-3
    scale = float(one.double().nan_to_num(posinf=0, neginf=0).abs().max()) if one.numel() else 0.0
    return torch.allclose(one.double(), two.double(), rtol=0, atol=scale * tolerance + 1e-12, equal_nan=True)


def _state(engine: Engine) -> Any:
    """What a graph is bound to: the model's parts, its tensors by identity, its plain attributes and its hooks."""
    parts = engine.parts.modules.values()
    tensors = [id(tensor) for part in parts for own in (part._parameters, part._buffers) for tensor in own.values()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]
    return (engine.parts.structure, tuple(tensors), engine.parts.attributes, tuple(hooks))
