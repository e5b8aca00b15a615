"""PCA: the orthogonal axes along which states vary most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Check, InputError, ParameterError, Projection, Projector
from pellucid_projection import variance
from pellucid_projection.variance import blocks, centred

RESIDUAL = 1e-5
"""How well axes in a Krylov space solve the eigenproblem, where the spectrum tells them apart."""

MISSED = 0.01
"""How much of the total variance axes may miss that are not told apart."""

LARGEST = 1e140
"""Sums of squares of larger states leave double precision."""


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

    def transform(self, states: Any) -> Tensor:
        """Places states (..., d) on the axes, (..., k), in the type of the states, but in single precision at least.

        Raises:
            InputError: when they have other features than those that the axes were found of.
        """
        points = of_features(given(states), len(self.mean))
        frames = points.reshape(-1, *points.shape[-2:]) if points.dim() > 2 else points.reshape(1, -1, points.shape[-1])
        precision = torch.promote_types(points.dtype, torch.float32)
        places = points.new_empty(*frames.shape[:2], len(self.components), dtype=precision)
        for frame, placed in zip(frames, places, strict=True):  # cut alike, so that equal frames are rounded alike
            for rows, block in zip(blocks(frame), centred(frame, self.mean), strict=True):
                placed[rows] = (block @ self.components.T).to(places)
        return places.view(*points.shape[:-1], -1)

    def restore(self, places: Tensor) -> Tensor:
        """The states (..., d) nearest to places (..., k) on the axes, among those that the axes span."""
        return (places.to(self.mean) @ self.components + self.mean).to(places.dtype)


@dataclass(frozen=True, eq=False)
class PCA(Projector):
    """Places states on the few orthogonal axes along which they vary most.

    The axes are exact, in double precision, where there are at most 256 states or features: eigenvectors of the
    smaller of the covariance and the inner products. Of more they are found in a Krylov space (Musco and Musco, 2015)
    by products in the states' own precision, at least single, and solve the covariance's eigenproblem to 1e-5, as the
    check "residual" says. Where the first axes hardly vary more than many others, as in noise, no method tells them
    apart in few passes (nor does scikit-learn's randomised SVD, which does not say so), and they matter little. The
    search then ends after 10 to 20 steps, and the check "missed" bounds how much of the total variance other axes could
    explain beyond these, whatever the spectrum is.

    The axes do not depend on the seed. Trajectories (T, n, d) are fitted together, so that all times share their axes.

    States are read a few at a time: once each to be checked, for the mean and to be placed, and once for the axes (or
    for each step of the Krylov space), so that a memory-mapped tensor or array of states may be larger than the memory.

    Pearson, "On lines and planes of closest fit to systems of points in space", 1901.

    Attributes:
        n_components: the number of axes.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two, not finite, or beyond 1e140.
        ParameterError: when there are fewer states or features than components.
    """

    n_components: Annotated[int, Ge(1)] = 2

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the axes to the states and places the states on them."""
        states = checked(states)
        axes, solution = self._fit(states)
        total = float(axes.ratio.sum())
        checks: tuple[Check, ...] = (
            Check.info("explained variance", total, f"of the total variance on {self.n_components} axes"),
        )
        if solution is not None:
            checks += _told(solution, total)
        return Projection(axes.transform(states), explained=axes.ratio, checks=checks)

    def fit(self, states: Any) -> Axes:
        """Finds the axes of states (n, d) or (T, n, d); `Axes.transform` then places any others on them."""
        return self._fit(checked(states))[0]

    def _fit(self, states: Tensor) -> tuple[Axes, variance.Solution | None]:
        points = states.reshape(-1, states.shape[-1])
        n, d = points.shape
        if self.n_components > min(n, d):
            raise ParameterError(
                f"n_components={self.n_components} of {n} states with {d} features; expected at most {min(n, d)}"
            )
        mean, total, largest = variance.moments(points)
        solution = None
        if variance.is_small(points, self.n_components):
            squares, components = variance.by_products(points, mean, self.n_components)
        else:
            solution = variance.by_krylov_space(points, mean, total, self.n_components, RESIDUAL)
            squares, components = solution.squares, solution.axes
        greatest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        components = components * torch.where(greatest < 0, -1.0, 1.0)
        # States that are all the same differ from their mean by rounding alone, of which no share can be said.
        rounding = n * d * (8 * torch.finfo(torch.float64).eps * largest) ** 2
        ratio = squares / total if total > rounding else torch.zeros_like(squares)
        return Axes(mean, components, squares / (n - 1), ratio), solution


def _told(solution: variance.Solution, explained: float) -> tuple[Check, ...]:
    """What is known of axes in a Krylov space."""
    told = "of the eigenproblem, to the largest eigenvalue"
    if solution.residual <= RESIDUAL:
        return (Check.bound("residual", solution.residual, RESIDUAL, told),)
    most = min(1 - explained, explained * solution.shortfall / (1 - solution.shortfall))
    note = "of the total variance at most, by other axes, with probability 1 - 1e-6; the variances are too much alike"
    return (Check.bound("missed", most, MISSED, note), Check.info("residual", solution.residual, told))


def given(states: Any) -> Tensor:
    """States as a floating tensor without gradients."""
    points = states.detach() if isinstance(states, Tensor) else torch.tensor(np.asarray(states))
    return points if points.is_floating_point() else points.double()


def of_features(states: Tensor, features: int) -> Tensor:
    """States (..., d) that go on a map of states with so many features; others are refused."""
    if not states.dim() or states.shape[-1] != features:
        raise InputError(f"the states have shape {tuple(states.shape)}; expected (..., {features}), as the map's own")
    return states


def checked(states: Any, *, least: int = 2) -> Tensor:
    """States as a floating tensor (n, d) or (T, n, d) without gradients, at least so many."""
    points = given(states)
    if points.dim() not in (2, 3):
        raise InputError(
            f"the states have shape {tuple(points.shape)}; expected (n, d) points or (T, n, d) points through time. "
            "Flatten maps first: states.flatten(1)"
        )
    if points.shape[-2] * (len(points) if points.dim() == 3 else 1) < least or points.shape[-1] == 0:
        wanted = "two" if least == 2 else "one"
        raise InputError(f"the states have shape {tuple(points.shape)}; expected at least {wanted}, with features")
    rows = points.reshape(-1, points.shape[-1])
    wrong, largest = 0, 0.0
    for some in blocks(rows):
        most = float(torch.stack(torch.aminmax(rows[some])).abs().amax())
        if not math.isfinite(most):  # which tells in a tenth of the time
            wrong += int((~torch.isfinite(rows[some])).any(dim=-1).sum())
        largest = max(largest, most)
    if wrong:
        raise InputError(f"{wrong} of the states have values that are not finite (NaN or infinity); leave them out")
    if largest > LARGEST:
        raise InputError(f"the states are as large as {largest:.0e}: squares leave double precision; scale them")
    return points
