"""A run: techniques on a model under the guard, from the user's inputs to finished results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pellucid.adapter import Adapter
from pellucid.engine.batching import check_batch_size
from pellucid.engine.drive import Cost, Drive, Outcome
from pellucid.engine.finish import Finisher
from pellucid.engine.guard import guarded
from pellucid.engine.inputs import make_sample
from pellucid.engine.optimize import optimise
from pellucid.engine.parts import Parts, parts_of
from pellucid.engine.passes import Engine
from pellucid.engine.planner import Planner, Progress
from pellucid.engine.segment import INPUT
from pellucid.engine.station import classes_of
from pellucid.errors import InputError, Interrupted, ParameterError, Unsuitable
from pellucid.protocol.explainer import Explainer, Passes, as_passes
from pellucid.protocol.sample import Sample
from pellucid.registry import Technique, registry
from pellucid.results import Check, Explanation


@dataclass(eq=False)
class Run:
    """One run of techniques on a model, as the hook `pellucid_run` sees it.

    Attributes:
        adapter: the model.
        techniques: what runs, by the names of the results.
        inputs: as the user gave them.
        target: as the user gave it.
        work: makes each technique's passes, from its name, the technique and the sample.
        batch_size: rows at once, or "auto".
        seed: what every random draw depends on.
        progress: told of the rows that are done.
        device: where the model runs, or None for where it is.
        total: what the passes cost together, once it has run.
    """

    adapter: Adapter
    techniques: Mapping[str, Any]
    inputs: Any
    target: Any = None
    work: Callable[[str, Any, Sample], Any] = lambda _, technique, sample: technique.explain(sample)
    batch_size: int | str = "auto"
    seed: int = 0
    progress: Progress | None = None
    device: torch.device | str | None = None
    total: Cost = field(default_factory=Cost)

    def start(self) -> Outcome:
        """Runs within the hook `pellucid_run`, so that plugins can surround it."""
        check_batch_size(self.batch_size)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise ParameterError(f"seed={self.seed!r}: expected an integer from 0 to 2**63 - 1")
        return registry().hook.pellucid_run(run=self)  # type: ignore[no-any-return]

    def execute(self) -> Outcome:
        """Does the run; nothing of the model or the process is changed afterwards."""
        module = self.adapter.module
        with ExitStack() as stack:
            # The run's own modes come before anything is made, so that no tensor is bound to inference mode.
            parts = parts_of(module)
            trained = stack.enter_context(guarded(module, self.seed, parts))
            if self.device is not None:
                device = _device(self.device)
                stack.callback(module.to, Engine(self.adapter, parts).device)
                module.to(device)
                parts = parts_of(module)  # moving a model exchanges its buffers
            return self._execute(parts, trained)

    def _execute(self, parts: Parts, trained: bool) -> Outcome:
        engine = Engine(self.adapter, parts)
        _ = parts.state  # what is explained is the model as it is now
        sample, notes = make_sample(engine, self.inputs, self.target, self.seed)
        if trained:
            notes.append("the model was in train mode; it was explained in eval mode and put back")
        if mixing := _using_batch(parts):
            notes.append(
                f"'{mixing[0]}' normalises by the statistics of the batch, so that an explanation depends on the "
                "examples that go through the model together, and on batch_size"
            )
        # The gradients by folded parameters are not those by the model's own.
        own = any("factors" in (uses_of(technique) or ()) for technique in self.techniques.values())
        if own and self.adapter.optimize:
            notes.append("optimize=True was left aside, since a technique looks at the parameters themselves")
        checks = (optimise(engine, sample, self._layers_named()),) if self.adapter.optimize and not own else ()
        planner = Planner(engine, self.batch_size, self.progress, sample)
        drives = {
            name: Drive(self._passes(name, technique, sample), uses_of(technique))
            for name, technique in self.techniques.items()
        }
        try:
            outcome = planner.run(drives)
        except Interrupted as interrupt:
            kept = Outcome(dict(interrupt.results))
            raise Interrupted(self._finished(kept, engine, planner, sample, drives, (notes, checks)).results) from None
        self.total = outcome.total
        return self._finished(outcome, engine, planner, sample, drives, (notes, checks))

    def _passes(self, name: str, technique: Any, sample: Sample) -> Passes[Any]:
        """A technique's passes; one without `yield` does its work at the first step, so that its failure is its own."""
        return (yield from as_passes(self.work(name, technique, sample)))

    def _finished(
        self,
        outcome: Outcome,
        engine: Engine,
        planner: Planner,
        sample: Sample,
        drives: Mapping[str, Drive],
        found: tuple[Sequence[str], tuple[Check, ...]],
    ) -> Outcome:
        """Fills in what the core knows of the explanations; `found` are the run's notes and certificates."""
        given = next(iter(self.inputs.values())) if isinstance(self.inputs, Mapping) else self.inputs
        given = given[0] if isinstance(given, (tuple, list)) and given else given
        notes, checks = found
        finisher = Finisher(
            self.adapter,
            engine.own,
            sample,
            classes_of(sample, planner.base),
            (*self.adapter.notes, *notes),
            checks,
            given.device if isinstance(given, Tensor) else torch.device("cpu"),
        )
        for name, result in list(outcome.results.items()):
            if not isinstance(result, Explanation) and getattr(self.techniques[name], "technique", None) is None:
                continue  # what has no record may return anything, as the core's own looks at outputs do
            try:
                layer = self._layer(engine, sample, self.techniques[name], result)
                outcome.results[name] = finisher.finish(
                    result, self.techniques[name], drives[name].cost, layer=layer, shared=len(drives) > 1
                )
            except Exception as error:
                del outcome.results[name]
                outcome.errors[name] = error
        return outcome

    @staticmethod
    def _layer(engine: Engine, sample: Sample, technique: Any, result: Explanation) -> str | None:
        """The layer that a result is over, where its technique was told one; "auto" is recorded by the name found."""
        over = getattr(result, "over", None)
        if over is None or over == INPUT or over not in _layers_of(technique):
            return None
        return engine.find(sample.part(0, 1), over).layer.name

    def _layers_named(self) -> frozenset[str]:
        """The texts among the techniques' parameters, some of which name layers."""
        texts = [value for technique in self.techniques.values() for value in technique.get_params().values()]
        return frozenset(text.partition(":")[0] for text in texts if isinstance(text, str))


def _using_batch(parts: Parts) -> list[str]:
    """The modules that normalise by the statistics of the batch, also in eval mode."""
    norms = {kind for kind in parts.kinds if issubclass(kind, _BatchNorm)}
    named = parts.modules.items()
    return [name for name, part in named if type(part) in norms and part._buffers.get("running_mean") is None]


def _layers_of(technique: Any) -> set[Any]:
    """The layers that a technique was told, itself or through those it is composed of."""
    parameters = technique.get_params()
    inner = (_layers_of(value) for value in parameters.values() if isinstance(value, Explainer))
    return {parameters.get("layer")}.union(*inner)


def _device(device: torch.device | str) -> torch.device:
    try:
        made = torch.device(device)
        torch.empty(0, device=made)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ParameterError(f"device={device!r} is not there: {str(error).splitlines()[0]}") from None
    return made


def uses_of(technique: Any) -> frozenset[str] | None:
    """What a technique declared that it asks of a model; None where it was made without its record.

    A technique that may be told `layer=None` then works on the inputs themselves, and asks for no activations.
    """
    record: Technique | None = getattr(technique, "technique", None)
    if record is None:
        return None
    # A technique that takes another as a parameter asks what that one asks, too.
    inner = [uses_of(value) for value in technique.get_params().values() if isinstance(value, Explainer)]
    if any(uses is None for uses in inner):
        return None
    own = record.uses - {"activations"} if technique.get_params().get("layer", "") is None else record.uses
    return frozenset(own).union(*(uses for uses in inner if uses is not None))


def check_suits(adapter: Adapter, technique: Any) -> None:
    """Refuses a technique that needs what the model does not offer.

    Raises:
        Unsuitable: with what is missing.
    """
    uses = uses_of(technique) or frozenset()
    if missing := uses - adapter.offers:
        record = technique.technique
        raise Unsuitable(
            f"technique '{record.name}' needs {sorted(missing)}, which {adapter.name} does not offer (it offers "
            f"{sorted(adapter.offers)}); what runs on it: pellucid.techniques(works_with=model)"
        )


def check_inputs_given(inputs: Any) -> None:
    """Refuses what is plainly no input, with a word on what is."""
    if inputs is None:
        raise InputError("the inputs are None; expected a tensor (B, ...), photos, or a mapping or tuple of tensors")
