"""Receptive fields, found by what a unit's value depends on: not-a-number spreads wherever there is a way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid import Look, Passes, Sample

DRAWS = 32
"""How many lines of the input are tried in one look."""


def receptive_boxes(one: Sample, layer: str, read: Callable[[Tensor], Tensor]) -> Passes[Tensor]:
    """The smallest boxes of an image that hold all that some units depend on.

    One line of the image after the other is filled with not-a-number. It reaches every unit to which a path leads from
    there, whatever the weights are: zero times it is not a number either, and neither a ReLU nor a pooling stops it. So
    strides, padding, dilation, branches and attention need no table. A pass for each row and column of the image.

    Args:
        one: an image (1, C, H, W).
        layer: where the units are.
        read: takes the layer's activations (rows, ...) and gives those of the units (rows, units).

    Returns:
        (units, 4) top, left, bottom and right, the last two exclusive; the whole image for a unit that nothing reaches.
    """
    height, width = one.inputs.shape[2:]
    reached = []
    for start in range(0, height + width, DRAWS):
        count = min(DRAWS, height + width - start)

        def filled(rows: Tensor, draws: Tensor, examples: Tensor, start: int = start) -> Tensor:
            lines = (draws + start).to(rows.device)[:, None]
            in_row = torch.arange(height, device=rows.device) == lines
            in_column = torch.arange(width, device=rows.device) == lines - height
            hidden = (in_row[:, None, :, None] | in_column[:, None, None, :]).expand_as(rows)
            return rows.masked_fill(hidden, torch.nan)

        seen = yield Look(at=one.derived(count, filled), activations=[layer])
        reached.append(torch.isnan(read(seen.activations[layer][:, 0])))
    lines = torch.cat(reached)
    sides = [_ends(lines[:height]), _ends(lines[height:])]
    return torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], dim=1)


def _ends(reached: Tensor) -> tuple[Tensor, Tensor]:
    """The first line (units,) from which each unit is reached, and the one after the last; all where there is none."""
    size = len(reached)
    lines = torch.arange(size, device=reached.device)[:, None]
    first = torch.where(reached, lines, size).amin(dim=0)
    last = torch.where(reached, lines + 1, 0).amax(dim=0)
    none = ~reached.any(dim=0)
    return first.masked_fill(none, 0), last.masked_fill(none, size)


def cut(sample: Sample, one: Tensor, indices: Tensor, boxes: Tensor) -> Tensor:
    """Cuts boxes (n, 4) out of a sample's images like `one` that indices (n,) name: (n, C, h, w) of the largest's size.

    A box at the image's edge is smaller, because the unit sees padding there: it is filled up with zeros on that side.
    """
    height, width = (boxes[:, 2:] - boxes[:, :2]).amax(dim=0).tolist()
    made = one.new_zeros(len(indices), len(one), height, width)
    for index in torch.unique(indices).tolist():  # each image is read once
        image = sample.part(index, index + 1).inputs[0]
        for place in (indices == index).nonzero().flatten().tolist():
            top, left, bottom, right = boxes[place].tolist()
            down = height - (bottom - top) if top == 0 else 0
            across = width - (right - left) if left == 0 else 0
            made[place, :, down : down + bottom - top, across : across + right - left] = image[
                :, top:bottom, left:right
            ]
    return made
