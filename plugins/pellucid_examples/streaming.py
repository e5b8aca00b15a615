"""What the family shares: data sets that are looked at in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pellucid import Look, Passes, Sample, Seen

FIRST = 16
"""How many examples are looked at first, before it is known how much memory the activations of one take."""
LARGEST = 1024
"""The most examples that are looked at together."""
BLOCK_BYTES = 64 * 2**20
"""How much memory the activations of one block take."""


def streamed(sample: Sample, layers: Sequence[str], take: Callable[[int, Seen], None]) -> Passes[None]:
    """Looks at layers' activations of a whole data set, in memory that does not grow with it.

    Args:
        sample: the data set.
        layers: whose activations are wanted.
        take: is given where each block starts, and what was seen of it.
    """
    start, step = 0, FIRST
    while start < len(sample):
        stop = min(len(sample), start + step)
        at = sample if stop - start == len(sample) else sample[start:stop]
        seen = yield Look(at=at, activations=layers)
        take(start, seen)
        held = sum(seen.activations[layer].nbytes for layer in layers)
        step = max(1, min(LARGEST, BLOCK_BYTES * (stop - start) // max(held, 1)))
        start = stop
