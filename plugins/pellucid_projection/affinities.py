"""Affinities of t-SNE within a frame, and places among points that have some already."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pellucid_projection.points import equal

BISECTIONS = 50


def affinities(points: Tensor, perplexity: float) -> Tensor:
    """The joint probabilities (n, n) of t-SNE, in single precision; they sum to one.

    Args:
        points: (n, d).
        perplexity: the effective number of each point's neighbours.
    """
    squares = torch.cdist(points, points).square_()
    squares.fill_diagonal_(torch.inf)
    given = conditional(squares, perplexity)
    return ((given + given.T) / (2 * len(points))).float()


def conditional(squares: Tensor, perplexity: float) -> Tensor:
    """Each row's probabilities, proportional to exp(-b x squared distance), with b such that the perplexity is met."""
    shifted = squares - squares.amin(dim=1, keepdim=True)
    finite = torch.where(shifted.isinf(), 0.0, shifted)
    shifted = shifted / (finite.sum(dim=1, keepdim=True) / squares.shape[1]).clamp_min(1e-300)
    rate = torch.ones(len(squares), 1, dtype=squares.dtype)
    low, high = torch.zeros_like(rate), torch.full_like(rate, torch.inf)
    probabilities = shifted
    for _ in range(BISECTIONS):
        probabilities = torch.exp(-shifted * rate)
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
        entropy = -torch.xlogy(probabilities, probabilities).sum(dim=1, keepdim=True)
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, rate, low), torch.where(wide, high, rate)
        rate = torch.where(high.isinf(), rate * 2, (low + high) / 2)
    return probabilities


def among(frames: Tensor, landmarks: Tensor, places: Tensor, perplexity: float) -> Tensor:
    """Places all points of each frame among landmarks, as the mean of the nearest by their affinities.

    States that are equal, at whatever times, get the place of the first of them.

    Args:
        frames: (T, n, d) the points.
        landmarks: (m,) which of them have places.
        places: (T, m, k).
        perplexity: of the map; a tenth of it, at least two, makes the affinities.
    """
    placed = places.new_zeros(*frames.shape[:2], places.shape[-1])
    near = max(2.0, perplexity / 10)
    count = min(len(landmarks), math.ceil(3 * near))
    for frame, known, out in zip(frames, places, placed, strict=True):
        marks = frame[landmarks].double()
        for rows in torch.split(torch.arange(len(frame)), 1024):
            squares, nearest = torch.cdist(frame[rows].double(), marks).square_().topk(count, largest=False)
            weights = conditional(squares, near).to(known)
            out[rows] = (weights.unsqueeze(-1) * known[nearest]).sum(dim=1)
        out[landmarks] = known
    first, which = equal(frames.flatten(0, 1))
    return placed.flatten(0, 1)[first[which]].view(placed.shape)
