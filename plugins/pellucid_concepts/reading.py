"""What the family shares: sets of examples as they are given, and what a layer gives for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Blocks, InputError, Look, ParameterError, Passes, Sample, Seen, Source, digest

BLOCK = 64
"""How many examples are looked at together."""
FEWEST = 6
"""The fewest examples that a set may have: a third of them are held out."""
FEW = 20
"""With fewer examples than these a vector is more the examples' than the concept's."""
FEWEST_SETS = 3
"""The fewest random sets whose spread says anything."""


def examples(given: Any, what: str) -> Source:
    """A set of examples (n, ...).

    Raises:
        InputError: when it is none or too small, or is in memory and has values that are not finite.
    """
    found = Source.of(given, what)
    if found.count < FEWEST:
        raise InputError(
            f"{what} has {found.count} examples; a vector needs at least {FEWEST}, and is reliable from about {FEW}"
        )
    held = found.inputs
    if held is not None and not (held.is_floating_point() and bool(torch.isfinite(held).all())):
        raise InputError(f"{what} is of type {held.dtype} or not finite; expected finite floating-point numbers")
    return found


def random_sets(given: Any, n_random: int) -> list[Source]:
    """The random sets: those of a list, or `n_random` equal ones dealt out from one set of examples.

    Raises:
        InputError: when a set is none, or too small.
        ParameterError: when there are too few sets.
    """
    if isinstance(given, (list, tuple)):
        sets = [examples(one, f"random set {place}") for place, one in enumerate(given)]
        if len(sets) < FEWEST_SETS:
            raise ParameterError(f"{len(sets)} random sets were given; expected at least {FEWEST_SETS}, better 10")
        return sets
    pool = examples(given, "random")
    size = pool.count // n_random
    if size < FEWEST:
        raise InputError(
            f"{pool.count} random examples make {n_random} sets of {size}; expected at least {FEWEST} in each: give "
            "more, or a smaller n_random"
        )
    # Dealt out in turn, so that a pool in the order of its classes gives sets that are alike.
    return [_dealt(pool, size, n_random, first) for first in range(n_random)]


def _dealt(pool: Source, size: int, step: int, first: int) -> Source:
    return Source(size, lambda places: pool.read(places * step + first))


def shown(sample: Sample, sets: Mapping[str, Source]) -> Callable[[int, int], Tensor]:
    """Gives the examples of sets, one set after the other, from one place to before another, as a sample's model is.

    Args:
        sample: whose model it is.
        sets: by what messages call them.
    """
    starts = [0, *itertools.accumulate(one.count for one in sets.values())]

    def make(start: int, stop: int) -> Tensor:
        parts = []
        for (what, one), first in zip(sets.items(), starts, strict=False):
            places = torch.arange(start, stop) - first
            places = places[(places >= 0) & (places < one.count)]
            if len(places):
                parts.append(sample.others(one.read(places)[0], what=what).inputs)
        return torch.cat(parts)

    return make


def features(seen: Seen, layer: str, pooled: bool) -> Tensor:
    """A layer's activations (n, d): all of them, or the means of its maps; in single precision at least.

    Raises:
        InputError: when some are not finite.
    """
    maps = pooled and bool(seen.layers[layer].layout)
    found = seen.maps(layer).mean(dim=(2, 3)) if maps else seen.activations[layer].flatten(1)
    return _finite(found, layer, "activations")


def slopes(seen: Seen, layer: str, pooled: bool) -> Tensor:
    """The target's gradient by `features`: a mean grows by one where a map grows by one everywhere.

    Raises:
        InputError: when some are not finite.
    """
    maps = pooled and bool(seen.layers[layer].layout)
    found = seen.map_gradients(layer).sum(dim=(2, 3)) if maps else seen.gradients[layer].flatten(1)
    return _finite(found, layer, "gradients")


@dataclass(frozen=True, eq=False)
class Reading:
    """How examples are shown to a model, block by block, and what of it is kept.

    Attributes:
        sample: whose model it is that looks.
        layers: where.
        pooled: whether maps are averaged.
        blocks: where finished blocks are kept, and taken from without a pass.
        digest: the model's, where anything is kept.
    """

    sample: Sample
    layers: Sequence[str]
    pooled: bool
    blocks: Blocks
    digest: str = ""

    def of(self, n: int, make: Callable[[int, int], Tensor]) -> Passes[list[Tensor]]:
        """The features (n, d) of examples at each of the layers.

        Args:
            n: how many examples.
            make: gives those from one place to before another.
        """
        parts: list[list[Tensor]] = []
        for start in range(0, n, BLOCK):
            at = self.sample.others(make(start, min(n, start + BLOCK)), what="the examples of a set")
            key = digest(self.digest, self.layers, self.pooled, at.inputs) if self.blocks else ""
            found = self.blocks.found(key)
            if found is None:
                seen = yield Look(at=at, activations=self.layers)
                found = {layer: features(seen, layer, self.pooled) for layer in self.layers}
                self.blocks.keep(key, found)
            parts.append([found[layer].to(at.device) for layer in self.layers])
        return [torch.cat(several) for several in zip(*parts, strict=True)]


def _finite(found: Tensor, layer: str, what: str) -> Tensor:
    if not bool(torch.isfinite(found).all()):
        raise InputError(f"layer '{layer}' gives {what} that are not finite; expected a model of finite numbers")
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found
