"""Minimum-distortion embedding, by PyMDE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Check, ParameterError, Projection, Projector
from pellucid_projection.points import Unit, checked, distinct, fewer, fresh, principal


@dataclass(frozen=True, eq=False)
class FittedMDE:
    """A map that PyMDE made.

    Attributes:
        points: (n, d) the different states that it was fitted to.
        places: (n, k) where they are.
        n_neighbors: as for `MDE`.
        max_iter: as for `MDE`.
        seed: as for `MDE.fit`.
    """

    points: Tensor
    places: Tensor
    n_neighbors: int
    max_iter: int
    seed: int

    def transform(self, states: Any) -> Tensor:
        """Places states (n, d) or (T, n, d) on the map, in the type of the states, but in single precision at least.

        The states of the map stay where they are, and states equal to them get exactly their places; the others are
        embedded among them and one another.
        """
        import pymde

        states = fresh(states, self.points.shape[1])
        new, which = distinct(torch.cat([self.points, states.flatten(0, -2).to(self.points)]), least=1)
        known = len(self.points)
        if len(new) > known:
            fixed = pymde.Anchored(anchors=torch.arange(known), values=self.places)
            nearest = torch.cdist(new[known:].double(), self.points.double()).argmin(dim=1)
            start = torch.cat([self.places, self.places[nearest]])
            places = _embedded(new, start, self.n_neighbors, self.max_iter, self.seed, fixed)[0]
        else:
            places = self.places
        return places[which[known:]].view(*states.shape[:-1], -1).to(states)


@dataclass(frozen=True, eq=False)
class MDE(Projector):
    """Places states by PyMDE, so that neighbours are near and the others are not, with the least average distortion.

    Trajectories (T, n, d) are mapped as one cloud; `dynamic_tsne` keeps them better. Equal states have equal places.
    It starts from the principal axes; which pairs should be far is drawn.

    Agrawal, Ali and Boyd, "Minimum-distortion embedding", 2021.

    Attributes:
        n_components: the number of axes.
        n_neighbors: how many neighbours each state has; fewer than there are states.
        max_iter: the most iterations of L-BFGS; it ends sooner where the gradient is small.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two different ones, or not finite.
        ParameterError: when there are too few different states for the number of axes.
    """

    n_components: Annotated[int, Ge(1)] = 2
    n_neighbors: Annotated[int, Ge(2)] = 15
    max_iter: Annotated[int, Ge(1)] = 300

    @classmethod
    def test_instances(cls) -> list[Projector]:
        """From the principal axes it is soon near enough to its end."""
        return [cls(max_iter=40)]

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to the states."""
        states = checked(states)
        points, which = distinct(states.flatten(0, -2))
        places, distortion, notes = self._fit(points, seed)
        notes += (Check.info("distortion", distortion, "the average over pairs, which is minimised"),)
        return Projection(places[which].view(*states.shape[:-1], -1).to(states), checks=notes)

    def fit(self, states: Any, *, seed: int = 0) -> FittedMDE:
        """Fits a map on which `FittedMDE.transform` then places other states."""
        points, _ = distinct(checked(states).flatten(0, -2))
        return FittedMDE(points, self._fit(points, seed)[0], self.n_neighbors, self.max_iter, seed)

    def _fit(self, points: Tensor, seed: int) -> tuple[Tensor, float, tuple[Check, ...]]:
        if len(points) < self.n_components + 3:
            raise ParameterError(
                f"{len(points)} different states are too few for PyMDE on {self.n_components} axes; expected at least "
                f"{self.n_components + 3}, or use 'pca'"
            )
        # Among all other states as neighbours none is left that should be far.
        neighbours, notes = fewer("n_neighbors", self.n_neighbors, max(2, (len(points) - 1) // 2))
        start = principal(points, self.n_components, 1.0).float()
        places, distortion = _embedded(points, start, int(neighbours), self.max_iter, seed, None)
        return places, distortion, notes


def _embedded(
    points: Tensor, start: Tensor, neighbours: int, max_iter: int, seed: int, constraint: Any
) -> tuple[Tensor, float]:
    import pymde

    data = Unit.of(points)(points).float()
    with _drawing(seed):
        problem = pymde.preserve_neighbors(
            data,
            embedding_dim=start.shape[1],
            n_neighbors=min(neighbours, len(points) - 1),
            constraint=constraint,
            init="random",  # its spectral start and its approximate neighbours have other bits each time
            knn_method="exact",
        )
        places = problem.embed(X=start.contiguous(), max_iter=max_iter)
    return places.detach(), float(problem.value)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seeds PyMDE, and puts back the global random states that it draws from."""
    import pymde

    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        pymde.seed(seed % 2**32)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)
