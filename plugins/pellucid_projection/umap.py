"""UMAP, by umap-learn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Check, ParameterError, Projection, Projector
from pellucid_projection.points import Unit, checked, distinct, fewer, fresh


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted UMAP.

    Attributes:
        unit: what states are brought to.
        reducer: umap-learn's own.
    """

    unit: Unit
    reducer: Any

    def transform(self, states: Any) -> Tensor:
        """Places states (n, d) or (T, n, d) on the map, in the type of the states, but in single precision at least.

        States that the map was fitted to come near their places on it, not exactly there.
        """
        states = fresh(states, len(self.unit.mean))
        points, which = distinct(states.flatten(0, -2), least=1)
        places = torch.as_tensor(self.reducer.transform(self.unit(points).float().numpy()))
        return places[which].view(*states.shape[:-1], -1).to(states)


@dataclass(frozen=True, eq=False)
class UMAP(Projector):
    """Places states by umap-learn, so that their graph of nearest neighbours is kept.

    Trajectories (T, n, d) are mapped as one cloud; `dynamic_tsne` keeps them better. Equal states have equal places.
    One thread, so that the same seed gives the same bits.

    McInnes, Healy and Melville, "UMAP: uniform manifold approximation and projection for dimension reduction", 2018.

    Attributes:
        n_components: the number of axes.
        n_neighbors: how many neighbours each state has; fewer than there are states.
        min_dist: how near points may lie on the map.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two different ones, or not finite.
        ParameterError: when there are too few different states for the number of axes.
    """

    n_components: Annotated[int, Ge(1)] = 2
    n_neighbors: Annotated[int, Ge(2)] = 15
    min_dist: Annotated[float, Ge(0)] = 0.1

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to the states."""
        states = checked(states)
        points, which = distinct(states.flatten(0, -2))
        fitted, notes = self._fit(points, seed)
        places = torch.from_numpy(fitted.reducer.embedding_)[which].view(*states.shape[:-1], -1)
        return Projection(places.to(states), checks=notes)

    def fit(self, states: Any, *, seed: int = 0) -> Fitted:
        """Fits a map on which `Fitted.transform` then places other states."""
        return self._fit(distinct(checked(states).flatten(0, -2))[0], seed)[0]

    def _fit(self, points: Tensor, seed: int) -> tuple[Fitted, tuple[Check, ...]]:
        if len(points) < self.n_components + 3:
            raise ParameterError(
                f"{len(points)} different states are too few for UMAP on {self.n_components} axes; expected at least "
                f"{self.n_components + 3}, or use 'pca'"
            )
        neighbours, notes = fewer("n_neighbors", self.n_neighbors, len(points) - 1)
        unit = Unit.where_needed(points)
        reducer = _reference()(
            n_components=self.n_components,
            n_neighbors=int(neighbours),
            min_dist=self.min_dist,
            random_state=seed % 2**32,
            n_jobs=1,
        )
        return Fitted(unit, reducer.fit(unit(points).float().numpy())), notes


def _reference() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of an optional part that needs tensorflow
        from umap import UMAP as Reference  # noqa: N811
    return Reference
