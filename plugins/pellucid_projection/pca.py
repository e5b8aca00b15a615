"""PCA: the orthogonal axes along which states vary most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Check, InputError, ParameterError, Projection, Projector
from pellucid_projection import variance
from pellucid_projection.variance import blocks

RESIDUAL = 1e-5
"""How well axes in a Krylov space solve the eigenproblem."""


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a fitted PCA.

    Attributes:
        mean: (d,) the states' mean.
        components: (k, d) orthonormal axes, the one of the largest variance first. An axis has no sign of its own: its
            largest entry by magnitude, the first of equals, is made positive.
        variance: (k,) the variance along each axis, divided by n - 1.
        ratio: (k,) its share of the total variance; zero where all states are the same.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    ratio: Tensor

    def transform(self, states: Tensor) -> Tensor:
        """Places states (..., d) on the axes, (..., k), in the type of the states."""
        points = states.reshape(-1, states.shape[-1])
        places = points.new_empty(len(points), len(self.components))
        for rows in blocks(points):
            places[rows] = ((points[rows].to(self.mean) - self.mean) @ self.components.T).to(places)
        return places.view(*states.shape[:-1], -1)

    def restore(self, places: Tensor) -> Tensor:
        """The states (..., d) nearest to places (..., k) on the axes, among those that the axes span."""
        return (places.to(self.mean) @ self.components + self.mean).to(places.dtype)


@dataclass(frozen=True, eq=False)
class PCA(Projector):
    """Places states on the few orthogonal axes along which they vary most.

    The axes are exact, in double precision, where there are at most 1024 states or features: eigenvectors of the
    smaller of the covariance and the inner products. Of more they are found in a Krylov space (Musco and Musco, 2015),
    grown until they solve the covariance's eigenproblem to 1e-5, or to what the check "residual" says. They do not
    depend on the seed. Trajectories (T, n, d) are fitted together, so that all times share their axes.

    States are read a few at a time, at most once for the mean and twice for the axes (or once for each step of the
    Krylov space), so that a memory-mapped tensor or array of states may be larger than the memory.

    Pearson, "On lines and planes of closest fit to systems of points in space", 1901.

    Attributes:
        n_components: the number of axes.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two, or not finite.
        ParameterError: when there are fewer states or features than components.
    """

    n_components: Annotated[int, Ge(1)] = 2

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the axes to the states and places the states on them."""
        states = checked(states)
        axes, residual = self._fit(states)
        total = float(axes.ratio.sum())
        checks: tuple[Check, ...] = (
            Check.info("explained variance", total, f"of the total variance on {self.n_components} axes"),
        )
        if residual is not None:
            checks += (Check.bound("residual", residual, RESIDUAL, "of the eigenproblem, to the largest eigenvalue"),)
        return Projection(axes.transform(states), explained=axes.ratio, checks=checks)

    def fit(self, states: Any) -> Axes:
        """Finds the axes of states (n, d) or (T, n, d); `Axes.transform` then places any others on them."""
        return self._fit(checked(states))[0]

    def _fit(self, states: Tensor) -> tuple[Axes, float | None]:
        points = states.reshape(-1, states.shape[-1])
        n, d = points.shape
        if self.n_components > min(n, d):
            raise ParameterError(
                f"n_components={self.n_components} of {n} states with {d} features; expected at most {min(n, d)}"
            )
        mean, total, largest = variance.moments(points)
        if d <= min(n, variance.DENSE):
            squares, components = variance.by_covariance(points, mean, self.n_components)
            residual = None
        elif n <= variance.DENSE:
            squares, components = variance.by_inner_products(points, mean, self.n_components)
            residual = None
        else:
            squares, components, residual = variance.by_krylov_space(points, mean, self.n_components, RESIDUAL)
        greatest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        components = components * torch.where(greatest < 0, -1.0, 1.0)
        # States that are all the same differ from their mean by rounding alone, of which no share can be said.
        rounding = n * d * (8 * torch.finfo(torch.float64).eps * largest) ** 2
        ratio = squares / total if total > rounding else torch.zeros_like(squares)
        return Axes(mean, components, squares / (n - 1), ratio), residual


def checked(states: Any) -> Tensor:
    """States as a floating tensor (n, d) or (T, n, d) without gradients."""
    points = states.detach() if isinstance(states, Tensor) else torch.tensor(states)
    points = points if points.is_floating_point() else points.double()
    if points.dim() not in (2, 3):
        raise InputError(
            f"the states have shape {tuple(points.shape)}; expected (n, d) points or (T, n, d) points through time. "
            "Flatten maps first: states.flatten(1)"
        )
    if points.shape[-2] * (len(points) if points.dim() == 3 else 1) < 2 or points.shape[-1] == 0:
        raise InputError(f"the states have shape {tuple(points.shape)}; expected at least two, with features")
    rows = points.reshape(-1, points.shape[-1])
    wrong = sum(int((~torch.isfinite(rows[some])).any(dim=-1).sum()) for some in blocks(rows))
    if wrong:
        raise InputError(f"{wrong} of the states have values that are not finite (NaN or infinity); leave them out")
    return points
