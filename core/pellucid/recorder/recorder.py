"""The recorder: looks at a network while it trains, without a trace in the training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from pellucid.api import adapt
from pellucid.engine.batching import check_batch_size, rows_at_once
from pellucid.engine.guard import guarded
from pellucid.engine.inputs import make_sample
from pellucid.engine.passes import Engine
from pellucid.engine.segment import Segment
from pellucid.engine.watch import Place
from pellucid.errors import InputError, ParameterError, ProtocolError
from pellucid.protocol.leaves import each, tensors_of
from pellucid.protocol.sample import Sample
from pellucid.recorder import files
from pellucid.recorder.schedule import Schedule, due

SWITCH = 16
"""After so many steps of another optimiser of the model, and none of the counted one, the other is counted."""

CACHED = 16 * 2**20
"""How many bytes of outputs a pass may hold where that is at least eight rows: more leave a CPU's caches, also for the
training steps that follow."""


class Recorder:
    """Records what a network computes on one fixed set of examples, the probe, while it trains.

    As a context it counts the steps of the model's optimiser by itself:

        with pellucid.Recorder(model, probe, layers=["fc1"], path="recording"):
            train(model)

    Otherwise call `step()` after each training step, or give `callback()` to a trainer; `capture()` looks now, whatever
    the schedule. Step 0 is the network before training. A look is a forward pass in eval mode without gradients; modes,
    buffers, gradients and random states are put back, so that a recorded run has the same bits as one that is not.
    Each capture is written at once, as one file, whole or not at all: a run that is killed loses nothing that was
    captured, and a long one takes no memory.

    Args:
        model: a module, or anything that `pellucid.adapt` takes, which is looked at as it is at each capture.
        probe: the examples, as `pellucid.explain` takes inputs; they are copied, and kept in the recording.
        layers: names of layers whose outputs are recorded beside the model's; "auto" is the last map before the head.
        every: the schedule: "log" (0, 1, 4, 16, 64, 256, 512, 1024, ...; see `Schedule`), a number of steps, a
            collection of steps, or a function of the step.
        path: the recording's folder; several runs can share it.
        run: the run's name in it.
        labels: (n,) the examples' classes, for losses, accuracies and colours.
        names: what each example is called.
        pooled: whether maps of positions are averaged over them, (n, C), which keeps a recording small.
        parameters: whether the trainable parameters are recorded, flattened.
        dtype: what is recorded, such as `torch.float16`; None is as it comes.
        resume: True goes on after the last capture of this run; a step goes on after that one, such as a checkpoint's,
            and removes later captures, which belong to a past that training does not go on from.
        batch_size: rows in one pass; "auto" finds what is fast.

    Attributes:
        steps: how many training steps were counted.
        captured: the steps that were captured.
        seconds: what making the recorder and all captures took together.

    Raises:
        InputError: when the probe is not finite, labels or names do not fit it, or it is another than a resumed run's.
        LayerError: when a layer does not exist.
        SavedFileError: when the run exists already and is not resumed, or the folder cannot be written.
        ParameterError: when the schedule, the run's name or the resumed step is wrong.
    """

    def __init__(
        self,
        model: Any,
        probe: Any,
        *,
        layers: Sequence[str] = (),
        every: Schedule = "log",
        path: str | Path = "recording",
        run: str = "run",
        labels: Any = None,
        names: Sequence[str] | None = None,
        pooled: bool = True,
        parameters: bool = False,
        dtype: torch.dtype | None = None,
        resume: bool | int = False,
        batch_size: int | str = "auto",
    ) -> None:
        if isinstance(layers, str):
            raise ParameterError(f"layers={layers!r}: expected a list of names, such as [{layers!r}]")
        check_batch_size(batch_size)
        began = time.perf_counter()
        self.adapter = adapt(model)
        self.layers = tuple(layers)
        self.pooled, self.parameters, self.dtype, self.batch_size = pooled, parameters, dtype, batch_size
        self._due = due(every)
        self._optimiser: Optimizer | None = None
        self._others = 0  # how often the model's other optimisers stepped since the counted one
        self._hook: Any = None
        self._captures = 0
        with guarded(self.adapter.module, 0):
            engine = Engine(self.adapter)
            sample, _ = make_sample(engine, probe, None, 0)
            self._sample = _moved(sample[:], torch.device("cpu"))  # of a data set, all that it has
            self._precision = _precision(self.adapter.module)
            places = self._places(engine)
        count = len(self._sample)
        self._probe = files.Probe(
            inputs=self._sample.inputs,
            labels=_labels(labels, count),
            names=_names(names, count),
            layers={name: place.layer.name for name, place in places.items()},
            classes=None if self.adapter.categories is None else tuple(self.adapter.categories),
            pictures=_pictures(self.adapter, self._sample.inputs),
        )
        self.folder = files.begin(Path(path), run, self._probe, resume)
        found = files.steps(self.folder)
        self.captured = [step for step in found if files.whole(self.folder, step)]
        self.steps = max(found, default=0) if resume is True else int(resume)
        self._began, self._ended = began, time.perf_counter()
        self.seconds = self._ended - began

    @property
    def overhead(self) -> float:
        """What recording took, as a share of the rest of the time from making the recorder to its last capture."""
        return self.seconds / max(self._ended - self._began - self.seconds, 1e-9)

    def __enter__(self) -> Self:
        """Captures the start and counts the steps of the model's optimiser from now on.

        Where a model has several optimisers, those of the one that steps first are counted, until another one steps 16
        times without it, as where training goes on with a new one: then all of that one's are.
        """
        if self._hook is not None:
            raise ProtocolError("this recorder counts already; a recorder is entered once")
        self.start()
        self._entered = self.steps, self._captures
        self._hook = register_optimizer_step_post_hook(self._stepped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops counting and captures the end, unless training failed."""
        self._stop_counting()
        # A model whose training failed may not run any more; its own error matters more.
        if kind is not None:
            return
        if self._entered == (self.steps, self._captures):
            warnings.warn(
                "no optimiser of the recorded model stepped, so that only its start is recorded; where others change "
                "it, such as a moving average, call step() after each training step",
                stacklevel=2,
            )
        self.finish()

    def start(self, step: int | None = None) -> None:
        """Captures the network before its next step, unless that is done.

        Args:
            step: how many steps it has had, such as a trainer's own count after a checkpoint; None is what was counted.
                Captures of later steps, which a resumed run may have, are removed: training does not go on from them.

        Raises:
            ProtocolError: when this recorder has captured later steps itself.
        """
        if step is not None and step != self.steps:
            if self._captures and step < self.steps:
                raise ProtocolError(
                    f"training starts at step {step}, and this recorder has counted {self.steps}; make a new one, with "
                    "another run=... or resume=True"
                )
            files.forget(self.folder, after=step)
            self.captured, self.steps = files.steps(self.folder), step
        if self.steps not in self.captured:
            self.capture()

    def step(self) -> None:
        """Counts a training step, and captures it if the schedule says so. Call it after the optimiser's step.

        Raises:
            ProtocolError: when the network was not captured before its first step.
        """
        if not self.captured:
            raise ProtocolError("step 0 was not captured; call start() before the first training step")
        if self._hook is not None:
            self._stop_counting()
            if self._optimiser is not None:  # the hook has counted this step
                return
        self._count()

    def finish(self) -> None:
        """Captures the network after its last step, unless that is done."""
        if self._others:  # steps that do not count have changed it since
            self.capture()
        self.start()

    def capture(self) -> None:
        """Captures the network now, whatever the schedule says; a second time at one step replaces the first.

        Raises:
            SavedFileError: when it cannot be written.
        """
        began = time.perf_counter()
        with guarded(self.adapter.module, 0):
            outputs, found = self._look()
            vector = None
            if self.parameters:
                vector = nn.utils.parameters_to_vector(self.adapter.module.parameters())
        states = {files.LAYER + name: self._as_recorded(values) for name, values in found.items()}
        states[files.OUTPUT] = self._as_recorded(outputs)
        if vector is not None:
            states[files.PARAMETERS] = self._as_recorded(vector)
        files.write(self.folder, self.steps, states)
        self.captured = sorted({*self.captured, self.steps})
        self._captures += 1
        self._ended = time.perf_counter()
        self.seconds += self._ended - began

    def callback(self, kind: str) -> Any:
        """A callback for a trainer: `"transformers"` for Hugging Face's Trainer, `"lightning"` for Lightning's.

        Raises:
            ParameterError: for another kind.
            Unavailable: when the library is not installed.
        """
        from pellucid.recorder import callbacks

        return callbacks.make(self, kind)

    def _stepped(self, optimiser: Optimizer, *_: Any) -> None:
        if optimiser is not self._optimiser:
            own = set(map(id, self.adapter.module.parameters()))
            if not any(id(parameter) in own for group in optimiser.param_groups for parameter in group["params"]):
                return
            self._others += 1
            if self._optimiser is not None and self._others < SWITCH:
                return
            self._optimiser = optimiser
            self.steps += self._others - 1
        self._others = 0
        self._count()

    def _count(self) -> None:
        self.steps += 1
        if self._due(self.steps):
            self.capture()

    def _stop_counting(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _places(self, engine: Engine) -> dict[str, Place]:
        return {name: engine.find(self._placed(self._sample, engine), name) for name in self.layers}

    def _placed(self, sample: Sample, engine: Engine) -> Sample:
        """A sample where the model is now, and in its precision, if the model's has changed since the start."""
        now, start = _precision(self.adapter.module), self._precision
        return _moved(sample, engine.device, {} if now is None or start is None else {start: now})

    def _look(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's outputs, and the layers', for the whole probe, in as many passes as it takes."""
        engine = Engine(self.adapter)
        places = self._places(engine)
        rows = self._rows(engine)
        outputs: list[Tensor] = []
        found: dict[str, list[Tensor]] = {name: [] for name in places}
        for some in torch.split(torch.arange(len(self._sample)), rows):
            part = self._placed(self._sample[some], engine)
            none = torch.zeros(len(some), dtype=torch.long)
            segment = Segment(part.inputs, part.frame.extras, some, (), (), none)
            (taken,) = engine.run(part.frame, [segment], tuple(set(places.values())))
            outputs.append(self.adapter.logits(taken.raw).detach().cpu())
            for name, place in places.items():
                values = taken.activations[place]
                if self.pooled and place.layer.layout:
                    values = place.layer.maps(values).mean(dim=(-2, -1))
                found[name].append(values.detach().cpu())
        return torch.cat(outputs), {name: torch.cat(parts) for name, parts in found.items()}

    def _rows(self, engine: Engine) -> int:
        """The rows of one pass."""
        part = self._placed(self._sample[:1], engine)
        size = engine.trace(part.frame, part.inputs, part.frame.extras).bytes
        numel = sum(leaf.numel() for leaf in tensors_of(part.inputs))
        rows = rows_at_once(self.batch_size, bytes_per_row=size, numel=numel, gradients=False, device=engine.device)
        if self.batch_size == "auto" and engine.device.type == "cpu":
            return min(rows, max(8, CACHED // max(size, 1)))
        return rows

    def _as_recorded(self, values: Tensor) -> Tensor:
        values = values.detach().to("cpu", copy=True)
        return values.to(self.dtype) if self.dtype is not None and values.is_floating_point() else values


def _precision(module: nn.Module) -> torch.dtype | None:
    """The type of a model's first parameter that is no integer."""
    return next((one.dtype for one in module.parameters() if one.is_floating_point()), None)


def _moved(
    sample: Sample, device: torch.device, kinds: Mapping[torch.dtype, torch.dtype] = MappingProxyType({})
) -> Sample:
    """A sample on a device, with tensors of some types in others."""
    extras = {name: extra.to(device, kinds.get(extra.dtype)) for name, extra in sample.frame.extras.items()}
    inputs = each(lambda leaf: leaf.to(device, kinds.get(leaf.dtype)), sample.inputs)
    return replace(sample, inputs=inputs, frame=replace(sample.frame, extras=extras))


def _labels(labels: Any, count: int) -> Tensor | None:
    if labels is None:
        return None
    try:
        classes = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the labels are no numbers ({error}); expected ({count},) classes from 0, such as "
            "torch.tensor([kinds.index(one) for one in labels]); names=... takes words"
        ) from error
    if classes.shape != (count,) or classes.is_floating_point() or classes.dtype == torch.bool:
        raise InputError(f"the labels are {classes.dtype} of shape {tuple(classes.shape)}; expected ({count},) classes")
    return classes.long().clone()


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if len(names) != count or isinstance(names, str):
        raise InputError(f"there are {len(names)} names; expected one for each of the probe's {count} examples")
    return tuple(map(str, names))


def _pictures(adapter: Any, inputs: Any) -> Tensor | None:
    """The examples as photos of bytes (n, H, W, 3), where they are images."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
        return None
    pictures: Tensor = adapter.pictures(inputs)
    return pictures
