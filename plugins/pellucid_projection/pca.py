"""PCA: the orthogonal axes along which states vary most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Check, InputError, ParameterError, Projection, Projector


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
        return ((states.to(self.mean) - self.mean) @ self.components.T).to(states.dtype)

    def restore(self, places: Tensor) -> Tensor:
        """The states (..., d) nearest to places (..., k) on the axes, among those that the axes span."""
        return (places.to(self.mean) @ self.components + self.mean).to(places.dtype)


@dataclass(frozen=True, eq=False)
class PCA(Projector):
    """Places states on the few orthogonal axes along which they vary most.

    The axes are exact: eigenvectors of the covariance where there are at least as many states as features, right
    singular vectors of the centred states else, in double precision. They do not depend on the seed. Trajectories
    (T, n, d) are fitted together, so that all times share their axes.

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
        axes = self.fit(states)
        total = float(axes.ratio.sum())
        note = f"of the total variance on {self.n_components} axes"
        return Projection(
            axes.transform(states),
            explained=axes.ratio,
            checks=(Check.info("explained variance", total, note),),
        )

    def fit(self, states: Any) -> Axes:
        """Finds the axes of states (n, d) or (T, n, d); `Axes.transform` then places any others on them."""
        points = checked(states).flatten(0, -2)
        n, d = points.shape
        if self.n_components > min(n, d):
            raise ParameterError(
                f"n_components={self.n_components} of {n} states with {d} features; expected at most {min(n, d)}"
            )
        mean = points.mean(dim=0, dtype=torch.float64)
        if n >= d:
            covariance = torch.zeros(d, d, dtype=torch.float64, device=points.device)
            for part in torch.split(points, 4096):  # the copy in double precision is of a part at a time
                centred = part.double() - mean
                covariance.addmm_(centred.T, centred)
            squares, vectors = torch.linalg.eigh(covariance)
            squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1).T
        else:
            _, singular, vectors = torch.linalg.svd(points.double() - mean, full_matrices=False)
            squares = singular**2
        components = vectors[: self.n_components]
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        components = components * torch.where(largest < 0, -1.0, 1.0)
        kept, total = squares[: self.n_components], squares.sum()
        # States that are all the same differ from their mean by rounding alone, of which no share can be said.
        rounding = n * d * (8 * torch.finfo(torch.float64).eps * float(points.abs().max())) ** 2
        ratio = kept / total if total > rounding else torch.zeros_like(kept)
        return Axes(mean, components, kept / (n - 1), ratio)


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
    wrong = int((~torch.isfinite(points)).any(dim=-1).sum())
    if wrong:
        raise InputError(f"{wrong} of the states have values that are not finite (NaN or infinity); leave them out")
    return points
