"""Random projection: the control of maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge

from pellucid import Projection, Projector
from pellucid_projection.pca import Axes, checked


@dataclass(frozen=True, eq=False)
class RandomProjection(Projector):
    """Places states on random directions: the control that a map must beat.

    The directions are drawn from a Gaussian and divided by the root of their number, so that squared distances are kept
    in the mean (Johnson and Lindenstrauss, 1984). On two axes they are kept badly; what looks structured here is so in
    any direction.

    Attributes:
        n_components: the number of axes.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two, or not finite.
    """

    n_components: Annotated[int, Ge(1)] = 2

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Draws the axes and places the states on them."""
        states = checked(states)
        axes = self.fit(states, seed=seed)
        return Projection(axes.transform(states), explained=axes.ratio)

    def fit(self, states: Any, *, seed: int = 0) -> Axes:
        """Draws axes for states (n, d) or (T, n, d); `Axes.transform` then places any others on them."""
        points = checked(states).flatten(0, -2)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.n_components, points.shape[1], generator=generator, dtype=torch.float64)
        components = (drawn / self.n_components**0.5).to(points.device)
        mean = points.mean(dim=0, dtype=torch.float64)
        variance = ((points.double() - mean) @ components.T).square().sum(dim=0) / (len(points) - 1)
        lengths = components.norm(dim=1).square()
        total = (points.double() - mean).square().sum() / (len(points) - 1)
        ratio = variance / lengths / total if float(total) > 0 else torch.zeros_like(variance)
        return Axes(mean, components, variance, ratio)
