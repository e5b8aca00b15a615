"""A recording's files: a folder for each run, with one file for the probe and one for each capture."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import InputError, ParameterError, SavedFileError
from pellucid.protocol.leaves import tensors_of
from pellucid.results import storage

OUTPUT = "output"
"""What the model's output is called among the recorded layers."""

PARAMETERS = "parameters"
"""What the flattened parameters are called among them."""

LAYER = "layer:"
"""What stands before a layer's name in a capture, since a layer may be called "output"."""

IN_MEMORY = 2**30
"""How many bytes of states are held in memory; more lie in a file, from which the system pages what is read."""

_PROBE = "probe.safetensors"
_CAPTURE = re.compile(r"step-(\d+)\.safetensors")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


@dataclass(frozen=True, eq=False)
class Probe:
    """The examples that a run is recorded on.

    Attributes:
        inputs: what the model is given, a tensor or `Leaves`.
        labels: (n,) their classes, or None.
        names: what each is called, or None.
        layers: the layers that are recorded: the names that were asked, and those that were found.
        classes: the names of the model's classes, or None.
        pictures: (n, H, W, 3) the examples as photos of bytes, or None.
    """

    inputs: Any
    labels: Tensor | None
    names: tuple[str, ...] | None
    layers: dict[str, str]
    classes: tuple[str, ...] | None
    pictures: Tensor | None


def begin(path: Path, run: str, probe: Probe, resume: bool | int) -> Path:
    """Makes a run's folder and writes its probe; or finds one to go on with, and checks that it is of this probe.

    Raises:
        ParameterError: when the run's name is no name of a folder, or nothing can be resumed at a step.
        SavedFileError: when the run exists and is not resumed, or cannot be written.
        InputError: when it is of another probe or of other layers.
    """
    if not _RUN.fullmatch(run):
        raise ParameterError(f"run={run!r}: expected letters, digits and any of . _ = + -, such as 'seed=0'")
    if isinstance(resume, int) and resume < 0:
        raise ParameterError(f"resume={resume!r}: expected True, False or a step")
    folder = path / run
    going_on = resume is not False
    if (folder / _PROBE).exists():
        if not going_on:
            raise SavedFileError(
                f"'{folder}' holds a recording already; give another run=..., or resume=True to go on with it"
            )
        _require_same(folder, read_probe(folder), probe)
        for draft in (*folder.glob(".*.part"), *folder.glob(".tmp*")):  # what a killed run was writing
            draft.unlink()
        if resume is not True:
            forget(folder, after=int(resume))
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SavedFileError(f"cannot make the folder '{folder}': {error}") from error
    parts = {part.name: getattr(probe, part.name) for part in fields(Probe)}
    storage.write(folder / _PROBE, "Probe", parts, {})
    return folder


def read_probe(folder: Path) -> Probe:
    """Reads a run's probe.

    Raises:
        SavedFileError: when there is none, or it is damaged.
    """
    kind, parts = storage.read(folder / _PROBE, {})
    if kind != "Probe":
        raise SavedFileError(f"'{folder / _PROBE}' holds a {kind}; expected a recording's probe")
    known: dict[str, Any] = {part.name: parts.get(part.name) for part in fields(Probe)}
    return Probe(**known)


def steps(folder: Path) -> list[int]:
    """The steps that a run has captures of, in order."""
    found = (_CAPTURE.fullmatch(file.name) for file in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def forget(folder: Path, *, after: int) -> None:
    """Removes the captures of later steps."""
    for step in steps(folder):
        if step > after:
            _file(folder, step).unlink()


def write(folder: Path, step: int, states: Mapping[str, Tensor]) -> None:
    """Writes a capture, whole or not at all.

    Raises:
        SavedFileError: when it cannot be written.
    """
    storage.write(_file(folder, step), "Capture", {"step": step, "states": dict(states)}, {})


def read(folder: Path, step: int, name: str) -> Tensor:
    """Reads one of a capture's tensors; the others are not read.

    Raises:
        SavedFileError: when the file is damaged or has no such tensor.
    """
    with _opened(folder, step, name) as file:
        found: Tensor = file.get_tensor(f"states.{name}")
    return found


def gather(folder: Path, steps: Sequence[int], name: str) -> Tensor:
    """Reads one of the tensors of several captures, (T, ...), a capture at a time; in the widest of their types.

    More than a gigabyte of them lies in a file without a name, which the system removes with the tensor.

    Raises:
        SavedFileError: when a file is damaged or has no such tensor, or there is no room for the states.
        InputError: when the tensor has different shapes at different steps.
    """
    forms = {step: _form(folder, step, name) for step in steps}
    shapes = {step: shape for step, (shape, _) in forms.items()}
    dtype = reduce(torch.promote_types, (kind for _, kind in forms.values()))
    if len(set(shapes.values())) > 1:
        raise InputError(
            f"'{name}' of run '{folder.name}' has different shapes at different steps: {shapes}; ask for the steps "
            "that agree with states(steps=[...])"
        )
    shape = (len(steps), *shapes[steps[0]])
    small = math.prod(shape) * dtype.itemsize <= IN_MEMORY
    values = torch.empty(shape, dtype=dtype) if small else _on_disk(folder, shape, dtype)
    for place, step in enumerate(steps):
        values[place] = read(folder, step, name)
    return values


def whole(folder: Path, step: int) -> bool:
    """Whether a capture's file can be read."""
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError), safe_open(_file(folder, step), framework="pt") as file:
        return bool((file.metadata() or {}).get("pellucid"))
    return False


def _form(folder: Path, step: int, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """A tensor's shape and type, without its values."""
    with _opened(folder, step, name) as file:
        part = file.get_slice(f"states.{name}")
        return tuple(part.get_shape()), part[:0].dtype


@contextmanager
def _opened(folder: Path, step: int, name: str) -> Iterator[Any]:
    """A capture's file, to read one of its tensors."""
    from safetensors import SafetensorError, safe_open

    path = _file(folder, step)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise SavedFileError(f"cannot read '{name}' from '{path}': {error}") from error


def _on_disk(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in a file without a name beside the captures, or where temporary files are."""
    import numpy as np

    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full would else kill the process as it writes
                os.posix_fallocate(file.fileno(), 0, size)
            mapped = np.memmap(file, np.uint8, "r+", shape=(size,))
    except OSError as error:
        raise SavedFileError(
            f"no room on the disk of '{folder}' for {size / 2**30:.1f} GiB of states: {error}; ask for fewer steps "
            "with states(steps=[...])"
        ) from error
    return torch.from_numpy(mapped).view(dtype).view(shape)


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}{storage.SUFFIX}"


def _require_same(folder: Path, before: Probe, now: Probe) -> None:
    theirs, ours = tensors_of(before.inputs), tensors_of(now.inputs)
    same = len(theirs) == len(ours) and all(map(_equal, theirs, ours))
    if not same:
        shapes = " and ".join(str([tuple(leaf.shape) for leaf in leaves]) for leaves in (theirs, ours))
        raise InputError(
            f"'{folder}' was recorded on another probe (shapes {shapes}); give the same examples in the same order, or "
            "another run=..."
        )
    if before.layers != now.layers:
        raise InputError(
            f"'{folder}' was recorded with the layers {before.layers}, now {now.layers}; give the same layers, or "
            "another run=..."
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.dtype))
