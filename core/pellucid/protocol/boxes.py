"""Boxes of images and maps: left, top, right and bottom, with x to the right and y downwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.errors import TargetError


def boxes_of(given: Sequence[float] | Tensor) -> Tensor:
    """Makes a tensor (4,) or (B, 4) of boxes, a copy.

    Raises:
        TargetError: when they have another shape, are not finite, or have no area.
    """
    try:
        boxes = torch.as_tensor(given).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"the box is {given!r}; expected four numbers: left, top, right, bottom") from None
    if boxes.dim() not in (1, 2) or boxes.shape[-1] != 4 or boxes.is_complex() or boxes.dtype == torch.bool:
        raise TargetError(
            f"the boxes are {boxes.dtype} of shape {tuple(boxes.shape)}; expected left, top, right and bottom as (4,) "
            "for all examples, or (B, 4)"
        )
    boxes = boxes if boxes.is_floating_point() else boxes.to(torch.get_default_dtype())
    flat = boxes.reshape(-1, 4)
    sound = torch.isfinite(flat).all(dim=1) & (flat[:, 2:] > flat[:, :2]).all(dim=1)
    if not bool(sound.all()):
        raise TargetError(
            f"the box {flat[~sound][0].tolist()} has no area; expected finite left < right and top < bottom, in this "
            "order: left, top, right, bottom"
        )
    return boxes


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """The intersection of a box (4,) with each of some boxes (n, 4), over their union: (n,)."""
    shared = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp_min(0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)
