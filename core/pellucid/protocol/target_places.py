"""Targets at a place of the model: a unit, a region of a map, the similarity to an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import TargetError
from pellucid.protocol.boxes import boxes_of
from pellucid.protocol.target import FixedBy, Score, Target, check_classes, check_rows

if TYPE_CHECKING:
    from pellucid.protocol.sample import Sample


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
    """The logit of a class over a region of a segmentation map.

    Mask, box and prediction each narrow the region; without any of them it is the whole map. A model with several maps,
    such as an auxiliary one, is told by `pellucid.adapt(model, output="aux")` which of them counts.

    Attributes:
        index: the class; of a model that gives one value for each position, such as a depth, 0.
        mask: (h, w) or (B, h, w), of the size of the model's output map; weights or booleans; None is everywhere.
        box: left, top, right and bottom, (4,) or (B, 4), in positions of the output map: those whose centres lie in it.
            None is everywhere.
        predicted: whether only the positions count at which the model, shown the sample itself, predicts the class.
            They stay the same for inputs derived from the sample.
        reduce: "mean", the mean over the region weighted by the mask, or "sum", which larger regions make larger.
    """

    index: int
    mask: Tensor | None = None
    box: Sequence[float] | Tensor | None = None
    predicted: bool = False
    reduce: Literal["mean", "sum"] = "mean"

    def check(self, examples: int) -> None:
        """The mask must be (h, w) or (B, h, w), the box (4,) or (B, 4), with as many as there are examples."""
        if self.reduce not in ("mean", "sum"):
            raise TargetError(f"the region's reduce={self.reduce!r}; expected 'mean' or 'sum'")
        if self.box is not None:
            boxes = boxes_of(self.box)
            if boxes.dim() == 2:
                check_rows("the region's boxes", boxes, examples)
        if self.mask is None:
            return
        if self.mask.dim() not in (2, 3):
            raise TargetError(f"the region's mask has shape {tuple(self.mask.shape)}; expected (h, w) or (B, h, w)")
        if self.mask.dim() == 3:
            check_rows("the region's masks", self.mask, examples)

    def base(self, sample: Sample) -> Sample | None:
        """The sample itself, where the region is where the class is predicted."""
        return sample if self.predicted else None

    def score(self, given: Score) -> Tensor:
        """The weighted mean or sum of the logit over the region."""
        logits = given.logits()
        if logits.dim() != 4:
            raise TargetError(f"Region needs an output (B, classes, h, w); the model gives {tuple(logits.shape)}")
        check_classes(torch.tensor([self.index]), logits)
        maps = logits[:, self.index]
        weights = torch.ones_like(maps)
        for part in (self._masked(maps, given), self._boxed(maps, given), self._predicted(maps, given)):
            weights = weights if part is None else weights * part
        total = weights.sum(dim=(1, 2))
        if bool((total == 0).any()):
            empty = sorted(set(given.examples[(total == 0).cpu()].tolist()))
            where = f" where class {self.index} is predicted" if self.predicted else ""
            raise TargetError(
                f"the region{where} is empty for examples {empty[:10]}; expected at least one position of the "
                f"{tuple(maps.shape[1:])} of the output map"
            )
        summed = (maps * weights).sum(dim=(1, 2))
        return summed / total if self.reduce == "mean" else summed

    def _masked(self, maps: Tensor, given: Score) -> Tensor | None:
        if self.mask is None:
            return None
        mask = self.mask.to(maps, copy=True)  # one made under inference mode could not be used
        if mask.dim() == 3:
            mask = mask[given.examples.to(mask.device)]
        if mask.shape[-2:] != maps.shape[-2:]:
            raise TargetError(
                f"the region's mask is {tuple(mask.shape[-2:])}; the output map is {tuple(maps.shape[-2:])}"
            )
        return mask

    def _boxed(self, maps: Tensor, given: Score) -> Tensor | None:
        if self.box is None:
            return None
        boxes = boxes_of(self.box).to(maps)
        height, width = maps.shape[1:]
        outside = (boxes < 0) | (boxes > boxes.new_tensor([width, height, width, height]))
        if bool(outside.any()):
            wrong = boxes.reshape(-1, 4)[outside.reshape(-1, 4).any(dim=1)][0].tolist()
            raise TargetError(
                f"the region's box {wrong} does not lie in the output map, {height} high and {width} wide"
            )
        if boxes.dim() == 2:
            boxes = boxes[given.examples.to(boxes.device)]
        left, top, right, bottom = boxes[..., None].unbind(-2)
        x, y = (torch.arange(size).to(maps) + 0.5 for size in (width, height))
        rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
        return (rows[..., :, None] & columns[..., None, :]).to(maps)

    def _predicted(self, maps: Tensor, given: Score) -> Tensor | None:
        if not self.predicted:
            return None
        if given.base is None:
            raise TargetError("the predicted positions are not known yet; expected the sample's own output")
        base = given.base[given.examples.to(given.base.device)]
        return (base.argmax(dim=1) == self.index % base.shape[1]).to(maps)

    def fixed_by(self, sample: Sample) -> Target:
        """Other inputs keep the positions that were predicted for the sample itself."""
        return FixedBy(self, sample, torch.arange(len(sample))) if self.predicted else self

    def repeated(self, n: int) -> Target:
        """The same masks and boxes once more for each copy."""
        return self._with(lambda each: each.repeat(n, *(1,) * (each.dim() - 1)))

    def picked(self, examples: Tensor) -> Target:
        """The masks and boxes of some examples."""
        return self._with(lambda each: each[examples])

    def _with(self, change: Callable[[Tensor], Tensor]) -> Region:
        """The region with what there is for each example changed."""
        mask = change(self.mask) if self.mask is not None and self.mask.dim() == 3 else self.mask
        boxes = None if self.box is None else boxes_of(self.box)
        return replace(self, mask=mask, box=change(boxes) if boxes is not None and boxes.dim() == 2 else self.box)

    def describe(self) -> Any:
        """The class, the region's size, and how it is summed up."""
        return {
            "region": {
                "class": self.index,
                "positions": None if self.mask is None else int((self.mask != 0).sum()),
                "box": None if self.box is None else boxes_of(self.box).tolist(),
                "predicted": self.predicted,
                "reduce": self.reduce,
            }
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
