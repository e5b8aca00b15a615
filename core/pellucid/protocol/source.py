"""Data sets of which some examples at a time are read: in memory, on disk, or made as they are asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate, default_convert

from pellucid.errors import InputError
from pellucid.protocol.blocks import digest, raw
from pellucid.protocol.sample import Sample
from pellucid.protocol.target import Target

CHUNK = 1024
"""How many examples are read together where all are gone through."""
EXPECTED = "inputs (N, ...) as a tensor or an array, (inputs, labels), a TensorDataset, a Dataset, or a DataLoader"
LABELLED = (
    "(inputs, labels) as two tensors or arrays, a TensorDataset of them, a Dataset of pairs of an input and its label, "
    "or a DataLoader of one"
)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set of which some examples at a time are read.

    Attributes:
        count: how many there are.
        read: makes the inputs (n, ...) of places (n,), and their labels where it has them.
        inputs: (N, ...) where all are in memory.
        labels: (N, ...) where they are known before any is read.
    """

    count: int
    read: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    inputs: Tensor | None = None
    labels: Tensor | None = None

    @classmethod
    def of(
        cls, given: Any, what: str = "train", *, labelled: bool = False, convert: Callable[[Any], Any] = lambda one: one
    ) -> Source:
        """What a technique is given as a data set.

        A memory-mapped array stays on disk. Of a DataLoader the data set is read in its own order, by its `collate_fn`.

        Args:
            given: a tensor or an array (N, ...), `(inputs, labels)`, a TensorDataset, a Dataset or another sequence of
                inputs or of pairs, or a DataLoader.
            what: what messages call it.
            labelled: whether labels are needed; otherwise there are none, whatever is given.
            convert: makes a tensor of what each item of a Dataset has for its input.

        Raises:
            InputError: when it is no such data set or empty, or inputs and labels do not fit together; on reading, when
                an example is no tensor or a label none.
        """
        if isinstance(given, DataLoader):
            own = None if given.collate_fn in (default_collate, default_convert) else given.collate_fn
            return _of_items(given.dataset, what, labelled, convert, own)
        # A data set with items of its own, such as transformed ones, may keep tensors by the same name.
        plain = getattr(type(given), "__getitem__", None) is TensorDataset.__getitem__
        parts = given.tensors if plain else given
        parts = parts if isinstance(parts, (tuple, list)) else (parts,)
        if parts and all(hasattr(part, "__array__") for part in (parts if labelled else parts[:1])):
            if len(parts) == 2 or (not labelled and (plain or len(parts) == 1)):
                return _of_arrays(parts[0], parts[1] if labelled else None, what)
        elif hasattr(given, "__getitem__") and not isinstance(given, (tuple, list, str, Mapping)):
            return _of_items(given, what, labelled, convert)
        raise InputError(f"{what} is a {type(given).__name__}; expected {LABELLED if labelled else EXPECTED}")

    def places(self, size: int = CHUNK) -> Iterator[Tensor]:
        """The places of all examples, some at a time."""
        return iter(torch.split(torch.arange(self.count), size))

    def digest(self) -> str:
        """A digest of all inputs."""
        return digest([digest(self.read(places)[0]) for places in self.places()])


def _of_arrays(inputs: Any, labels: Any, what: str) -> Source:
    marks = None if labels is None else _checked(_tensor(labels, what), what)
    mapped: Any = inputs if isinstance(inputs, np.memmap) else None
    held = _tensor(inputs, what) if mapped is None else None
    shape = tuple(inputs.shape) if held is None else tuple(held.shape)
    if len(shape) < 2 or 0 in shape or (marks is not None and (marks.dim() < 1 or len(marks) != shape[0])):
        told = f"inputs {shape}" if marks is None else f"inputs {shape} and labels {tuple(marks.shape)}"
        wanted = "(N, ...)" if marks is None else "(N, ...) and (N, ...) with the same N"
        raise InputError(f"{what} has {told}; expected {wanted}, at least one example and an axis besides")

    def read(places: Tensor) -> tuple[Tensor, Tensor | None]:
        rows = held[places.to(held.device)] if held is not None else _tensor(mapped[places.numpy()], what)
        return rows, None if marks is None else marks[places.to(marks.device)]

    return Source(shape[0], read, held, marks)


def _of_items(
    items: Any,
    what: str,
    labelled: bool,
    convert: Callable[[Any], Any],
    collate: Callable[[list[Any]], Any] | None = None,
) -> Source:
    wanted = f"expected {LABELLED if labelled else EXPECTED}"
    if isinstance(items, IterableDataset) or not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        lacks = "without a length, or without items by their places"
        raise InputError(f"{what} is a {type(items).__name__} {lacks}; {wanted}")
    if not len(items):
        raise InputError(f"{what} is an empty {type(items).__name__}; {wanted}")

    def parted(item: Any, whose: str) -> Sequence[Any]:
        parts = list(item) if isinstance(item, (tuple, list)) else [item]
        parts[:1] = map(convert, parts[:1])
        if not parts or not hasattr(parts[0], "__array__") or (labelled and len(parts) != 2):
            held = ", ".join(type(part).__name__ for part in parts) or "nothing"
            kind = "pairs of a tensor and its label" if labelled else "a tensor, or a pair of it and its label"
            raise InputError(f"{whose} holds {held}; expected {kind}")
        return parts[: 1 + labelled]

    def read(places: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [items[place] for place in places.tolist()]
        if collate is not None:
            columns = [_tensor(part, what) for part in parted(collate(found), f"what {what}'s collate_fn makes")]
        else:
            rows = [parted(one, f"item {place} of {what}") for place, one in zip(places.tolist(), found, strict=True)]
            columns = [_stacked(column, what) for column in zip(*rows, strict=True)]
        if any(column.shape[:1] != places.shape for column in columns):
            told = " and ".join(str(tuple(column.shape)) for column in columns)
            raise InputError(f"{what}'s collate_fn made {told} of {len(places)} items; expected as many examples")
        return columns[0], _checked(columns[1], what) if labelled else None

    return Source(len(items), read)


def _tensor(part: Any, what: str) -> Tensor:
    if isinstance(part, Tensor):
        return part.detach()
    try:
        array = np.asarray(part)
        turned = any(stride < 0 for stride in array.strides)
        return torch.from_numpy(array if array.flags.writeable and not turned else array.copy())
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: a {type(part).__name__} is no tensor ({error}); expected numbers") from None


def _stacked(parts: Sequence[Any], what: str) -> Tensor:
    tensors = [_tensor(part, what) for part in parts]
    if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
        raise InputError(f"the items of {what} have the shapes {sorted(shapes)[:3]}; expected the same: resize or crop")
    return torch.stack(tensors)


def _checked(labels: Tensor, what: str) -> Tensor:
    """Labels that are some, integers as int64."""
    if labels.is_floating_point():
        if not bool(torch.isfinite(labels).all()):
            raise InputError(f"some labels of {what} are not finite; remove these examples")
        return labels
    labels = labels.long()
    if labels.numel() and int(labels.min()) < 0:
        raise InputError(f"a label of {what} is {int(labels.min())}; expected class indices of 0 or more")
    return labels


@dataclass(frozen=True, eq=False)
class Training:
    """Training examples beside queries: some of them at a time are a `Sample` for the queries' model.

    Attributes:
        source: where they come from.
        queries: what is explained, whose form, type and device the inputs are brought to.
        target: makes the examples' target of their labels; None where no score is asked of them.
    """

    source: Source
    queries: Sample
    target: Callable[[Tensor], Target] | None = None
    _noted: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.source.count

    def __getitem__(self, places: slice | Tensor) -> Sample:
        where = torch.arange(self.source.count)[places.cpu() if isinstance(places, Tensor) else places]
        inputs, labels = self.source.read(where)
        target = None
        if labels is not None:
            if self.source.labels is None:
                self._noted.update(zip(where.tolist(), labels.cpu(), strict=True))
            near = self.queries.inputs if labels.is_floating_point() else self.queries.device
            target = self.target(labels.to(near)) if self.target is not None else None
        return self.queries.others(inputs, target, what="the training inputs")

    def part(self, start: int, stop: int) -> Sample:
        """The examples from one place to before another."""
        return self[start:stop]

    @property
    def held(self) -> Tensor | None:
        """The inputs (N, ...) where all are in memory."""
        return self.source.inputs

    @property
    def labels(self) -> Tensor:
        """The labels of all examples, (N, ...): of a data set that makes them as they are asked for, once all are read.

        Examples that were not looked at are read for it.
        """
        if self.source.labels is not None:
            return self.source.labels
        missing = torch.tensor([place for place in range(len(self)) if place not in self._noted], dtype=torch.long)
        for places in torch.split(missing, CHUNK) if len(missing) else ():
            self[places]
        return torch.stack([self._noted[place] for place in range(len(self))])

    def check(self) -> None:
        """Checks at once what is in memory; what is not is checked as it is read.

        Raises:
            InputError: when the inputs have another form than the queries, or are not finite.
        """
        for places in self.source.places() if self.held is not None else ():
            self[places]


@dataclass(eq=False)
class Checksum:
    """The checksum of rows as they come one after the other, that of the whole tensor once all have.

    Attributes:
        value: so far.
        place: the first row that has not come.
    """

    value: int = 0
    place: int = 0

    def add(self, rows: Tensor, places: Tensor, count: int) -> None:
        """Takes rows of `count`, if they go on where the last ones ended."""
        start, stop = int(places[0]), int(places[-1]) + 1
        if not start <= self.place < stop or len(places) != stop - start or not bool((places.diff() == 1).all()):
            return
        if self.place == 0:
            self.value = form_sum((count, *rows.shape[1:]), rows.dtype)
        self.value = zlib.crc32(raw(rows[self.place - start :]), self.value)
        self.place = stop


def form_sum(shape: tuple[int, ...], dtype: torch.dtype, value: int = 0) -> int:
    """The checksum of a tensor before its bytes: of its shape and type."""
    return zlib.crc32(repr((shape, dtype)).encode(), value)


@dataclass(frozen=True, eq=False)
class Streamed(Sample):
    """A sample whose examples are read as they are looked at, from a data set that need not fit in memory.

    `sample.part(...)`, `sample[...]` and `len(sample)` read no more than is asked for. Whoever asks for `inputs`, or
    looks at the whole sample, has all examples read, once.

    Attributes:
        source: the data set.
        fit: makes the inputs of some examples, with their places, what the model is shown.
    """

    inputs: Any = field(init=False, repr=False)
    source: Source = field(kw_only=True)
    fit: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    _sum: Checksum = field(default_factory=Checksum, kw_only=True, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name != "inputs":
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        whole = torch.cat([self._read(places) for places in self.source.places()])
        object.__setattr__(self, "inputs", whole)
        return whole

    def __len__(self) -> int:
        return self.source.count

    @property
    def device(self) -> torch.device:
        """Where the examples are brought to."""
        return self.part(0, 1).device

    @property
    def held(self) -> Any:
        """The inputs, where somebody asked for all of them."""
        return vars(self).get("inputs")

    @property
    def checksum(self) -> int:
        """A checksum of all inputs, for which those are read that were not yet read one after the other."""
        for places in torch.split(torch.arange(self._sum.place, len(self)), CHUNK):
            if len(places):
                self._read(places)
        return self._sum.value

    def __getitem__(self, examples: int | slice | Sequence[int] | Tensor) -> Sample:
        """Some of the examples, of which alone classes are predicted."""
        return self._picked(torch.arange(len(self))[examples].reshape(-1), self.target)

    def part(self, start: int, stop: int) -> Sample:
        """The examples from one place to before another."""
        return self[start:stop]

    def _picked(self, places: Tensor, target: Target) -> Sample:
        if self.held is not None:
            return super()._picked(places, target)
        return Sample(self._read(places), target.picked(places), self.seed, self.mean, self.std, self.frame)

    def _read(self, places: Tensor) -> Tensor:
        inputs = self.fit(self.source.read(places)[0], places)
        self._sum.add(inputs, places, self.source.count)
        return inputs
