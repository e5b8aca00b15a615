"""Training data, read block by block: in memory, on disk, or made as they are asked for."""

from __future__ import annotations

from typing import Any

from pellucid import Loss, Sample, Source, Training


def source(train: Any) -> Source:
    """What a technique is given as `train`, inputs with their labels.

    Raises:
        InputError: when it is no training data, or inputs and labels do not fit together.
    """
    return Source.of(train, labelled=True)


def training(train: Any, queries: Sample) -> Training:
    """The training examples, with their loss as the target, to be looked at beside queries.

    What is in memory is checked at once, what is not as it is read.

    Raises:
        InputError: when they have another form than the queries, are not finite, or a label is none.
    """
    found = Training(source(train), queries, Loss)
    found.check()
    return found
