"""Training data, read block by block: in memory, on disk, or made as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pellucid import InputError, Loss, Sample, Target

EXPECTED = (
    "expected (inputs, labels) as two tensors or arrays, a TensorDataset of them, a Dataset of pairs of an input and "
    "its label, or a DataLoader of one"
)
WHAT = "the training inputs"
CHUNK = 1024
"""How many examples are checked together."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where training examples come from.

    Attributes:
        count: how many there are.
        read: makes (inputs, labels) of places (n,).
        inputs: (N, ...) where all are in memory.
        labels: (N, ...) where they are known before any is read.
    """

    count: int
    read: Callable[[Tensor], tuple[Tensor, Tensor]]
    inputs: Tensor | None = None
    labels: Tensor | None = None


def source(train: Any) -> Source:
    """What a technique is given as `train`, to be read in blocks.

    A memory-mapped array stays on disk. Of a DataLoader the data set is read in its own order, by its `collate_fn`.

    Raises:
        InputError: when it is no training data, or inputs and labels do not fit together.
    """
    if isinstance(train, DataLoader):
        return _of_items(train.dataset, train.collate_fn)
    pair = getattr(train, "tensors", train)
    if isinstance(pair, Sequence) and len(pair) == 2 and all(hasattr(part, "__array__") for part in pair):
        return _of_pair(*pair)
    if isinstance(train, Dataset):
        return _of_items(train, default_collate)
    raise InputError(f"train is a {type(train).__name__}; {EXPECTED}")


def _of_pair(inputs: Any, labels: Any) -> Source:
    labels = _tensor(labels)
    kept = inputs if isinstance(inputs, np.memmap) else _tensor(inputs)
    if len(kept.shape) < 2 or labels.dim() < 1 or len(kept) != len(labels) or len(kept) == 0:
        raise InputError(
            f"train has inputs {tuple(kept.shape)} and labels {tuple(labels.shape)}; expected (N, ...) and (N, ...) "
            "with the same N of at least 1"
        )

    def read(places: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(kept, Tensor):
            return kept[places.to(kept.device)], labels[places.to(labels.device)]
        return torch.from_numpy(np.array(kept[places.numpy()])), labels[places.to(labels.device)]

    return Source(len(kept), read, kept if isinstance(kept, Tensor) else None, labels)


def _tensor(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part.detach()
    array = np.asarray(part)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _of_items(items: Any, collate: Callable[[list[Any]], Any]) -> Source:
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or len(items) == 0:
        raise InputError(
            f"train is a {type(items).__name__} without a length, without items by their places, or empty; {EXPECTED}"
        )

    def read(places: Tensor) -> tuple[Tensor, Tensor]:
        pair = collate([items[place] for place in places.tolist()])
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
            raise InputError(f"the items of train ({type(items).__name__}) are no pairs of tensors; {EXPECTED}")
        inputs, labels = pair
        if len(inputs) != len(places) or len(labels) != len(places):
            raise InputError(
                f"train's collate_fn made {tuple(inputs.shape)} and {tuple(labels.shape)} of {len(places)} items; "
                "expected as many inputs and labels"
            )
        return inputs.detach(), labels.detach()

    return Source(len(items), read)


@dataclass(frozen=True, eq=False)
class Training:
    """Training examples with their loss as the target: some of them at a time are a `Sample`.

    Attributes:
        source: where they come from.
        queries: what is explained, whose form, type and device the inputs are brought to.
        target: makes the target of labels.
    """

    source: Source
    queries: Sample
    target: Callable[[Tensor], Target] = Loss
    _noted: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.source.count

    def __getitem__(self, places: slice | Tensor) -> Sample:
        where = torch.arange(self.source.count)[places.cpu() if isinstance(places, Tensor) else places]
        inputs, labels = self.source.read(where)
        check(labels)
        if self.source.labels is None:
            self._noted.update(zip(where.tolist(), labels.cpu(), strict=True))
        queries = self.queries
        labels = labels.to(queries.inputs) if labels.is_floating_point() else labels.long().to(queries.device)
        return queries.others(inputs, self.target(labels), what=WHAT)

    @property
    def labels(self) -> Tensor:
        """The labels of all examples, (N, ...): of a data set that makes them as they are asked for, once all are read.

        Examples that were not looked at are read for it.
        """
        if self.source.labels is not None:
            labels = self.source.labels
        else:
            missing = [place for place in range(self.source.count) if place not in self._noted]
            for start in range(0, len(missing), CHUNK):
                self[torch.tensor(missing[start : start + CHUNK])]
            labels = torch.stack([self._noted[place] for place in range(self.source.count)])
        return labels if labels.is_floating_point() else labels.long()


def training(train: Any, queries: Sample) -> Training:
    """The training examples, to be looked at beside queries.

    What is in memory is checked at once, what is not as it is read.

    Args:
        train: as for `source`.
        queries: what is explained, whose form the training inputs must have.

    Raises:
        InputError: when they have another form, are not finite, or a label is negative.
    """
    found = source(train)
    if found.labels is not None:
        check(found.labels)
    if found.inputs is not None:
        for start in range(0, found.count, CHUNK):
            queries.others(found.inputs[start : start + CHUNK], what=WHAT)
    return Training(found, queries)


def check(labels: Tensor) -> None:
    """Refuses labels that are none.

    Raises:
        InputError: with what is wrong.
    """
    if labels.is_floating_point():
        if not bool(torch.isfinite(labels).all()):
            raise InputError("some training labels are not finite; remove these examples")
    elif labels.numel() and int(labels.min()) < 0:
        raise InputError(f"a training label is {int(labels.min())}; expected class indices of 0 or more")
