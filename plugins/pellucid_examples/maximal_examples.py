"""Maximal examples: what excites a unit most in a data set."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Blocks, Check, Exemplars, Explainer, InputError, Look, ParameterError, Passes, Sample, Seen
from pellucid_examples.receptive import cut, receptive_boxes
from pellucid_examples.streaming import PICTURE_BYTES, streamed
from pellucid_examples.units import Units


@dataclass(frozen=True, eq=False)
class MaximalExamples(Explainer):
    """Finds the examples of a data set that excite units of a layer most, and cuts them to what the unit sees.

    The sample is the data set, which is looked at some examples at a time; one that does not fit in memory is given as
    a memory-mapped array, a Dataset or a DataLoader. Each unit has a row. In a layer of maps a unit is a channel, an
    example's value its greatest over the positions, and the crop the receptive field of that position. It is found on
    the model itself by what the unit can depend on at all; in networks that squeeze and excite, or attend, that is the
    whole image.

    Zeiler and Fergus, 2014, "Visualizing and understanding convolutional networks", who show these crops beside
    deconvolutions.

    Attributes:
        layer: where the units are; "auto" is the last map of positions.
        channels: which units, or None for all.
        directions: (rows, channels) or (channels,), in place of single channels: the units are their weighted sums.
        k: how many examples for each unit.
        folder: where finished blocks of examples are kept, so that an interrupted run goes on where it stood; None
            keeps nothing.
    """

    layer: str = "auto"
    channels: tuple[Annotated[int, Ge(0)], ...] | None = None
    directions: Any = None
    k: Annotated[int, Ge(1)] = 9
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels == ():
            raise ParameterError("channels is empty; expected at least one, or None for all")
        if self.directions is not None:
            made = torch.as_tensor(self.directions)
            if self.channels is not None or made.dim() not in (1, 2) or not made.is_floating_point():
                raise ParameterError(
                    f"directions are {made.dtype} of shape {tuple(made.shape)}; expected floating-point numbers (rows, "
                    "channels) or (channels,), and no channels besides"
                )

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """All channels, two of them, and a direction."""
        direction = torch.linspace(-1, 1, 8, dtype=torch.float64)
        return [
            cls(k=2),
            cls(channels=(2, 0), k=3),
            cls(directions=direction, k=1),
        ]

    def explain(self, sample: Sample) -> Passes[Exemplars]:
        """A forward pass of each example, one more of the first, and one of it for each row and column of the image."""
        if self.k > len(sample):
            raise InputError(f"k={self.k} of {len(sample)} examples; expected at most {len(sample)}")
        best: dict[str, Tensor] = {}
        first = sample.part(0, 1)
        one = yield Look(at=first, activations=[self.layer], digest=self.folder is not None)
        units = Units.of(one.layers[self.layer], one.activations[self.layer], self.channels, self.directions)

        def reduced(seen: Seen) -> dict[str, Tensor]:
            activations = seen.activations[self.layer]
            excited, places = units.excited(activations).max(dim=2)
            if not bool(torch.isfinite(excited).all()):
                raise InputError(f"layer '{self.layer}' is not finite for some of the examples; remove them")
            return {"values": excited, "positions": places}

        def take(start: int, found: dict[str, Tensor]) -> None:
            shape, device = found["values"].shape, found["values"].device
            examples = torch.arange(start, start + shape[0], device=device)[:, None].expand(shape)
            new = {"values": found["values"], "indices": examples, "positions": found["positions"]}
            both = {name: torch.cat([best[name], one.T], dim=1) if best else one.T for name, one in new.items()}
            # Sorting is stable, so that of equals the first stands first.
            order = both["values"].argsort(dim=1, descending=True, stable=True)[:, : self.k]
            best.update({name: one.gather(1, order) for name, one in both.items()})

        look, told = functools.partial(Look, activations=[self.layer]), (one.digest, "excited", self.layer, *units.told)
        yield from streamed(sample, look, reduced, take, Blocks(self.folder), told)
        boxes, crops = None, None
        checks: list[Check] = []
        if isinstance(first.inputs, Tensor) and first.inputs.dim() == 4:
            places = best["positions"]
            flat = yield from receptive_boxes(first, self.layer, lambda seen: units.at(seen, places))
            boxes = flat.reshape(*places.shape, 4)
            crops, checks = _crops(sample, first.inputs[0], best["indices"], boxes)
        values = best["values"]
        return Exemplars(
            values.float() if values.dtype in (torch.float16, torch.bfloat16) else values,
            best["indices"],
            kind="maximal",
            over=self.layer,
            names=units.names,
            crops=crops,
            boxes=boxes,
            examples=sample.held if boxes is not None else None,
            checks=checks,
        )


def _crops(sample: Sample, one: Tensor, indices: Tensor, boxes: Tensor) -> tuple[Tensor | None, list[Check]]:
    """The images' parts (rows, k, C, h, w) in boxes, and whether they were left out because they are too large."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).flatten(0, 1)
    largest = sizes.amax(dim=0)
    checks = [Check.info("receptive field", float(largest.amax()), "pixels, the longer side of the largest")]
    needed = indices.numel() * len(one) * int(largest.prod()) * one.element_size()
    if needed > PICTURE_BYTES:
        note = f"left out: they would take {needed / 2**20:.0f} MiB; name fewer channels. The boxes say where they lie"
        return None, [*checks, Check.info("crops", note=note)]
    parts = cut(sample, one, indices.flatten(), boxes.flatten(0, 1))
    return parts.reshape(*indices.shape, *parts.shape[1:]), checks
