"""A recording, read again: its runs, and the states of their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pellucid.errors import InputError, LayerError, SavedFileError, nearest
from pellucid.recorder import files
from pellucid.recorder.states import States, log_scores


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a recording; its states are read when they are asked.

    Attributes:
        name: the run's name.
        folder: where its files are.
        steps: the training steps that were captured.
        damaged: the steps whose files cannot be read, such as one that was cut off while it was copied.
    """

    name: str
    folder: Path
    steps: tuple[int, ...]
    damaged: tuple[int, ...] = ()

    @cached_property
    def probe(self) -> files.Probe:
        """The examples that it was recorded on."""
        return files.read_probe(self.folder)

    @property
    def layers(self) -> tuple[str, ...]:
        """What was recorded: layers by the names that they were asked by, and "output"."""
        return (*self.probe.layers, files.OUTPUT)

    def states(self, layer: str = files.OUTPUT, steps: Sequence[int] | None = None) -> States:
        """What a layer gave for every example at every captured step, flattened to (T, n, d).

        States of more than a gigabyte lie in a temporary file beside the captures (it takes their room on the disk once
        more, and goes with them), from which the system pages what is read: they may be larger than the memory. `pca`
        maps them as they are; other maps, and what is computed of all states at once, need the memory.

        Args:
            layer: its name; "output" is the model's output, "parameters" its parameters (T, 1, d), where recorded.
            steps: some of the captured steps; None is all.

        Raises:
            LayerError: when it was not recorded.
            InputError: when a step was not captured, or the layer changed its shape between steps.
            SavedFileError: when a file cannot be read.
        """
        chosen = self.steps if steps is None else tuple(steps)
        if missing := sorted(set(chosen) - set(self.steps)):
            raise InputError(f"run '{self.name}' has no capture of the steps {missing[:5]}; it has {list(self.steps)}")
        values = self._stacked(self._key(layer), chosen)
        times, probe = torch.tensor(chosen), self.probe
        if values.dim() == 2 and self._key(layer) == files.PARAMETERS:
            return States(values.unsqueeze(1), times, over=layer, names=(self.name,))
        outputs = self._stacked(files.OUTPUT, chosen)
        return States(
            values.flatten(2) if values.dim() > 2 else values.unsqueeze(2),
            times,
            over=layer,
            labels=probe.labels,
            names=probe.names,
            outputs=outputs if outputs.dim() == 3 and outputs.shape[2] > 1 else None,  # one score is of no classes
            classes=probe.classes,
            pictures=probe.pictures,
        )

    def _key(self, layer: str) -> str:
        """What a layer's states are called in the files."""
        asked = {found: name for name, found in self.probe.layers.items()}
        for name in (layer, asked.get(layer)):
            if name in self.probe.layers:
                return f"{files.LAYER}{name}"
        if layer in (files.OUTPUT, files.PARAMETERS):
            return layer
        known = sorted({*self.layers, *asked})
        raise LayerError(
            f"run '{self.name}' has no layer '{layer}'.{nearest(layer, known)} It has {known}; record it with "
            "layers=[...]"
        )

    def _stacked(self, name: str, steps: Sequence[int]) -> Tensor:
        if not steps:
            raise SavedFileError(f"'{self.folder}' has no whole capture; was the run killed before its first step?")
        return files.gather(self.folder, steps, name)


@dataclass(frozen=True, eq=False)
class Recording:
    """What a `Recorder` wrote, of one run or of several.

    Attributes:
        path: its folder.
        runs: the runs by name.
    """

    path: Path
    runs: Mapping[str, Run]

    def __getitem__(self, run: str) -> Run:
        if run not in self.runs:
            raise InputError(f"'{self.path}' has no run '{run}'.{nearest(run, self.runs)} It has {sorted(self.runs)}")
        return self.runs[run]

    @property
    def notes(self) -> tuple[str, ...]:
        """What cannot be read of it."""
        return tuple(
            f"run '{run.name}': the captures of the steps {list(run.damaged)} are damaged and left out"
            for run in self.runs.values()
            if run.damaged
        )

    def run(self, name: str | None = None) -> Run:
        """A run by its name; None where there is only one.

        Raises:
            InputError: when there is none of that name, or there are several and none is named.
        """
        if name is None and len(self.runs) != 1:
            raise InputError(f"there are {len(self.runs)} runs, {sorted(self.runs)}; say which with run=...")
        return self[next(iter(self.runs)) if name is None else name]

    def states(self, layer: str | Mapping[str, str] = files.OUTPUT, run: str | None = None) -> States:
        """The states of a layer in one run; see `Run.states`.

        Args:
            layer: its name, or, where it is called otherwise in some runs, a mapping of runs to names.
            run: which run; None where there is only one.

        Raises:
            InputError: when there are several runs and none is named.
        """
        chosen = self.run(run)
        return chosen.states(layer if isinstance(layer, str) else layer[chosen.name])

    def networks(self, of: str = files.OUTPUT) -> States:
        """Whole networks as points: each run through training, at the steps that all have, (T, runs, d).

        By default in function space: a network's state is what it says of the whole probe, the probabilities of all
        examples, d = n x classes (of a model that is no classifier, its outputs as they are); `in_pca` with
        `n_classes=` and `pca` are maps for them. Runs may be of other architectures, seeds or learning rates. `of` a
        layer, all its states are the network's; of "parameters", its weights. `random_walk()` of what is returned is
        the control.

        Args:
            of: "output", a layer's name, or "parameters", where they were recorded.

        Raises:
            InputError: when the runs have no step in common, other probes, or states of other shapes.
            LayerError: when a run has no such layer.
        """
        runs = list(self.runs.values())
        common = sorted(set(runs[0].steps).intersection(*(run.steps for run in runs)))
        if not common:
            told = {run.name: list(run.steps) for run in runs}
            raise InputError(f"the runs have no captured step in common: {told}; record them with the same schedule")
        for run in runs[1:]:
            if not _alike(runs[0].probe, run.probe):
                raise InputError(f"the runs '{runs[0].name}' and '{run.name}' were recorded on different probes")
        found = [run.states(of, common) for run in runs]
        function = of == files.OUTPUT
        points = [
            one.values if one.outputs is None or not function else log_scores(one.outputs).softmax(dim=-1)
            for one in found
        ]
        shapes = {run.name: tuple(one.shape) for run, one in zip(runs, points, strict=True)}
        if len(set(shapes.values())) > 1:
            raise InputError(f"the runs' '{of}' has the shapes {shapes}; expected one shape for all runs")
        values = torch.stack([one.flatten(1) for one in points], dim=1)
        names = tuple(run.name for run in runs)
        return States(values, torch.tensor(common), over="function" if function else of, names=names)


def load(path: str | Path) -> Recording:
    """Reads a recording. Captures that are damaged, and what was being written when a run was killed, are left out.

    Raises:
        SavedFileError: when the folder is missing or holds no recording.
    """
    path = Path(path)
    if not path.is_dir():
        raise SavedFileError(f"there is no folder '{path}'; expected one that `Recorder(path=...)` wrote")
    folders = sorted(folder for folder in path.iterdir() if (folder / "probe.safetensors").is_file())
    if not folders and (path / "probe.safetensors").is_file():
        folders, path = [path], path.parent
    if not folders:
        raise SavedFileError(f"'{path}' holds no recording; expected a folder that `Recorder(path=...)` wrote")
    runs = {}
    for folder in folders:
        found = files.steps(folder)
        damaged = tuple(step for step in found if not files.whole(folder, step))
        runs[folder.name] = Run(folder.name, folder, tuple(step for step in found if step not in damaged), damaged)
    return Recording(path, runs)


def _alike(one: files.Probe, other: files.Probe) -> bool:
    ours, theirs = one.inputs, other.inputs
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.shape == theirs.shape and torch.equal(ours, theirs)
    return type(ours) is type(theirs) and all(
        torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True)
    )
