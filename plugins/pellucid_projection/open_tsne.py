"""t-SNE, by openTSNE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from pellucid import Check, Projection, Projector
from pellucid_projection.points import Unit, checked, distinct, fewer, fresh, principal


@dataclass(frozen=True, eq=False)
class FittedTSNE:
    """A fitted t-SNE.

    Attributes:
        places: (n, k) where the different states are that it was fitted to.
        unit: what states are brought to.
        embedding: openTSNE's own.
    """

    places: Tensor
    unit: Unit
    embedding: Any

    def transform(self, states: Any) -> Tensor:
        """Places states (n, d) or (T, n, d) on the map, in the type of the states, but in single precision at least.

        The map stays as it is. Each state is placed by itself among its neighbours on the map. States that the map was
        fitted to come near their places on it, not exactly there.
        """
        states = fresh(states, len(self.unit.mean))
        points, which = distinct(states.flatten(0, -2), least=1)
        few = min(5.0, (len(self.embedding) - 1) / 3)  # five is openTSNE's own choice for new states
        made = torch.as_tensor(np.array(self.embedding.transform(self.unit(points).numpy(), perplexity=few)))
        # openTSNE shifts its own copy of the map in every call, and the new places with it.
        places = made - (torch.as_tensor(np.array(self.embedding)) - self.places).mean(dim=0)
        return places[which].view(*states.shape[:-1], -1).to(states)


@dataclass(frozen=True, eq=False)
class OpenTSNE(Projector):
    """Places states so that near ones stay near, on a map that takes new states.

    As `tsne`; of many states it is faster, and its maps can be embedded into. Equal states have equal places. It starts
    from the principal axes, so that it does not depend on the seed.

    Poličar, Stražar and Zupan, "openTSNE: a modular Python library for t-SNE dimensionality reduction and embedding",
    2019.

    Attributes:
        n_components: the number of axes.
        perplexity: the effective number of neighbours; at most a third of the states.
        n_iterations: steps of the descent, after 250 with exaggeration.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two different ones, or not finite.
    """

    n_components: Annotated[int, Ge(1), Le(2)] = 2
    perplexity: Annotated[float, Gt(1)] = 30.0
    n_iterations: Annotated[int, Ge(1)] = 750

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to the states."""
        states = checked(states)
        points, which = distinct(states.flatten(0, -2))
        fitted, notes = self._fit(points)
        notes += (Check.info("divergence", float(fitted.embedding.kl_divergence), "Kullback-Leibler"),)
        return Projection(fitted.places[which].view(*states.shape[:-1], -1).to(states), checks=notes)

    def fit(self, states: Any, *, seed: int = 0) -> FittedTSNE:
        """Fits a map on which `FittedTSNE.transform` then places other states."""
        return self._fit(distinct(checked(states).flatten(0, -2))[0])[0]

    def _fit(self, points: Tensor) -> tuple[FittedTSNE, tuple[Check, ...]]:
        from openTSNE import TSNE as Reference  # noqa: N811

        perplexity, notes = fewer("perplexity", self.perplexity, (len(points) - 1) / 3)
        unit = Unit.of(points)
        embedding = Reference(
            self.n_components,
            perplexity=perplexity,
            n_iter=self.n_iterations,
            initialization=principal(points, self.n_components, 1e-4).cpu().numpy(),
            random_state=0,
            n_jobs=1,  # threads add up forces in any order
        ).fit(unit(points).numpy())
        return FittedTSNE(torch.as_tensor(np.array(embedding)), unit, embedding), notes
