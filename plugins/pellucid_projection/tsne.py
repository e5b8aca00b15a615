"""t-SNE, by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le

from pellucid import Check, Projection, Projector
from pellucid_projection.points import Unit, checked, distinct, fewer, principal


@dataclass(frozen=True, eq=False)
class TSNE(Projector):
    """Places states so that near ones stay near, by scikit-learn's t-SNE.

    Trajectories (T, n, d) are mapped as one cloud; `dynamic_tsne` keeps them better. Equal states have equal places.
    It starts from the principal axes, so that it does not depend on the seed. Distances between clusters, and their
    sizes, mean little. New points cannot be placed; `opentsne` can.

    van der Maaten and Hinton, "Visualizing data using t-SNE", 2008.

    Attributes:
        n_components: the number of axes.
        perplexity: the effective number of neighbours; at most a third of the states.
        n_iterations: steps of the descent.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two different ones, or not finite.
    """

    n_components: Annotated[int, Ge(1), Le(3)] = 2
    perplexity: Annotated[float, Gt(1)] = 30.0
    n_iterations: Annotated[int, Ge(250)] = 1000

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to the states."""
        from sklearn.manifold import TSNE as Reference  # noqa: N811

        states = checked(states)
        points, which = distinct(states.flatten(0, -2))
        perplexity, notes = fewer("perplexity", self.perplexity, max(1.0, (len(points) - 1) / 3))
        fitted = Reference(
            self.n_components,
            perplexity=perplexity,
            max_iter=self.n_iterations,
            init=principal(points, self.n_components, 1e-4).float().numpy(),
            random_state=0,
        ).fit(Unit.where_needed(points)(points).to(points.dtype).numpy())
        places = torch.from_numpy(fitted.embedding_)[which].view(*states.shape[:-1], -1)
        notes += (Check.info("divergence", float(fitted.kl_divergence_), "Kullback-Leibler"),)
        return Projection(places.to(states), checks=notes)
