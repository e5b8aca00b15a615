"""Checks of what a technique asks for, what that costs, and that it is the same in company."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pellucid.api import adapt
from pellucid.engine.inputs import make_sample
from pellucid.engine.passes import Engine
from pellucid.errors import Unsuitable
from pellucid.protocol.derived import Derived
from pellucid.protocol.explainer import Explainer
from pellucid.protocol.leaves import tensors_of
from pellucid.protocol.look import Look
from pellucid.protocol.sample import Sample
from pellucid.results import Attribution
from pellucid.testing.behaviour import ROUNDING
from pellucid.testing.case import TARGETS, Case, counted, counted_by_rules, require_same, without
from pellucid.testing.laws import DEMANDING, LAYERED, LOOKING, RECORDED, Group, require

passes_check = Group("Passes", frozenset({"explainer", "evaluator"}))


@dataclass(frozen=True, eq=False)
class Companion(Explainer):
    """Looks at the sample once, at everything a single pass can give.

    Attributes:
        table: whether it is one of rows of a table, for which the model has no map of positions.
    """

    table: bool = False

    def explain(self, sample: Sample) -> Any:
        """One forward and one backward pass."""
        layers = [] if self.table else ["auto"]
        seen = yield Look(at=sample, outputs=True, activations=layers, gradients=["input", *layers])
        return Attribution(seen.gradients["input"], over="input")


@passes_check("asks only what its record declares", RECORDED)
def declared(case: Case) -> None:
    """Models that do not offer more would fail midway."""
    record = case.subject.record
    assert record is not None
    model, inputs = _ready(case)
    undeclared = _asked(case, model, inputs) - record.uses - {"outputs"}
    require(not undeclared, f"it asks for {sorted(undeclared)}; uses={sorted(record.uses)}")


@passes_check("declares only what it asks", RECORDED, once=True)
def needed(case: Case) -> None:
    """Declaring more keeps it from models that it could explain."""
    record = case.subject.record
    assert record is not None
    asked: set[str] = set()
    for index in range(len(case.subject.instances())):
        one = Case(case.subject, index, case.seed)
        asked |= _asked(one, *_ready(one))
    idle = (record.uses & {"activations", "gradients"}) - asked
    require(not idle, f"none of its test instances asks for {sorted(idle)}; uses={sorted(record.uses)}")


@passes_check("refuses a model that does not offer what it needs", DEMANDING, once=True)
def refuses_models(case: Case) -> None:
    """With `Unsuitable`, before any pass."""
    record = case.subject.record
    assert record is not None
    model = case.model()
    with counted(model) as rows:
        try:
            case.run(without(model, *(record.uses - {"outputs"})))
        except Unsuitable:
            pass
        else:
            require(False, f"a model without {sorted(record.uses - {'outputs'})} was explained all the same")
    require(not rows, "the model ran before it was refused")


@passes_check("looks at no place twice")
def nothing_twice(case: Case) -> None:
    """Looks at one sample belong into one round, at one and the same sample, so that they share a pass."""
    drove = case.drive(*_ready(case))
    places: list[tuple[int, Sample | Derived, int]] = []
    for number, looks in enumerate(drove.rounds):
        for look in looks:
            for earlier, place, weights in places:
                if weights != id(look.weights):
                    continue  # the model of another training
                shared = earlier == number and (place is look.at or _key(place) == _key(look.at) is not None)
                require(
                    shared or not _equal(place, look.at),
                    f"round {number + 1} looks where round {earlier + 1} has looked; yield both looks in one round "
                    "with `together`, and derive a sample once",
                )
            places.append((number, look.at, id(look.weights)))


@passes_check("counts its passes truly", kinds={"explainer"})
def true_cost(case: Case) -> None:
    """The rows that go through the model, or its graph where rules are asked, are those that `meta.passes` tells."""
    model, inputs = _ready(case)
    if case.subject.record is not None and "rules" in case.subject.record.uses:
        _true_cost_by_rules(case, model, inputs)
        return
    with counted(model) as rows:
        result = case.run(model, inputs)
    told = result.meta.passes.get("forward", -1.0) * len(inputs)
    require(abs(told - sum(rows)) < 0.5, f"the model saw {sum(rows)} rows; the result tells of {told:g}")


def _true_cost_by_rules(case: Case, model: Any, inputs: Any) -> None:
    """A captured graph runs in the model's place; rows go through it one by one, so that none fills up a batch."""
    adapter = adapt(model)
    with counted(model) as rows, counted_by_rules() as ruled:
        case.run(adapter, inputs, batch_size=1)  # the model is captured here, which is no pass of the technique's
        rows.clear()
        ruled.forward = ruled.backward = 0
        result = case.run(adapter, inputs, batch_size=1)
    told = {way: round(result.meta.passes.get(way, -1.0) * len(inputs), 6) for way in ("forward", "backward")}
    seen = sum(rows) + ruled.forward
    require(
        told["forward"] == seen,
        f"{sum(rows)} rows went through the model and {ruled.forward} through its graph; the result tells of "
        f"{told['forward']:g} forward",
    )
    looks = [look for looks in case.drive(model, inputs).rounds for look in looks]
    mixed = any(look.gradients and look.rules is None for look in looks)  # which go back without a graph
    require(
        ruled.backward == told["backward"] or (mixed and ruled.backward < told["backward"]),
        f"{ruled.backward} rows went back by rules; the result tells of {told['backward']:g} backward",
    )


@passes_check("gives the same in company")
def company(case: Case) -> None:
    """Beside a technique that asks for everything, and beside itself."""
    model, inputs = _ready(case)
    alone = case.outcome({"it": case.fresh()}, model, inputs).results["it"]
    companion = Companion(case.table)
    named = {"first": companion, "it": case.fresh(), "again": case.fresh()}
    together = case.outcome(named, model, inputs).results
    for name in ("it", "again"):
        require_same(together[name], alone, "together with other techniques", ROUNDING)
    expected = case.outcome({"first": companion}, model, inputs).results["first"]
    require_same(together["first"], expected, "what runs beside it", ROUNDING)


@passes_check("adds no passes in company", LOOKING, once=True)
def shared_passes(case: Case) -> None:
    """What is asked where another has asked is free, and together costs no more than apart."""
    model, inputs = _ready(case)
    own = case.drive(model, inputs)
    alone = case.outcome({"it": case.fresh()}, model, inputs).total
    other = case.outcome({"first": Companion(case.table)}, model, inputs).total
    both = case.outcome({"first": Companion(case.table), "it": case.fresh()}, model, inputs).total
    shares = bool(own.rounds) and any(
        look.at is own.sample and look.rules is None and look.weights is None for look in own.rounds[0]
    )
    most = alone.forward + (0 if shares else other.forward)
    require(both.forward <= most, f"{both.forward} rows forward together; expected at most {most}")
    most = alone.backward + other.backward
    require(both.backward <= most, f"{both.backward} rows backward together; expected at most {most}")


@passes_check("explains the layer that it is given", LAYERED, kinds={"explainer"})
def given_layer(case: Case) -> None:
    """It looks there and nowhere else, and its result says so."""
    for layer, grid in (("relu1", (16, 16)), ("relu2", (8, 8))):
        technique = case.subject.varied(case.technique, layer=layer)
        try:
            drove = case.drive(*_ready(case), technique=technique)
        except Unsuitable:
            continue
        looked = {name for looks in drove.rounds for look in looks for name in (*look.activations, *look.gradients)}
        require(looked <= {layer}, f"layer='{layer}' was asked; it looked at {sorted(looked)}")
        require(drove.result.over == layer, f"layer='{layer}' was asked; the result is over '{drove.result.over}'")
        shape = tuple(drove.result.values.shape[1:])
        require(len(shape) < 2 or shape[-2:] == grid, f"layer='{layer}' has the grid {grid}; the values are {shape}")


def _ready(case: Case) -> tuple[Any, Any]:
    """A model whose layers are found already, so that looking for them is not counted."""
    model, inputs = case.model(), case.inputs()
    if not case.table:
        engine = Engine(adapt(model))
        engine.find(make_sample(engine, inputs, list(TARGETS), case.seed)[0], "auto")
    return model, inputs


def _asked(case: Case, model: Any, inputs: Any) -> set[str]:
    rounds = case.drive(model, inputs, list(TARGETS)).rounds
    return {word for looks in rounds for look in looks for word in look.asks}


def _key(place: Sample | Derived) -> Any:
    return (id(place.sample), place.key) if isinstance(place, Derived) and place.key is not None else None


def _equal(one: Sample | Derived, other: Sample | Derived) -> bool:
    """Whether two places show the same rows to the model."""
    if isinstance(one, Derived) or isinstance(other, Derived):
        return _key(one) is not None and _key(one) == _key(other)
    pairs = list(zip(tensors_of(one.inputs), tensors_of(other.inputs), strict=True))
    return all(ours.shape == theirs.shape and torch.equal(ours, theirs) for ours, theirs in pairs)
