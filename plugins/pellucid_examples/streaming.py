"""What the family shares: data sets that are looked at in blocks, in memory, on disk, or made as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid import Blocks, InputError, Look, Passes, Sample, Seen, digest

FIRST = 16
"""How many examples are looked at first, before it is known how much memory what is seen of one takes."""
LARGEST = 1024
"""The most examples that are looked at together."""
BLOCK_BYTES = 64 * 2**20
"""How much memory what is seen of one block takes."""
EXPECTED = "expected inputs (N, ...), (inputs, labels), or a Dataset of them"


@dataclass(frozen=True, eq=False)
class Source:
    """A data set of which some examples at a time are read.

    Attributes:
        count: how many there are.
        read: makes the inputs (n, ...) of places (n,).
        inputs: (N, ...) where all are in memory.
    """

    count: int
    read: Callable[[Tensor], Tensor]
    inputs: Tensor | None = None

    @classmethod
    def of(cls, given: Any) -> Source:
        """What a technique is given as `train`; a memory-mapped array stays on disk.

        Raises:
            InputError: when it holds no inputs.
        """
        pair = getattr(given, "tensors", given)
        inputs = pair[0] if isinstance(pair, (tuple, list)) and pair else pair
        if isinstance(inputs, np.memmap) and inputs.ndim > 1 and inputs.size:
            mapped: np.memmap[Any, Any] = inputs
            return cls(len(mapped), lambda places: torch.from_numpy(np.array(mapped[places.numpy()])))
        if hasattr(inputs, "__array__"):
            held = torch.as_tensor(inputs).detach()
            if held.dim() > 1 and held.numel():
                return cls(len(held), lambda places: held[places.to(held.device)], held)
            raise InputError(f"train holds {tuple(held.shape)}; {EXPECTED}")
        if isinstance(inputs, (tuple, list)) or not (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")):
            raise InputError(f"train holds {type(inputs).__name__}; {EXPECTED}")
        if not len(inputs):
            raise InputError(f"train is an empty {type(inputs).__name__}; {EXPECTED}")
        return cls(len(inputs), lambda places: torch.stack([_input(inputs, place) for place in places.tolist()]))

    def digest(self) -> str:
        """A digest of all inputs."""
        starts = range(0, self.count, LARGEST)
        return digest([
            digest(self.read(torch.arange(start, min(self.count, start + LARGEST)))) for start in starts
        ])  # fmt: skip


def _input(items: Any, place: int) -> Tensor:
    item = items[place]
    item = item[0] if isinstance(item, (tuple, list)) and item else item
    if not hasattr(item, "__array__"):
        raise InputError(f"item {place} of train holds {type(item).__name__}; expected a tensor, or a pair of tensors")
    return torch.as_tensor(item).detach()


@dataclass(frozen=True, eq=False)
class Training:
    """Training examples, of which some at a time are a `Sample` for the queries' model.

    Attributes:
        source: where they come from.
        queries: what is explained, whose form, type and device the inputs are brought to.
    """

    source: Source
    queries: Sample

    def __len__(self) -> int:
        return self.source.count

    def __getitem__(self, places: slice | Tensor) -> Sample:
        where = torch.arange(len(self))[places]
        return self.queries.others(self.source.read(where), what="the training inputs")


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
        whole = isinstance(examples, Sample) and stop - start == len(examples)
        at = examples if isinstance(examples, Sample) and whole else examples[start:stop]
        key = digest(*told, at.inputs) if blocks else ""
        found = blocks.found(key)
        if found is None:
            seen = yield look(at)
            found = {**reduced(seen), "bytes seen": torch.tensor(_held(seen))}
            blocks.keep(key, found)
        take(start, {name: part.to(at.device) for name, part in found.items()})
        step = max(1, min(LARGEST, BLOCK_BYTES * (stop - start) // max(int(found["bytes seen"]), 1)))
        start = stop


def kept(folder: str | Path | None, sample: Sample) -> Passes[tuple[Blocks, str]]:
    """Where finished blocks are kept, and the model's digest, for which one example is looked at."""
    blocks = Blocks(folder)
    if not blocks:
        return blocks, ""
    seen = yield Look(at=sample[:1], digest=True)
    return blocks, seen.digest


def _held(seen: Seen) -> int:
    several = seen.factors if isinstance(seen.factors, tuple) else (seen.factors,) if seen.factors else ()
    return sum(int(one.nbytes) for one in (*seen.activations.values(), *several))
