"""What the family shares: data sets that are looked at in blocks, and what is kept of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid import Blocks, Leaves, Look, Passes, Sample, SavedFileError, Seen, Training, digest

FIRST = 16
"""How many examples are looked at first, before it is known how much memory one takes."""
LARGEST = 1024
"""The most examples that are looked at together."""
BLOCK_BYTES = 64 * 2**20
"""How much memory the inputs of one block take, and what is seen of them."""
HELD_BYTES = 256 * 2**20
"""How much memory what is kept of a whole data set takes; what is more lies in a file."""
PICTURE_BYTES = 256 * 2**20
"""How much memory the pictures in a result take at most."""


def streamed(
    examples: Sample | Training,
    look: Callable[[Sample], Look],
    reduced: Callable[[Seen], dict[str, Tensor]],
    take: Callable[[int, dict[str, Tensor]], None],
    blocks: Blocks | None = None,
    told: Sequence[Any] = (),
    first: int | None = None,
) -> Passes[None]:
    """Looks at a whole data set block by block, in memory that does not grow with it.

    Args:
        examples: the data set.
        look: makes the look at a block.
        reduced: makes of what was seen of a block what is wanted of it.
        take: is given where each block starts, and what was made of it.
        blocks: where finished blocks are kept, and taken from without a pass.
        told: all that decides over a block besides its inputs: the model's digest, and settings.
        first: how many examples are looked at first, where `FIRST` would be too many.
    """
    blocks = blocks or Blocks(None)
    start, step = 0, first or FIRST
    while start < len(examples):
        stop = min(len(examples), start + step)
        at = examples.part(start, stop)
        key = digest(*told, at.inputs) if blocks else ""
        found = blocks.found(key)
        if found is None:
            seen = yield look(at)
            found = {**reduced(seen), "bytes": torch.tensor(_bytes(at, seen))}
            blocks.keep(key, found)
        take(start, {name: part.to(at.device) for name, part in found.items()})
        step = max(1, min(LARGEST, BLOCK_BYTES * (stop - start) // max(int(found["bytes"]), 1)))
        start = stop


def kept(folder: str | Path | None, sample: Sample) -> Passes[tuple[Blocks, str]]:
    """Where finished blocks are kept, and the model's digest, for which one example is looked at."""
    blocks = Blocks(folder)
    if not blocks:
        return blocks, ""
    seen = yield Look(at=sample.part(0, 1), digest=True)
    return blocks, seen.digest


def _bytes(at: Sample, seen: Seen) -> int:
    """How much memory a block takes: its inputs, and what is seen of them."""
    several = seen.factors if isinstance(seen.factors, tuple) else (seen.factors,) if seen.factors else ()
    inputs = at.inputs.values() if isinstance(at.inputs, Leaves) else [at.inputs]
    return sum(int(one.nbytes) for one in (*inputs, *seen.activations.values(), *several))


def room(count: int, row: Tensor, folder: str | Path | None = None) -> Tensor:
    """Room for what is kept of a data set: in memory, or in a nameless file where that would take more than HELD_BYTES.

    Of a file the system keeps in memory what is used and fits; it is gone with the tensor.

    Args:
        count: how many rows.
        row: one of them, whose form, type and device the room has.
        folder: where the file lies; None is the system's place for passing files.

    Raises:
        SavedFileError: when there is no room for the file.
    """
    size = count * row.numel() * row.element_size()
    if size <= HELD_BYTES or row.device.type != "cpu":
        return row.new_empty(count, *row.shape)
    try:
        if folder is not None:
            Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=None if folder is None else Path(folder).expanduser()) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a signal in the middle
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, row.numpy().dtype, "r+", shape=(count, *row.shape)))
    except OSError as error:
        where = tempfile.gettempdir() if folder is None else folder
        raise SavedFileError(
            f"no room for {size / 2**30:.1f} GiB of activations or inputs in '{where}': {error}; name a folder that has"
        ) from error


def pictures(examples: Sample | Training, indices: Tensor) -> Tensor | None:
    """The chosen images (rows, k, C, H, W) of a data set that is not held, zeros at empty places (-1).

    None where it is held, which shows them without, or holds no images, or the chosen take more than PICTURE_BYTES.
    """
    if examples.held is not None:
        return None
    one = examples.part(0, 1).inputs
    if one.dim() != 4 or indices.numel() * one.numel() * one.element_size() > PICTURE_BYTES:
        return None
    made: Tensor = one.new_zeros(*indices.shape, *one.shape[1:])
    for index in torch.unique(indices[indices >= 0]).tolist():
        made[indices.to(made.device) == index] = examples.part(index, index + 1).inputs
    return made
