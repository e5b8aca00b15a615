"""Stations: all that is asked at one sample in one round, and how what is seen gets back to who asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.engine.factors import Parameters
from pellucid.engine.outputs import by_draw, joined
from pellucid.engine.passes import Engine
from pellucid.engine.segment import INPUT, By, Scored, Segment, Taken
from pellucid.engine.watch import Place
from pellucid.errors import ParameterError, ProtocolError
from pellucid.protocol.blocks import settings
from pellucid.protocol.derived import Derived
from pellucid.protocol.factors import Factors
from pellucid.protocol.fold import Fold, Folding, Part
from pellucid.protocol.leaves import each, tensors_of
from pellucid.protocol.look import Look, Seen
from pellucid.protocol.sample import Sample
from pellucid.protocol.target import ClassLogit, FixedBy, Score, Target
from pellucid.rules.ledger import Ledger
from pellucid.rules.rule import RuleSet


class Request:
    """One look with its layers found, and what has been gathered for it so far."""

    def __init__(self, name: str, look: Look, engine: Engine) -> None:
        if not isinstance(look.at, (Sample, Derived)):
            raise ProtocolError(f"technique '{name}' looks at a {type(look.at).__name__}; expected a Sample")
        if isinstance(look.at, Sample) and look.fold is not None:
            raise ProtocolError(f"technique '{name}' folds a plain sample, which has no derived axis to fold")
        if any(isinstance(names, str) for names in (look.activations, look.gradients, look.factors)):
            raise ParameterError("a look's activations, gradients and factors are sequences of names, not one string")
        if look.factors and isinstance(look.at, Derived):
            raise ProtocolError(f"technique '{name}' asks for factors at a derived sample; expected a plain one")
        if INPUT in look.activations:
            raise ProtocolError(f"technique '{name}' asks for the activations of 'input', which are `sample.inputs`")
        if look.fold is not None and not isinstance(look.fold, Fold):
            raise ProtocolError(
                f"technique '{name}' folds by a {type(look.fold).__name__}; expected Mean, Moments or Sum"
            )
        if look.targets is not None and not look.targets:
            raise ProtocolError(f"technique '{name}' looks for an empty list of targets; None means the sample's own")
        _check_rules(name, look)
        if len(look.at) == 0:
            raise ProtocolError(f"technique '{name}' looks at a sample without examples")
        self.name = name
        self.look = look
        self.engine = engine
        self.sample = look.at.sample if isinstance(look.at, Derived) else look.at
        self.targets: tuple[Target, ...] = tuple(look.targets) if look.targets is not None else (self.sample.target,)
        for target in look.targets or ():
            target.check(len(self.sample))
        self.settings = settings(engine.module) if look.digest else {}
        self.restart()

    def restart(self) -> None:
        """Finds the layers, and forgets what was gathered."""
        look, at = self.look, self.look.at
        layers = [layer for layer in (*look.activations, *look.gradients) if layer != INPUT]
        self.places = {layer: self.engine.find(self.sample, layer) for layer in layers}
        self.target_places = [
            {layer: self.engine.find(self.sample, layer) for layer in target.layers} for target in self.targets
        ]
        self.by: tuple[By, ...] = tuple(
            layer if layer == INPUT else self.places[layer] for layer in dict.fromkeys(look.gradients)
        )
        self.parameters = Parameters(tuple(look.factors)) if look.factors else None
        if self.parameters is not None:
            self.by += (self.parameters,)
        self.folding: Folding | None = None
        if self.look.fold is not None and isinstance(at, Derived):
            self.folding = self.look.fold.start(at.n, len(self.sample))
        self.parts: list[dict[str, Any]] = []
        self.scores: list[list[Tensor]] = []
        self.reference_scores: list[list[Tensor]] = []
        self.rows: list[int] = []
        self.ledgers: list[list[Ledger | None]] = []

    @property
    def served(self) -> bool:
        """Whether all rows of the look were seen."""
        return sum(self.rows) == len(self.look.at)

    @property
    def backwards(self) -> int:
        """How many backward passes the look needs."""
        return len(self.targets) if self.by else 0

    def take(self, segment: Segment, taken: Taken, which: list[int]) -> None:
        """Gathers what one pass saw of this look's rows; `which` are its targets among the station's."""
        self.scores.append([taken.scores[index] for index in which])
        if taken.reference_scores:
            self.reference_scores.append([taken.reference_scores[index] for index in which])
        self.rows.append(segment.rows)
        if taken.ledgers:
            self.ledgers.append([taken.ledgers[index] for index in which])
        activations = {layer: taken.activations[self.places[layer]] for layer in self.look.activations}
        gradients = {}
        for layer, by in zip(dict.fromkeys(self.look.gradients), self.by, strict=False):
            several = [taken.gradients[index][by] for index in which]
            gradients[layer] = several[0] if self.look.targets is None else _stacked(several, dim=1)
        outputs = taken.raw if self.look.outputs else None
        if self.folding is None:
            part = {"outputs": outputs, "activations": activations, "gradients": gradients}
            if self.parameters is not None:
                part["factors"] = [taken.gradients[index][self.parameters] for index in which]
            self.parts.append(part)
            return
        score = self.scores[-1][0] if self.look.targets is None else torch.stack(self.scores[-1], dim=1)
        self.folding.add(Part(segment.draws, segment.examples, segment.inputs, score, outputs, activations, gradients))

    def finish(self) -> Seen:
        """Puts what was gathered together."""
        at = self.look.at
        n = at.n if isinstance(at, Derived) else None
        several = self.look.targets is not None

        def put_together(rows: list[Any], targets: bool = False) -> Any:
            if rows[0] is None:
                return None
            whole = joined(rows, self.rows)
            if n is not None:
                whole = by_draw(whole, n, sum(self.rows))
            if targets:
                axis = 1 if n is None else 2
                whole = each(lambda leaf: torch.movedim(leaf, axis, 0), whole)
            return whole

        def all_scores(rows: list[list[Tensor]]) -> Any:
            scores = put_together([torch.stack(one, dim=1) for one in rows], targets=True) if rows else None
            return scores if several or scores is None else scores[0]

        if self.folding is None:
            found: dict[str, Any] = {
                "outputs": put_together([part["outputs"] for part in self.parts]),
                "activations": {
                    k: put_together([p["activations"][k] for p in self.parts]) for k in self.look.activations
                },
                "gradients": {
                    k: put_together([p["gradients"][k] for p in self.parts], several) for k in self.look.gradients
                },
            }
            if self.parameters is not None:
                factors = tuple(Factors.cat(one) for one in zip(*(part["factors"] for part in self.parts), strict=True))
                found["factors"] = factors if several else factors[0]
        else:
            found = self.folding.finish()
            for reduced in (found, found.get("spread") or {}):
                if several and "gradients" in reduced:
                    reduced["gradients"] = {
                        k: each(lambda leaf: torch.movedim(leaf, 1, 0), g) for k, g in reduced["gradients"].items()
                    }
        layers = {name: place.layer for name, place in self.places.items()}
        return Seen(
            scores=all_scores(self.scores),
            layers=layers,
            ledger=self._ledger(n),
            reference_scores=all_scores(self.reference_scores),
            digest=self.engine.digest(self.settings, self.look.weights) if self.look.digest else "",
            **found,
        )

    def _ledger(self, draws: int | None) -> Ledger | None:
        """What a rule pass carried, for all batches and targets."""
        if not self.ledgers or self.ledgers[0][0] is None:
            return None
        by_target = [
            Ledger.joined([one for one in batches if one is not None]) for batches in zip(*self.ledgers, strict=True)
        ]
        return Ledger.of(by_target, several=self.look.targets is not None, draws=draws)


def _check_rules(name: str, look: Look) -> None:
    """Refuses a reference that does not fit, or none where the rules need one."""
    rules, reference, at = look.rules, look.reference, look.at
    if rules is None:
        if reference is not None:
            raise ProtocolError(f"technique '{name}' names a reference without rules that would compare with it")
        return
    if not isinstance(rules, RuleSet):
        raise ProtocolError(f"technique '{name}' looks by rules that are a {type(rules).__name__}; expected a RuleSet")
    if look.factors:
        raise ProtocolError(
            f"technique '{name}' asks for factors by rules; they are gradients by parameters, which rules do not "
            "carry: yield a look of their own for them, side by side with `together`"
        )
    if look.weights is not None:
        raise ProtocolError(
            f"technique '{name}' asks for other weights together with rules; a captured graph holds the model's own: "
            "load the weights into the model and explain it"
        )
    if rules.needs_reference and reference is None:
        raise ProtocolError(f"the rule set '{rules.name}' compares with a reference; give Look(..., reference=sample)")
    if reference is None:
        return
    if not rules.needs_reference:
        raise ProtocolError(f"the rule set '{rules.name}' compares with no reference, and was given one")
    plain = isinstance(reference, Sample)
    base = reference if isinstance(reference, Sample) else reference.sample
    sample = at if isinstance(at, Sample) else at.sample
    if len(base) != len(sample) or (not plain and (isinstance(at, Sample) or reference.n != at.n)):  # type: ignore[union-attr]
        raise ParameterError(
            f"the reference has {len(reference)} rows for {len(at)}; expected a sample of {len(sample)} examples, or "
            "one derived with as many draws as what is looked at"
        )
    if plain:
        forms = [[tuple(leaf.shape) for leaf in tensors_of(one.inputs)] for one in (base, sample)]
        if forms[0] != forms[1]:
            raise ParameterError(f"the reference has inputs of shape {forms[0]}; expected {forms[1]}")


def _stacked(several: list[Any], dim: int) -> Any:
    return each(lambda *leaves: torch.stack(leaves, dim=dim), *several)


@dataclass(eq=False)
class Station:
    """All that is asked at one sample, or at one derived sample, in one round.

    Attributes:
        at: what the model is shown.
        requests: who asks; nobody where the outputs at a sample are needed for its predicted classes.
    """

    at: Sample | Derived
    requests: list[Request]

    def __post_init__(self) -> None:
        self.sample = self.at.sample if isinstance(self.at, Derived) else self.at
        self.rows = len(self.at)
        look = self.requests[0].look if self.requests else None
        self.weights = None if look is None else look.weights
        self.rules = None if look is None else look.rules
        self.reference = None if look is None else look.reference
        self._gather()

    def _gather(self) -> None:
        targets: list[Target] = []
        by: list[set[Any]] = []
        layers: list[dict[str, Place]] = []
        for request in self.requests:
            for target, places in zip(request.targets, request.target_places, strict=True):
                index = next((i for i, known in enumerate(targets) if known is target), None)
                if index is None:
                    targets.append(target)
                    by.append(set())
                    layers.append(places)
                    index = len(targets) - 1
                by[index].update(request.by)
        if not self.requests:
            targets, by, layers = [ClassLogit()], [set()], [{}]
        self.targets = tuple(
            Scored(target, places, tuple(one)) for target, places, one in zip(targets, layers, by, strict=True)
        )
        wanted = [place for request in self.requests for place in request.places.values()]
        wanted += [place for places in layers for place in places.values()]
        self.places = tuple(dict.fromkeys(wanted))

    @property
    def wants_gradients(self) -> bool:
        """Whether a backward pass is needed."""
        return any(scored.by for scored in self.targets)

    @property
    def gives_base(self) -> bool:
        """Whether its passes show a sample's own outputs, by which predicted classes are known."""
        own = isinstance(self.at, Sample) and self.weights is None
        return own and any(scored.target.base(self.sample) is self.at for scored in self.targets)

    def bases(self) -> Iterable[Sample]:
        """The samples whose outputs must be known first."""
        for scored in self.targets:
            base = scored.target.base(self.sample)
            if base is not None and (base is not self.at or self.weights is not None):
                yield base

    @property
    def signature(self) -> Any:
        """Stations with equal signatures can share a batch."""
        sample = self.sample
        form = tuple((tuple(leaf.shape[1:]), leaf.dtype) for leaf in tensors_of(sample.inputs))
        extras = tuple((name, tuple(extra.shape[1:])) for name, extra in sample.frame.extras.items())
        asks = frozenset((index, by) for index, scored in enumerate(self.targets) for by in scored.by)
        # Several targets mean several backward passes, which only the rows that asked for them should pay.
        alone = id(self) if len(self.targets) > 1 else None
        lent = id(self.weights)
        if self.rules is not None:
            return (id(self),)  # the ledger's sums are of one sample
        return (form, extras, sample.frame.build, self.places, asks, self.wants_gradients, alone, lent)

    def segment(self, start: int, stop: int, bases: Mapping[Sample, Tensor]) -> Segment:
        """Makes some of the rows, with what their targets need."""
        index = torch.arange(start, stop)
        count = len(self.sample)
        draws, examples = index // count, index % count
        at = self.at
        inputs = at.rows(draws, examples) if isinstance(at, Derived) else each(lambda leaf: leaf[start:stop], at.inputs)
        extras = {name: extra[examples.to(extra.device)] for name, extra in self.sample.frame.extras.items()}
        base: list[Tensor | str | None] = []
        for scored in self.targets:
            needed = scored.target.base(self.sample)
            if needed is None:
                base.append(None)
            elif needed is at and self.weights is None:
                base.append("here")
            else:
                base.append(bases[needed])
        derived = isinstance(at, Derived)
        reference = self._reference(draws, examples)
        return Segment(inputs, extras, examples, self.targets, tuple(base), draws, derived, reference)

    def _reference(self, draws: Tensor, examples: Tensor) -> Any:
        """The reference of some rows."""
        if isinstance(self.reference, Derived):
            return self.reference.rows(draws, examples)
        if self.reference is None:
            return None
        return each(lambda leaf: leaf[examples.to(leaf.device)], self.reference.inputs)

    def deliver(self, segment: Segment, start: int, stop: int, taken: Taken) -> None:
        """Hands what a pass saw to all who asked."""
        order = [scored.target for scored in self.targets]
        for request in self.requests:
            which = [next(i for i, known in enumerate(order) if known is target) for target in request.targets]
            request.take(segment, taken, which)


def stations_of(requests: Iterable[Request]) -> list[Station]:
    """Groups looks at the same sample; derived samples are the same when their keys are."""
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        at = request.look.at
        if isinstance(at, Derived):
            key: Any = (id(at.sample), at.key) if at.key is not None else id(at)
        else:
            key = id(at)
        look = request.look
        groups.setdefault((key, id(look.weights), id(look.rules), id(look.reference)), []).append(request)
    return [Station(group[0].look.at, group) for group in groups.values()]


def alike(stations: Iterable[Station]) -> list[list[Station]]:
    """Groups stations that can go through the model in one batch, in their order."""
    groups: dict[Any, list[Station]] = {}
    for station in stations:
        groups.setdefault(station.signature, []).append(station)
    return list(groups.values())


def halves(batch: list[tuple[Station, int, int]], most: int) -> list[list[tuple[Station, int, int]]]:
    """The same rows in batches of at most `most`."""
    small: list[list[tuple[Station, int, int]]] = [[]]
    room = most
    for station, start, stop in batch:
        while start < stop:
            if room == 0:
                small.append([])
                room = most
            end = min(stop, start + room)
            small[-1].append((station, start, end))
            room -= end - start
            start = end
    return small


def classes_of(sample: Sample, base: Callable[[Sample], Tensor | None]) -> Tensor | None:
    """The class of each example, where the target is one.

    Args:
        sample: its target may be fixed by another sample, whose classes are meant then.
        base: the outputs at a sample itself, where they are known; predicted classes need them.
    """
    target: Target = sample.target
    rows = torch.arange(len(sample))
    if isinstance(target, FixedBy):
        sample, rows, target = target.origin, target.rows, target.target
    if not isinstance(target, ClassLogit):
        return None
    known = base(sample)
    if target.classes is None and (known is None or known.dim() < 2):
        return None
    return target.of(Score(None, lambda: torch.empty(0), rows, base=known)).cpu()
