"""What projectors need of states: that they are points, and which of them are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pellucid import Check, InputError
from pellucid_projection import pca
from pellucid_projection.pca import PCA, of_features


def checked(states: Any) -> Tensor:
    """States as `pca.checked` takes them, in single precision at least: on a coarser map points fall together."""
    points = pca.checked(states)
    return points.to(torch.promote_types(points.dtype, torch.float32))


def fresh(states: Any, features: int) -> Tensor:
    """States, one at least, that go on a map of states with so many features; in single precision at least."""
    points = of_features(pca.checked(states, least=1), features)
    return points.to(torch.promote_types(points.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Unit:
    """What brings points to mean 0 and mean square 1, for libraries that compute in single precision.

    Attributes:
        mean: (d,) what is subtracted.
        scale: what the rest is divided by.
    """

    mean: Tensor
    scale: float

    @classmethod
    def of(cls, points: Tensor) -> Self:
        """The unit of points (n, d)."""
        mean = points.mean(dim=0, dtype=torch.float64)
        away = points.double() - mean
        largest = float(away.abs().amax()) or 1.0  # the squares of what is tiny are zero
        return cls(mean, largest * float((away / largest).square().sum(dim=1).mean()) ** 0.5 or 1.0)

    @classmethod
    def where_needed(cls, points: Tensor) -> Self:
        """The unit of points whose squares single precision does not hold; others it leaves as they are."""
        unit = cls.of(points)
        held = 1e-6 < unit.scale < 1e6 and float(unit.mean.abs().amax()) < 1e3 * unit.scale
        return cls(torch.zeros_like(unit.mean), 1.0) if held else unit

    def __call__(self, points: Tensor) -> Tensor:
        """Points (n, d) in this unit, in double precision."""
        return ((points.double() - self.mean) / self.scale).cpu()


def equal(points: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of equal points (n, d), by index in their order, and for every point which set it is of."""
    rows = (points + 0.0).cpu().contiguous().view(torch.uint8).numpy()  # -0.0 is 0.0
    keys = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
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
    points = Unit.where_needed(points)(points).to(points)
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
