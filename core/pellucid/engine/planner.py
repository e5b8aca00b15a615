"""The planner: drives many techniques in rounds and serves all looks of a round by the fewest passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pellucid.engine.batching import is_out_of_memory, release, rows_at_once
from pellucid.engine.drive import Drive, Outcome
from pellucid.engine.outputs import tensors_in
from pellucid.engine.passes import Engine
from pellucid.engine.rulepass import rule_pass
from pellucid.engine.segment import Taken
from pellucid.engine.station import Request, Station, alike, classes_of, halves, stations_of
from pellucid.engine.watch import ControlFlowChanged, versions_of
from pellucid.errors import Interrupted, ModelError, ProtocolError, Unsuitable
from pellucid.protocol.leaves import tensors_of
from pellucid.protocol.look import Look, Looks, Seen, SeenTogether
from pellucid.protocol.sample import Sample

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows known of so far."""


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
        sample: what all techniques share, whose inputs none may change.
    """

    engine: Engine
    batch_size: int | str = "auto"
    progress: Progress | None = None
    sample: Sample | None = None

    def __post_init__(self) -> None:
        self.adapter = self.engine.adapter
        # What a data set gives is read anew for each run, so that a change of it can reach no user's tensor.
        held = None if self.sample is None else self.sample.held
        self._inputs = () if held is None else tuple(tensors_of(held))
        self._inputs_before = [tensor._version for tensor in self._inputs]
        self._pristine: list[Tensor] = []
        # Of samples that are gone nobody asks any more: a data set's parts are not kept for their outputs' sake.
        self._bases: WeakKeyDictionary[Sample, Tensor] = WeakKeyDictionary()
        self._parts: dict[int, list[Tensor]] = {}
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
        if len(drives) > 1:  # one alone can spoil nobody's inputs, so that a large data set is not copied for it
            self._pristine = [tensor.clone() for tensor in self._inputs]
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
        watched = _versions(seen)
        started = time.perf_counter()
        try:
            ended, made = _sent(drive.generator, seen)
            if self._restored() or _versions(seen) != watched:
                raise ProtocolError(
                    f"technique '{name}' changed in place what it was shown, which other techniques share; clone it "
                    "first"
                )
            if ended:
                outcome.results[name] = made
            else:
                self._check_look(name, drive, made)
                pending[name] = made
        except Exception as error:
            self._restored()
            drive.generator.close()
            outcome.errors[name] = error
        finally:
            drive.cost.seconds += time.perf_counter() - started

    def _restored(self) -> bool:
        """Puts the inputs that several share back where one changed them in place, and says whether one did."""
        if [tensor._version for tensor in self._inputs] == self._inputs_before:
            return False
        for tensor, before in zip(self._inputs, self._pristine, strict=False):
            tensor.copy_(before)
        self._inputs_before = [tensor._version for tensor in self._inputs]
        return True

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
        return self._bases.get(sample)

    def _classes(self, sample: Sample) -> Tensor | None:
        return classes_of(sample, self.base)

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
        try:
            failed = self._serve(flat, drives, outcome)
        except KeyboardInterrupt:
            # Who has been shown all that was asked may finish; in a long round the cheap ones were served first.
            for name, own in requests.items():
                if all(request.served for request in own) and (one := self._finished(own, looks[name], {})) is not None:
                    self._advance(name, drives[name], one, pending, outcome)
            raise
        seen = {name: self._finished(own, looks[name], failed) for name, own in requests.items()}
        before = {name: _versions(one) for name, one in seen.items()}
        for name, own in requests.items():
            if _versions(seen[name]) != before[name]:
                # Another technique changed in place what both were shown: it failed, this one looks again.
                failed.update(self._alone(own, drives, outcome))
                seen[name] = self._finished(own, looks[name], failed)
            one = seen.pop(name)
            if one is None:
                drives[name].generator.close()
                outcome.errors[name] = failed[name]
            else:
                self._advance(name, drives[name], one, pending, outcome)

    def _finished(self, own: list[Request], look: Look, failed: dict[str, Exception]) -> Seen | None:
        """What a technique is sent, or None where it failed."""
        name = own[0].name
        if name in failed:
            return None
        try:
            seen = [replace(request.finish(), classes=self._classes(request.sample)) for request in own]
        except Exception as error:
            failed[name] = error
            return None
        return _shaped(look, iter(seen))

    def _serve(self, requests: list[Request], drives: Mapping[str, Drive], outcome: Outcome) -> dict[str, Exception]:
        """Runs the passes of a round; returns the exceptions of techniques whose looks could not be served."""
        failed: dict[str, Exception] = {}
        stations = stations_of(requests)
        # Predicted classes must be known before derived rows can be scored for them: stations at the samples
        # themselves go first, and what no look covers is looked at for its outputs alone.
        first = [station for station in stations if not any(True for _ in station.bases())]
        rest = [station for station in stations if any(True for _ in station.bases())]
        covered = {id(station.sample) for station in first if station.gives_base}
        self._run_group([*self._missing(rest, covered), *first], failed, drives, outcome)
        try:
            # A station that should have shown a sample's outputs may have failed for reasons of its own.
            for station in self._missing(rest, set()):
                self._run_alike([station], drives, outcome)
        except Exception as error:
            lost = [station for station in rest if self._missing([station], set())]
            failed.update({request.name: error for station in lost for request in station.requests})
            rest = [station for station in rest if station not in lost]
        self._run_group(rest, failed, drives, outcome)
        return failed

    def _missing(self, stations: list[Station], covered: set[int]) -> list[Station]:
        """Stations for the outputs at samples that others need, where nothing else shows them."""
        wanted = {id(sample): sample for station in stations for sample in station.bases()}
        return [Station(wanted[key], []) for key in wanted if key not in covered and wanted[key] not in self._bases]

    def _run_group(
        self, stations: list[Station], failed: dict[str, Exception], drives: Mapping[str, Drive], outcome: Outcome
    ) -> None:
        self._known += sum(station.rows for station in stations)
        # Those of few rows first, so that their techniques are not lost when a long round is interrupted.
        for group in alike(sorted(stations, key=lambda station: station.rows)):
            try:
                self._run_alike(group, drives, outcome)
            except Exception as error:
                self._restored()
                requests = [request for station in group for request in station.requests]
                if isinstance(error, ControlFlowChanged):
                    self.engine.forget()
                elif len({request.name for request in requests}) < 2:
                    failed.update({request.name: error for request in requests})
                    continue
                failed.update(self._alone(requests, drives, outcome))

    def _alone(self, requests: list[Request], drives: Mapping[str, Drive], outcome: Outcome) -> dict[str, Exception]:
        """After a failed shared pass: serves each technique by itself, so that only the guilty one fails."""
        failed: dict[str, Exception] = {}
        for name in dict.fromkeys(request.name for request in requests):
            own = [request for request in requests if request.name == name]
            try:
                for request in own:
                    request.restart()
                for station in stations_of(own):
                    self._run_alike([station], drives, outcome)
            except Exception as error:
                self._restored()
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
                "auto",
                bytes_per_row=per_row * (1 if station.reference is None else 2),
                numel=numel,
                gradients=gradients,
                device=self.engine.device,
            )
        return min(size, self._limit or size)

    def _run_batch(self, batch: list[tuple[Station, int, int]], drives: Mapping[str, Drive], outcome: Outcome) -> None:
        """Runs one batch; when the memory does not suffice, in halves."""
        rows = sum(stop - start for _, start, stop in batch)
        started = time.perf_counter()
        try:
            segments = [station.segment(start, stop, self._bases) for station, start, stop in batch]
            first = batch[0][0]
            if first.rules is None:
                taken = self.engine.run(first.sample.frame, segments, first.places, first.weights)
            else:
                taken = [rule_pass(self.engine, first.sample.frame, segments[0], first.places, first.rules)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise ModelError(
                    "the memory does not suffice for a single example; use a smaller model or input"
                ) from error
            release(self.engine.device)
            self._limit = rows // 2
            smaller = halves(batch, self._limit)
        else:
            smaller = []
        if smaller:
            for half in smaller:
                self._run_batch(half, drives, outcome)
            return
        seconds = time.perf_counter() - started
        self._account(batch, taken, seconds, drives, outcome)
        for (station, start, stop), segment, one in zip(batch, segments, taken, strict=True):
            station.deliver(segment, start, stop, one)
            if station.gives_base and one.logits is not None:
                self._keep_base(station, start, stop, one.logits)
        self._done += rows
        if self.progress is not None:
            self.progress(self._done, self._known)

    def _keep_base(self, station: Station, start: int, stop: int, logits: Tensor) -> None:
        """Keeps the outputs at a sample; they are known when all its rows are."""
        key = id(station.sample)
        parts = self._parts.setdefault(key, [])
        if start == 0:
            parts.clear()
        parts.append(logits)
        if stop == station.rows:
            self._bases[station.sample] = torch.cat(self._parts.pop(key))

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
        outcome.total.forward += rows * taken[0].forwards
        outcome.total.backward += rows * taken[0].backwards
        outcome.total.seconds += seconds
        for station, start, stop in batch:
            backwards: dict[str, int] = {}
            for request in station.requests:
                backwards[request.name] = max(backwards.get(request.name, 0), request.backwards)
            for name, passes in backwards.items():
                cost = drives[name].cost
                cost.forward += (stop - start) * taken[0].forwards
                cost.backward += (stop - start) * passes
                cost.calls += 1
                cost.seconds += seconds * (stop - start) / rows / len(backwards)


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


def _sent(generator: Generator[Look, Seen, Any], seen: Seen | None) -> tuple[bool, Any]:
    """Whether a technique ended at what it was sent, and its result or its next look."""
    try:
        return False, generator.send(seen)  # type: ignore[arg-type]
    except StopIteration as stop:
        return True, stop.value


def _versions(seen: Seen | None) -> list[int]:
    """How often each tensor was changed in place: techniques share them."""
    return versions_of(list(tensors_in(seen)))
