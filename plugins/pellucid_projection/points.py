"""What projectors need of states: that they are points, and which of them are the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pellucid import Check, InputError
from pellucid_projection.pca import PCA, checked

__all__ = ["checked", "distinct", "equal", "fewer", "principal"]


def equal(points: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of equal points (n, d), by index in their order, and for every point which set it is of."""
    rows = np.ascontiguousarray((points + 0.0).cpu().numpy())  # -0.0 is 0.0
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(rank[which.ravel()])


def distinct(points: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """The first of each set of equal points (n, d), in their order, and for every point which of those it is.

    A method that gets each point once gives equal points equal places, exactly.

    Args:
        points: (n, d).
        least: how many different ones are needed.

    Raises:
        InputError: when all points are the same.
    """
    first, which = equal(points)
    if len(first) < least:
        raise InputError(
            f"all {len(points)} states are the same, so that no map tells them apart; expected two at least"
        )
    return points[first], which


def principal(points: Tensor, n_components: int, spread: float) -> Tensor:
    """Points (n, d) on their principal axes, (n, n_components), to start a map from.

    Axes that the points do not have get a fixed pattern a hundredth as wide, which lets a map leave the line or plane
    that it starts on.

    Args:
        points: (n, d).
        n_components: how many axes.
        spread: the standard deviation along the first.
    """
    count = min(n_components, *points.shape)
    places = PCA(n_components=count).fit(points).transform(points).double()
    places = places / places[:, 0].std().clamp_min(1e-30) * spread
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(len(points), n_components - count, generator=generator, dtype=torch.float64)
    return torch.cat([places, 0.01 * spread * pattern], dim=1)


def fewer(name: str, wanted: float, most: float) -> tuple[float, tuple[Check, ...]]:
    """A number of neighbours, no more than the points allow, and a note where they are fewer than was asked."""
    if wanted <= most:
        return wanted, ()
    return most, (Check.info(name, most, f"lowered from {wanted:g}: there are too few points for more"),)
