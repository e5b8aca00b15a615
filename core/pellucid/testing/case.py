"""What a check works with: fresh inputs, a fresh model and a fresh instance, and the ways to run them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from pellucid.adapter import DIFFERENTIABLE, Adapter
from pellucid.api import adapt, evaluate, explain, project
from pellucid.engine.drive import Cost, Drive, Outcome
from pellucid.engine.inputs import make_sample
from pellucid.engine.passes import Engine
from pellucid.engine.planner import Planner
from pellucid.engine.run import Run, uses_of
from pellucid.protocol.explainer import Explainer, as_passes
from pellucid.protocol.leaves import Leaves
from pellucid.protocol.look import Look, Looks, Seen
from pellucid.protocol.sample import Sample
from pellucid.results import (
    Attribution,
    Concepts,
    Exemplars,
    Explanation,
    Influence,
    Meta,
    Projection,
    Scores,
    TargetRecord,
)
from pellucid.rules.program import Program
from pellucid.testing.laws import Skipped, require
from pellucid.testing.models import FEATURES, IMAGE, SmallNet, SmallTable, copied, randomised
from pellucid.testing.subject import Subject

TRAINED = 10
"""How many training examples the influences are of that evaluators of tag "training_data" are given."""
TARGETS = (1, 3, 0)
OTHER_TARGETS = (2, 0, 1)


@dataclass(eq=False)
class Drove:
    """What driving a technique by hand showed.

    Attributes:
        result: what it returned, unfinished.
        rounds: the looks of each round.
        sample: what it was given.
        cost: the passes of its looks.
    """

    result: Any
    rounds: list[list[Look]]
    sample: Sample
    cost: Cost


@dataclass(eq=False)
class Case:
    """One technique under one check.

    Attributes:
        subject: the technique.
        index: which of its test instances.
        seed: what the inputs and the model depend on.
        table: whether the inputs are rows of a table in place of images.
    """

    subject: Subject
    index: int = 0
    seed: int = 0
    table: bool = field(default=False)

    def __post_init__(self) -> None:
        self.table = self.table or self.subject.tables_only

    @cached_property
    def technique(self) -> Any:
        """The instance that is checked."""
        return self.fresh()

    def fresh(self) -> Any:
        """Another new instance, equal to the one that is checked."""
        return self.subject.instances()[self.index]

    def given(self, **wanted: Any) -> Any:
        """A new instance with planted data and settings, of which it gets those that are parameters of its."""
        known = {name: value for name, value in wanted.items() if name in self.subject.parameters}
        return self.subject.varied(self.technique, **known)

    def skip(self, reason: str) -> None:
        """Ends the check without a verdict."""
        raise Skipped(reason)

    def generator(self, label: str) -> torch.Generator:
        """A random generator that depends on the seed and the label alone."""
        digest = hashlib.blake2b(f"{self.seed} {label}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def inputs(self, n: int = 3, label: str = "inputs", dtype: torch.dtype = torch.float64) -> Tensor:
        """New inputs, the same ones for the same label."""
        shape = (FEATURES,) if self.table else IMAGE
        return torch.randn(n, *shape, generator=self.generator(label), dtype=torch.float64).to(dtype)

    def model(self, label: str = "model", dtype: torch.dtype = torch.float64) -> nn.Module:
        """A new model in eval mode, with the same weights for the same label."""
        return copied(_first(self.table, self.generator(label).initial_seed())).to(dtype)

    def run(
        self,
        model: Any = None,
        inputs: Any = None,
        target: Any = TARGETS,
        technique: Any = None,
        **options: Any,
    ) -> Explanation:
        """Runs the technique as a user does; what is not given is the case's own."""
        model = self.model() if model is None else model
        inputs = self.inputs() if inputs is None else inputs
        technique = self.technique if technique is None else technique
        target = list(target) if target is TARGETS or target is OTHER_TARGETS else target
        options = {"seed": self.seed, "progress": False, **options}
        result: Explanation
        if self.subject.kind == "evaluator":
            given = {"given": self.explanation(inputs, target)}
            result = evaluate(model, inputs, given, technique, target, controls=False, **options)
        else:
            result = explain(model, inputs, technique, target, **options)
        return result

    def plain(self) -> Explanation:
        """The result of `run()` of another instance, made once for all checks that read it or compare with it."""
        key = (self.index, self.seed, self.table)
        known = self.subject.plain.get(key)
        if known is None:
            known = self.subject.plain[key] = self.run(technique=self.fresh())
        return known

    def explanation(self, inputs: Any, target: Any = None) -> Explanation:
        """What evaluators are given to score: what depends on each example alone, or exemplars."""
        values = torch.as_tensor(inputs).detach()
        if "map" in self.subject.tags:  # of points through time: an image's channels are its times
            places = torch.sin(3 * values.double()).flatten(2)[:, :, :2].transpose(0, 1)
            return Projection(places, labels=torch.arange(len(values)) % 2, meta=Meta(technique="given"))
        if "training_data" in self.subject.tags:
            waves = torch.sin(3 * values.flatten(1)[:, :TRAINED])
            return Influence(
                waves,
                self_influence=waves.new_ones(TRAINED).cumsum(0),
                target=TargetRecord("given", _classes(target)),
                meta=Meta(technique="given"),
            )
        if "exemplars" in self.subject.tags:
            places = torch.tensor([[0, 3, 6, 7]])
            weights = values.new_ones(places.shape)
            return Exemplars(weights, places, kind=("prototype",) * 3 + ("criticism",), meta=Meta(technique="given"))
        classes = _classes(target)
        if "concepts" in self.subject.tags:
            names = [0] if classes is None else list(dict.fromkeys(classes.tolist()))
            scores = torch.sin(torch.tensor(names)[:, None] + torch.arange(3.0)).to(values)
            rows, masks = tuple(f"class {name}" for name in names), values[:, :3].abs() > 0.5
            record = TargetRecord("given", classes)
            return Concepts(
                scores, ("a", "b", "c"), rows=rows, masks=masks, meta=Meta(technique="given"), target=record
            )
        return Attribution(
            torch.sin(3 * values.to(values.dtype if values.is_floating_point() else torch.float32)),
            over="input",
            meta=Meta(technique="given"),
            target=TargetRecord("given", classes),
        )

    def projection(self, states: Tensor, **options: Any) -> Any:
        """Projects states as a user does."""
        return project(states, self.technique, **{"seed": self.seed, **options})

    def outcome(self, named: dict[str, Any], model: nn.Module, inputs: Tensor, **options: Any) -> Outcome:
        """Runs several techniques together; fails with the first error."""
        target = list(TARGETS)[: len(inputs)]
        run = Run(adapt(model), named, inputs, target, self._passes, **{"seed": self.seed, **options})
        outcome = run.start()
        for error in outcome.errors.values():
            raise error
        return outcome

    def drive(self, model: nn.Module, inputs: Tensor, target: Any = TARGETS, technique: Any = None) -> Drove:
        """Drives the technique by hand: the same passes, without the guard that hides what it does besides."""
        engine = Engine(adapt(model))
        target = list(target) if isinstance(target, tuple) else target
        sample, _ = make_sample(engine, inputs, target, self.seed)
        rounds: list[list[Look]] = []
        technique = self.technique if technique is None else technique
        drive = Drive(_watched(as_passes(self._passes("", technique, sample)), rounds), uses_of(technique))
        outcome = Planner(engine).run({"it": drive})
        for error in outcome.errors.values():
            raise error
        return Drove(outcome.results["it"], rounds, sample, drive.cost)

    def _passes(self, _: str, technique: Any, sample: Sample) -> Any:
        if isinstance(technique, Explainer):
            return technique.explain(sample)
        return technique.evaluate(sample, self.explanation(sample.inputs, list(TARGETS)))


@lru_cache(maxsize=16)
def _first(table: bool, seed: int) -> nn.Module:
    """A model of which every check gets a copy of its own."""
    return randomised((SmallTable() if table else SmallNet()).double(), seed)


def _classes(target: Any) -> Tensor | None:
    return torch.as_tensor(target) if isinstance(target, (list, tuple, Tensor)) else None


def without(model: nn.Module, *offers: str) -> Adapter:
    """The model as one that does not offer everything."""
    return Adapter(model, offers=DIFFERENTIABLE - set(offers))


def _watched(passes: Generator[Look, Seen, Any], rounds: list[list[Look]]) -> Generator[Look, Seen, Any]:
    """The same passes; their looks are noted, round by round."""
    seen: Any = None
    try:
        while True:
            try:
                look = passes.send(seen)
            except StopIteration as stop:
                return stop.value
            rounds.append(list(flat(look)))
            seen = yield look
    finally:
        passes.close()


def flat(look: Look) -> Iterator[Look]:
    """The looks that several at once are made of."""
    if isinstance(look, Looks):
        for part in look.parts:
            yield from flat(part)
    else:
        yield look


def values_of(result: Explanation) -> list[Tensor]:
    """The tensors of a result's values, with the examples on the first axis."""
    values = result.values
    if isinstance(result, Scores):
        return [values.movedim(-1, 0)]
    return list(values.values()) if isinstance(values, Leaves) else [values]


def deviation(found: Explanation | list[Tensor], expected: Explanation | list[Tensor]) -> float:
    """The greatest difference of two results' values, as a share of the greatest value; infinite for other shapes."""
    ours = found if isinstance(found, list) else values_of(found)
    theirs = expected if isinstance(expected, list) else values_of(expected)
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        return float("inf")
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        one, other = one.double(), other.double()
        size = max(float(other.abs().max()), 1e-30) if other.numel() else 1.0
        gap = float((one - other).abs().max()) if other.numel() else 0.0
        worst = max(worst, gap / size if gap == gap and size == size else float("inf"))
    return worst


def require_same(
    found: Explanation | list[Tensor], expected: Explanation | list[Tensor], what: str, tolerance: float = 1e-9
) -> None:
    """Fails the check unless two results agree to a share of the greatest value; 0 asks for the same bits."""
    gap = deviation(found, expected)
    require(gap <= tolerance, f"{what}: the values differ by {gap:.2g} of the greatest (at most {tolerance:.2g})")


def rows_of(result: Explanation, rows: slice | list[int] | Tensor) -> list[Tensor]:
    """The values of some of the examples."""
    return [leaf[rows] for leaf in values_of(result)]


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Counts the rows of each forward pass while the block runs."""
    rows: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(len(inputs[0]))

    handle = model.register_forward_pre_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


@contextlib.contextmanager
def counted_by_rules() -> Iterator[Cost]:
    """Counts the rows that go through captured graphs while the block runs, forward and back by rules.

    A pass by rules runs a graph in the model's place, so that hooks on the model do not see it. A pass at a sample and
    its reference, in lockstep, is two rows forward for each example.
    """
    seen = Cost()
    rows = 0
    forward, backward = Program.forward, Program.backward

    def onward(program: Program, inputs: Sequence[Tensor], reference: Sequence[Tensor] | None = None) -> Any:
        nonlocal rows
        rows = len(inputs[0])
        seen.forward += rows * (1 if reference is None else 2)
        return forward(program, inputs, reference)

    def back(program: Program, *args: Any, **kwargs: Any) -> Any:
        seen.backward += rows
        return backward(program, *args, **kwargs)

    with mock.patch.object(Program, "forward", onward), mock.patch.object(Program, "backward", back):
        yield seen
