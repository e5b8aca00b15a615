"""The planner: drives many techniques in rounds and serves all looks of a round by the fewest passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pellucid.engine.batching import is_out_of_memory, release, rows_at_once
from pellucid.engine.passes import Engine, Taken
from pellucid.engine.station import Request, Station, classes_of, stations_of
from pellucid.errors import Interrupted, ModelError, ProtocolError, Unsuitable
from pellucid.protocol.leaves import tensors_of
from pellucid.protocol.look import Look, Looks, Seen, SeenTogether
from pellucid.protocol.sample import Sample

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows known of so far."""


@dataclass
class Cost:
    """What passes took, in rows (one example through the model once) and seconds."""

    forward: int = 0
    backward: int = 0
    calls: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Drive:
    """One technique at work.

    Attributes:
        generator: its passes.
        uses: what it declared to ask, or None where nothing is known of it.
        cost: what its looks would cost alone, and its share of the seconds.
    """

    generator: Generator[Look, Seen, Any]
    uses: frozenset[str] | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(eq=False)
class Outcome:
    """What a plan's run gave.

    Attributes:
        results: what each technique returned, by name.
        errors: the exceptions of those that failed.
        total: what the passes cost together; less than the sum of the techniques' costs where they shared.
    """

    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    total: Cost = field(default_factory=Cost)


@dataclass(eq=False)
class Planner:
    """Runs techniques on one model, round by round.

    In a round every technique that is not finished has yielded looks. Looks at the same sample become one forward pass
    and at most one backward pass for each target; looks at different samples that ask alike go through the model in
    the same batches.

    Attributes:
        engine: runs the passes.
        batch_size: rows at once, or "auto".
        progress: told of the rows that are done.
    """

    engine: Engine
    batch_size: int | str = "auto"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.adapter = self.engine.adapter
        self._bases: dict[int, tuple[Sample, Tensor]] = {}
        self._limit: int | None = None
        self._done = self._known = 0

    def run(self, drives: Mapping[str, Drive]) -> Outcome:
        """Drives all techniques to their ends.

        One technique's failure does not stop the others.

        Raises:
            Interrupted: at Ctrl-C; what had finished is in its `results`.
        """
        outcome = Outcome()
        pending: dict[str, Look] = {}
        try:
            for name in drives:
                self._advance(name, drives[name], None, pending, outcome)
            while pending:
                self._round(drives, pending, outcome)
        except KeyboardInterrupt:
            raise Interrupted(outcome.results) from None
        finally:
            for drive in drives.values():
                drive.generator.close()
        return outcome

    def _advance(self, name: str, drive: Drive, seen: Seen | None, pending: dict[str, Look], outcome: Outcome) -> None:
        """Sends a technique what it asked for, and takes its next look or its result."""
        watched = [(tensor, tensor._version) for tensor in _tensors_seen(seen)]
        started = time.perf_counter()
        try:
            look = drive.generator.send(seen)  # type: ignore[arg-type]
            _check_untouched(name, watched)
            self._check_look(name, drive, look)
            pending[name] = look
        except StopIteration as stop:
            try:
                _check_untouched(name, watched)
                outcome.results[name] = stop.value
            except ProtocolError as error:
                outcome.errors[name] = error
        except Exception as error:
            outcome.errors[name] = error
        finally:
            drive.cost.seconds += time.perf_counter() - started

    def _check_look(self, name: str, drive: Drive, look: Any) -> None:
        if not isinstance(look, Look):
            raise ProtocolError(f"technique '{name}' yielded a {type(look).__name__}; expected a Look")
        if drive.uses is not None and (undeclared := look.asks - drive.uses - {"outputs"}):
            raise ProtocolError(
                f"technique '{name}' asks for {sorted(undeclared)}, which its record does not declare; its "
                f"uses={sorted(drive.uses)}"
            )
        if missing := look.asks - self.adapter.offers:
            raise Unsuitable(
                f"technique '{name}' needs {sorted(missing)}, which {self.adapter.name} does not offer (it offers "
                f"{sorted(self.adapter.offers)}); techniques that run on it: pellucid.techniques(works_with=model)"
            )

    def base(self, sample: Sample) -> Tensor | None:
        """The outputs at a sample itself, where a predicted class made them known."""
        known = self._bases.get(id(sample))
        return None if known is None else known[1]

    def _classes(self, sample: Sample) -> Tensor | None:
        return classes_of(sample.target, self.base(sample), len(sample))

    def _round(self, drives: Mapping[str, Drive], pending: dict[str, Look], outcome: Outcome) -> None:
        """Serves all pending looks, then lets their techniques go on."""
        looks, requests = dict(pending), {}
        pending.clear()
        flat: list[Request] = []
        for name, look in looks.items():
            try:
                requests[name] = [Request(name, part, self.engine) for part in _flat(look)]
                flat.extend(requests[name])
            except Exception as error:
                drives[name].generator.close()
                outcome.errors[name] = error
        failed = self._serve(flat, drives, outcome)
        for name, own in requests.items():
            if name in failed:
                drives[name].generator.close()
                outcome.errors[name] = failed[name]
                continue
            seen = [replace(request.finish(), classes=self._classes(request.sample)) for request in own]
            self._advance(name, drives[name], _shaped(looks[name], iter(seen)), pending, outcome)

    def _serve(self, requests: list[Request], drives: Mapping[str, Drive], outcome: Outcome) -> dict[str, Exception]:
        """Runs the passes of a round; returns the exceptions of techniques whose looks could not be served."""
        failed: dict[str, Exception] = {}
        stations = stations_of(requests)
        # Predicted classes must be known before derived rows can be scored for them: stations at the samples
        # themselves go first, and what no look covers is looked at for its outputs alone.
        first = [station for station in stations if not any(True for _ in station.bases())]
        rest = [station for station in stations if any(True for _ in station.bases())]
        covered = {id(station.sample) for station in first if station.gives_base} | set(self._bases)
        wanted = {id(sample): sample for station in rest for sample in station.bases() if id(sample) not in covered}
        for group in ([*map(Station.outputs_only, wanted.values()), *first], rest):
            self._known += sum(station.rows for station in group)
            for alike in _alike(group):
                try:
                    self._run_alike(alike, drives, outcome)
                except Exception as error:
                    names = {request.name for station in alike for request in station.requests}
                    if len(names) > 1:
                        failed.update(self._alone(alike, drives, outcome))
                    elif names:
                        failed[names.pop()] = error
                    else:
                        return {request.name: error for request in requests}
            rest = [station for station in rest if all(id(base) in self._bases for base in station.bases())]
        return failed

    def _alone(self, stations: list[Station], drives: Mapping[str, Drive], outcome: Outcome) -> dict[str, Exception]:
        """After a failed shared pass: serves each technique by itself, so that only the guilty one fails."""
        failed: dict[str, Exception] = {}
        for name in dict.fromkeys(request.name for station in stations for request in station.requests):
            own = [request for station in stations for request in station.requests if request.name == name]
            for request in own:
                request.restart()
            try:
                for station in stations_of(own):
                    self._run_alike([station], drives, outcome)
            except Exception as error:
                failed[name] = error
        return failed

    def _run_alike(self, stations: list[Station], drives: Mapping[str, Drive], outcome: Outcome) -> None:
        """Runs stations that ask alike in common batches."""
        size = self._size(stations[0])
        batch: list[tuple[Station, int, int]] = []
        room = size
        for station in stations:
            start = 0
            while start < station.rows:
                stop = min(station.rows, start + room)
                batch.append((station, start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    self._run_batch(batch, drives, outcome)
                    batch, room = [], min(size, self._limit or size)
        if batch:
            self._run_batch(batch, drives, outcome)

    def _size(self, station: Station) -> int:
        gradients = station.wants_gradients
        inputs = tensors_of(station.sample.inputs)
        numel = sum(leaf[0].numel() for leaf in inputs)
        if isinstance(self.batch_size, int):
            size = self.batch_size
        else:
            # Finding the layers costs a pass, worth it only where there are many rows.
            many = station.rows > 8
            per_row = (
                self.engine.trace(station.sample.frame, station.sample.inputs, station.sample.frame.extras).bytes
                if many and "activations" in self.adapter.offers
                else 50 * numel * inputs[0].element_size()
            )
            size = rows_at_once(
                "auto", bytes_per_row=per_row, numel=numel, gradients=gradients, device=self.engine.device
            )
        return min(size, self._limit or size)

    def _run_batch(self, batch: list[tuple[Station, int, int]], drives: Mapping[str, Drive], outcome: Outcome) -> None:
        """Runs one batch; when the memory does not suffice, in halves."""
        rows = sum(stop - start for _, start, stop in batch)
        started = time.perf_counter()
        try:
            segments = [station.segment(start, stop, self._bases) for station, start, stop in batch]
            taken = self.engine.run(batch[0][0].sample.frame, segments, batch[0][0].places)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise ModelError(
                    "the memory does not suffice for a single example; use a smaller model or input"
                ) from error
            release(self.engine.device)
            self._limit = rows // 2
            halves = _halves(batch, self._limit)
        else:
            halves = []
        if halves:
            for half in halves:
                self._run_batch(half, drives, outcome)
            return
        seconds = time.perf_counter() - started
        self._account(batch, taken, seconds, drives, outcome)
        for (station, start, stop), segment, one in zip(batch, segments, taken, strict=True):
            station.deliver(segment, start, stop, one)
            if station.gives_base and one.logits is not None:
                self._keep_base(station, start, one.logits)
        self._done += rows
        if self.progress is not None:
            self.progress(self._done, self._known)

    def _keep_base(self, station: Station, start: int, logits: Tensor) -> None:
        key = id(station.sample)
        if start == 0:
            self._bases[key] = (station.sample, logits)
        else:
            self._bases[key] = (station.sample, torch.cat([self._bases[key][1][:start], logits]))

    def _account(
        self,
        batch: list[tuple[Station, int, int]],
        taken: list[Taken],
        seconds: float,
        drives: Mapping[str, Drive],
        outcome: Outcome,
    ) -> None:
        rows = sum(stop - start for _, start, stop in batch)
        outcome.total.calls += 1
        outcome.total.forward += rows
        outcome.total.backward += rows * taken[0].backwards
        outcome.total.seconds += seconds
        for station, start, stop in batch:
            for request in station.requests:
                cost = drives[request.name].cost
                cost.forward += stop - start
                cost.backward += (stop - start) * request.backwards
                cost.calls += 1
                cost.seconds += seconds * (stop - start) / rows / len(station.requests)


def _alike(stations: Iterable[Station]) -> list[list[Station]]:
    """Groups stations that can go through the model in one batch, in their order."""
    groups: dict[Any, list[Station]] = {}
    for station in stations:
        groups.setdefault(station.signature, []).append(station)
    return list(groups.values())


def _halves(batch: list[tuple[Station, int, int]], most: int) -> list[list[tuple[Station, int, int]]]:
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


def _flat(look: Look) -> Iterable[Look]:
    if isinstance(look, Looks):
        for part in look.parts:
            yield from _flat(part)
    else:
        yield look


def _shaped(look: Look, seen: Any) -> Seen:
    """What was seen, in the form of the look: nested where techniques run together."""
    if isinstance(look, Looks):
        parts = tuple(_shaped(part, seen) for part in look.parts)
        return SeenTogether(scores=parts[0].scores, parts=parts)
    return next(seen)  # type: ignore[no-any-return]


def _tensors_seen(seen: Seen | None) -> list[Tensor]:
    if seen is None:
        return []
    if isinstance(seen, SeenTogether):
        return [tensor for part in seen.parts for tensor in _tensors_seen(part)]
    values = [seen.scores, *seen.activations.values()]
    values += [tensor for gradient in seen.gradients.values() for tensor in tensors_of(gradient)]
    return [value for value in values if isinstance(value, Tensor)]


def _check_untouched(name: str, watched: list[tuple[Tensor, int]]) -> None:
    if any(tensor._version != version for tensor, version in watched):
        raise ProtocolError(
            f"technique '{name}' changed in place what it was shown, which other techniques share; clone it first"
        )
