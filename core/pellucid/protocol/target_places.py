"""Targets at a place of the model: a unit, a region of a map, the similarity to an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import TargetError
from pellucid.protocol.target import Score, Target, check_classes, check_rows


@dataclass(frozen=True, eq=False)
class Unit(Target):
    """A unit or a whole channel of a layer.

    Attributes:
        layer: the layer's name.
        channel: the channel (axis 1), or the unit of a layer (B, features).
        position: a place in the remaining axes, or None for the mean over them.
    """

    layer: str
    channel: int
    position: tuple[int, ...] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The unit's layer."""
        return (self.layer,)

    def score(self, given: Score) -> Tensor:
        """The unit's activation, or the channel's mean one."""
        maps = given.activations[self.layer]
        if maps.dim() < 2 or not -maps.shape[1] <= self.channel < maps.shape[1]:
            raise TargetError(
                f"layer '{self.layer}' gives {tuple(maps.shape)}; channel {self.channel} is out of range for its axis 1"
            )
        channel = maps[:, self.channel]
        if self.position is None:
            return channel.flatten(1).mean(dim=1) if channel.dim() > 1 else channel
        if len(self.position) != channel.dim() - 1 or any(
            not -size <= place < size for place, size in zip(self.position, channel.shape[1:], strict=True)
        ):
            raise TargetError(
                f"position {self.position} does not lie in the layer's positions, {tuple(channel.shape[1:])}"
            )
        for place in self.position:
            channel = channel[:, place]
        return channel

    def describe(self) -> Any:
        """The layer, channel and position."""
        position = None if self.position is None else list(self.position)
        return {"unit": {"layer": self.layer, "channel": self.channel, "position": position}}


@dataclass(frozen=True, eq=False)
class Region(Target):
    """The mean logit of a class over a region of a segmentation map.

    Attributes:
        index: the class.
        mask: (h, w) or (B, h, w), of the size of the model's output map; weights or booleans; None is everywhere.
    """

    index: int
    mask: Tensor | None = None

    def check(self, examples: int) -> None:
        """The mask must be (h, w), or (B, h, w) with as many as there are examples."""
        if self.mask is None:
            return
        if self.mask.dim() not in (2, 3):
            raise TargetError(f"the region's mask has shape {tuple(self.mask.shape)}; expected (h, w) or (B, h, w)")
        if self.mask.dim() == 3:
            check_rows("the region's masks", self.mask, examples)

    def score(self, given: Score) -> Tensor:
        """The weighted mean logit over the region."""
        logits = given.logits()
        if logits.dim() != 4:
            raise TargetError(f"Region needs an output (B, classes, h, w); the model gives {tuple(logits.shape)}")
        check_classes(torch.tensor([self.index]), logits)
        maps = logits[:, self.index]
        if self.mask is None:
            return maps.mean(dim=(1, 2))
        mask = self.mask.to(maps, copy=True)  # one made under inference mode could not be used
        if mask.dim() == 3:
            mask = mask[given.examples.to(mask.device)]
        if mask.shape[-2:] != maps.shape[-2:]:
            raise TargetError(
                f"the region's mask is {tuple(mask.shape[-2:])}; the output map is {tuple(maps.shape[-2:])}"
            )
        total = mask.expand_as(maps).sum(dim=(1, 2))
        if bool((total == 0).any()):
            raise TargetError("the region's mask is empty for at least one example; expected at least one position")
        return (maps * mask).sum(dim=(1, 2)) / total

    def repeated(self, n: int) -> Target:
        """The same masks once more for each copy."""
        return self if self.mask is None or self.mask.dim() == 2 else Region(self.index, self.mask.repeat(n, 1, 1))

    def picked(self, examples: Tensor) -> Target:
        """The masks of some examples."""
        return self if self.mask is None or self.mask.dim() == 2 else Region(self.index, self.mask[examples])

    def describe(self) -> Any:
        """The class and the region's size."""
        return {
            "region": {"class": self.index, "positions": None if self.mask is None else int((self.mask != 0).sum())}
        }


@dataclass(frozen=True, eq=False)
class Similarity(Target):
    """The cosine similarity of the model's output, or of a layer, to an embedding.

    Attributes:
        embedding: (features,) for all examples or (B, features).
        layer: the layer that is compared, or None for the output.
    """

    embedding: Tensor
    layer: str | None = None

    def check(self, examples: int) -> None:
        """The embedding must be (features,), or (B, features) with as many as there are examples."""
        if self.embedding.dim() > 1:
            check_rows("the embeddings", self.embedding, examples)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer, if any."""
        return () if self.layer is None else (self.layer,)

    def score(self, given: Score) -> Tensor:
        """The cosine of each row with its embedding."""
        here = (given.logits() if self.layer is None else given.activations[self.layer]).flatten(1)
        embedding = self.embedding.to(here, copy=True)  # one made under inference mode could not be used
        if embedding.dim() > 1:
            embedding = embedding[given.examples.to(here.device)].flatten(1)
        if embedding.shape[-1] != here.shape[-1]:
            raise TargetError(f"the embedding has {embedding.shape[-1]} features; the model gives {here.shape[-1]}")
        return F.cosine_similarity(here, embedding.expand_as(here), dim=1)

    def repeated(self, n: int) -> Target:
        """The same embeddings once more for each copy."""
        if self.embedding.dim() == 1:
            return self
        return Similarity(self.embedding.repeat(n, *(1,) * (self.embedding.dim() - 1)), self.layer)

    def picked(self, examples: Tensor) -> Target:
        """The embeddings of some examples."""
        return self if self.embedding.dim() == 1 else Similarity(self.embedding[examples], self.layer)

    def describe(self) -> Any:
        """Where the similarity is taken."""
        return {"similarity": {"layer": self.layer, "features": self.embedding.shape[-1]}}
