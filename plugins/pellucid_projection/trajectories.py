"""The stress of trajectories on a map: how far the moves drawn differ from the moves of states."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-3
"""Pairs of times closer than this share of the mean weigh no more, or rounding would decide."""

STILL = 1e-12
"""States that lie closer than this in the mean, of points as wide as one, differ by rounding alone: nothing moves."""


class Trajectories:
    """The distances between all pairs of times of each point, and the stress of a map that draws them.

    The stress is the mean squared relative error of the moves drawn,

        sum w (d - s D)^2 / sum w (s D)^2,   w = 1 / D^2,

    over all pairs of times of each point, with D their distance in state space, d that on the map, and s the scale of
    the map: how far points lie from their frame's centre, on the map to as states, in the mean. So short moves count
    as much as long ones: a point that hardly moves is hardly moved.

    Takes memory of order n T^2.

    Attributes:
        distances: (n, T, T).
    """

    def __init__(self, points: Tensor) -> None:
        """Measures points (T, n, d), in double precision, that are about as wide as one."""
        paths = points.transpose(0, 1)
        self.distances = torch.cdist(paths, paths, compute_mode="donot_use_mm_for_euclid_dist").float()
        self.distances.diagonal(dim1=1, dim2=2).zero_()
        count = max(1, self.distances.numel() - self.distances.shape[0] * self.distances.shape[1])
        mean = float(self.distances.double().sum()) / count
        weights = self.distances.clamp_min(SHORTEST * mean).reciprocal().square()
        if mean < STILL:
            weights = torch.zeros_like(weights)
        weights.diagonal(dim1=1, dim2=2).zero_()
        self.size = float((weights * self.distances.square()).double().sum()) / 2
        self._spread = spread(points)
        self._length = float(self.distances.double().sum())
        self._weights, self._pulls = weights, weights * self.distances
        # The Laplacian of a trajectory's weights bounds the curvature of its stress (de Leeuw, 1977).
        laplacians = torch.diag_embed(weights.sum(dim=-1)) - weights
        rates, self._modes = torch.linalg.eigh(laplacians)
        self._rates = rates.clamp_min(0).unsqueeze(-1)

    def scale(self, places: Tensor) -> float:
        """The scale s of a map (T, n, k). Of a single trajectory, which has no width, it is the one that fits."""
        if self._spread:
            return spread(places) / self._spread
        return float(_lengths(places).double().sum()) / self._length if self._length else 0.0

    def stress(self, places: Tensor) -> float:
        """The stress of a map (T, n, k)."""
        scale = self.scale(places)
        if not scale or not self.size:
            return 0.0
        errors = self._weights * (_lengths(places) - scale * self.distances).square()
        return float(errors.double().sum()) / (2 * scale**2 * self.size)

    def slope(self, places: Tensor) -> tuple[Tensor, float]:
        """The slope of the stress at a map (T, n, k), s held; and the factor of the curvature that `damped` takes."""
        scale = self.scale(places)
        if not scale or not self.size:
            return torch.zeros_like(places), 0.0
        factor = 2 / (scale**2 * self.size)
        forces = self._weights - scale * self._pulls / _lengths(places).clamp_min(1e-9)
        # Short moves have large weights, whose rounding must not move the whole trajectory.
        paths = (places - places.mean(dim=0)).transpose(0, 1)
        slope = (forces.sum(dim=-1, keepdim=True) * paths - forces @ paths).transpose(0, 1)
        return factor * (slope - slope.mean(dim=0)), factor

    def damped(self, slope: Tensor, curvature: float) -> Tensor:
        """Solves (I + curvature x Laplacian) x = slope (T, n, k) along each trajectory, so that no step overshoots."""
        whole = slope.mean(dim=0)  # which a Laplacian does not see
        modes = self._modes.transpose(1, 2) @ (slope - whole).transpose(0, 1)
        damped: Tensor = (self._modes @ (modes / (1 + curvature * self._rates))).transpose(0, 1)
        return damped - damped.mean(dim=0) + whole


def spread(points: Tensor) -> float:
    """How far points (T, n, d) lie from their frame's centre, in the mean."""
    return float((points - points.mean(dim=1, keepdim=True)).norm(dim=-1).double().mean())


def _lengths(places: Tensor) -> Tensor:
    """(n, T, T) the distances of each point's places (T, n, k)."""
    paths = places.transpose(0, 1)
    return torch.cdist(paths, paths, compute_mode="donot_use_mm_for_euclid_dist")
