"""Stations: all that is asked at one sample in one round, and how what is seen gets back to who asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.engine.outputs import by_draw, joined
from pellucid.engine.passes import Engine
from pellucid.engine.segment import INPUT, Scored, Segment, Taken
from pellucid.engine.watch import Place
from pellucid.errors import ParameterError, ProtocolError
from pellucid.protocol.derived import Derived
from pellucid.protocol.fold import Fold, Folding, Part
from pellucid.protocol.leaves import each, tensors_of
from pellucid.protocol.look import Look, Seen
from pellucid.protocol.sample import Sample
from pellucid.protocol.target import ClassLogit, FixedBy, Target


class Request:
    """One look with its layers found, and what has been gathered for it so far."""

    def __init__(self, name: str, look: Look, engine: Engine) -> None:
        if not isinstance(look.at, (Sample, Derived)):
            raise ProtocolError(f"technique '{name}' looks at a {type(look.at).__name__}; expected a Sample")
        if isinstance(look.at, Sample) and look.fold is not None:
            raise ProtocolError(f"technique '{name}' folds a plain sample, which has no derived axis to fold")
        if isinstance(look.activations, str) or isinstance(look.gradients, str):
            raise ParameterError("a look's activations and gradients are sequences of layer names, not one string")
        if INPUT in look.activations:
            raise ProtocolError(f"technique '{name}' asks for the activations of 'input', which are `sample.inputs`")
        if look.fold is not None and not isinstance(look.fold, Fold):
            raise ProtocolError(
                f"technique '{name}' folds by a {type(look.fold).__name__}; expected Mean, Moments or Sum"
            )
        if look.targets is not None and not look.targets:
            raise ProtocolError(f"technique '{name}' looks for an empty list of targets; None means the sample's own")
        if len(look.at) == 0:
            raise ProtocolError(f"technique '{name}' looks at a sample without examples")
        self.name = name
        self.look = look
        self.engine = engine
        self.sample = look.at.sample if isinstance(look.at, Derived) else look.at
        self.targets: tuple[Target, ...] = tuple(look.targets) if look.targets is not None else (self.sample.target,)
        for target in look.targets or ():
            target.check(len(self.sample))
        self.restart()

    def restart(self) -> None:
        """Finds the layers, and forgets what was gathered."""
        look, at = self.look, self.look.at
        layers = [layer for layer in (*look.activations, *look.gradients) if layer != INPUT]
        self.places = {layer: self.engine.find(self.sample, layer) for layer in layers}
        self.target_places = [
            {layer: self.engine.find(self.sample, layer) for layer in target.layers} for target in self.targets
        ]
        self.by = tuple(layer if layer == INPUT else self.places[layer] for layer in dict.fromkeys(look.gradients))
        self.folding: Folding | None = None
        if self.look.fold is not None and isinstance(at, Derived):
            self.folding = self.look.fold.start(at.n, len(self.sample))
        self.parts: list[dict[str, Any]] = []
        self.scores: list[list[Tensor]] = []
        self.rows: list[int] = []

    @property
    def backwards(self) -> int:
        """How many backward passes the look needs."""
        return len(self.targets) if self.by else 0

    def take(self, segment: Segment, taken: Taken, which: list[int]) -> None:
        """Gathers what one pass saw of this look's rows; `which` are its targets among the station's."""
        self.scores.append([taken.scores[index] for index in which])
        self.rows.append(segment.rows)
        activations = {layer: taken.activations[self.places[layer]] for layer in self.look.activations}
        gradients = {}
        for layer, by in zip(dict.fromkeys(self.look.gradients), self.by, strict=True):
            several = [taken.gradients[index][by] for index in which]
            gradients[layer] = several[0] if self.look.targets is None else _stacked(several, dim=1)
        outputs = taken.raw if self.look.outputs else None
        if self.folding is None:
            self.parts.append({"outputs": outputs, "activations": activations, "gradients": gradients})
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

        scores = put_together([torch.stack(one, dim=1) for one in self.scores], targets=True)
        if not several:
            scores = scores[0]
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
        else:
            found = self.folding.finish()
            for reduced in (found, found.get("spread") or {}):
                if several and "gradients" in reduced:
                    reduced["gradients"] = {
                        k: each(lambda leaf: torch.movedim(leaf, 1, 0), g) for k, g in reduced["gradients"].items()
                    }
        return Seen(scores=scores, layers={name: place.layer for name, place in self.places.items()}, **found)


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
        return isinstance(self.at, Sample) and any(scored.target.base(self.at) is self.at for scored in self.targets)

    def bases(self) -> Iterable[Sample]:
        """The samples whose outputs must be known first."""
        for scored in self.targets:
            base = scored.target.base(self.sample)
            if base is not None and base is not self.at:
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
        return (form, extras, sample.frame.build, self.places, asks, self.wants_gradients, alone)

    def segment(self, start: int, stop: int, bases: dict[int, tuple[Sample, Tensor]]) -> Segment:
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
            elif needed is at:
                base.append("here")
            else:
                base.append(bases[id(needed)][1])
        return Segment(inputs, extras, examples, self.targets, tuple(base), draws)

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
        groups.setdefault(key, []).append(request)
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


def classes_of(target: Target, base: Tensor | None, examples: int) -> Tensor | None:
    """The class of each example, where the target is one; the predicted ones need the outputs at the sample."""
    if isinstance(target, FixedBy):
        return None
    if not isinstance(target, ClassLogit) or (target.classes is None and (base is None or base.dim() < 2)):
        return None
    from pellucid.protocol.target import Score

    return target.of(Score(None, lambda: torch.empty(0), torch.arange(examples), base=base)).cpu()
