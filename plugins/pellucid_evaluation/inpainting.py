"""Filling what is hidden from what surrounds it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MOMENTUM = 0.6  # takes a third off the error that as many plain sweeps leave in large holes


def inpaint(images: Tensor, shown: Tensor, *, sweeps: int = 8) -> Tensor:
    """Replaces hidden pixels by the weighted mean of their neighbours, as ROAD's linear imputation does.

    Each hidden pixel is to equal the sum of its eight neighbours' values, direct ones with weight 1/6 and diagonal ones
    with 1/12 (Rong et al., "A consistent and efficient evaluation strategy for attribution methods", 2022). The paper
    solves a sparse system for every image. Here the equations are relaxed on a pyramid: the problem at half the
    resolution gives the first guess, and binomial smoothing, whose fixed point solves them, removes most of the rest:
    with 8 sweeps the root mean square distance to the exact fill of a photo is about a hundredth of its range, with
    holes of up to 8 x 8 pixels in half of it.

    Args:
        images: (B, C, ...) with one or two spatial axes.
        shown: (B, 1, ...) booleans, true for pixels that are kept. Where nothing is shown the result is zero.
        sweeps: how often the finest level is smoothed; each coarser one, being cheaper, twice as often.
    """
    if images.dim() == 3:
        return inpaint(images[:, :, None], shown[:, :, None], sweeps=sweeps)[:, :, 0]
    if bool(shown.all()):
        return images
    weight = shown.to(images)
    known = images * weight
    height, width = images.shape[2:]
    if max(height, width) == 1:
        return known
    stride = (min(2, height), min(2, width))
    share = F.avg_pool2d(weight, stride, ceil_mode=True)
    coarse = F.avg_pool2d(known, stride, ceil_mode=True) / torch.where(share > 0, share, 1)
    filled = inpaint(coarse, share > 0, sweeps=2 * sweeps)
    guess = before = torch.where(shown, images, F.interpolate(filled, (height, width), mode="bilinear"))
    for _ in range(sweeps):
        step = _smoothed(guess) + _MOMENTUM * (guess - before)
        before, guess = guess, torch.where(shown, images, step)
    return guess


def _smoothed(images: Tensor) -> Tensor:
    """Weighs every pixel's neighbourhood by (1, 2, 1) / 4 along both axes; outside, the border's pixels go on."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    # Sums of two neighbours, taken twice along each axis: several times faster than a convolution of so few weights.
    for axis in (2, 2, 3, 3):
        count = padded.shape[axis] - 1
        padded = padded.narrow(axis, 0, count) + padded.narrow(axis, 1, count)
    return padded / 16
