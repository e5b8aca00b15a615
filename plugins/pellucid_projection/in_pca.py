"""Intensive PCA: maps of distributions, such as what networks predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Check, InputError, ParameterError, Projection, Projector
from pellucid_projection.points import checked, equal

MOST = 20_000
"""So many states have a matrix of 3 GB."""


@dataclass(frozen=True, eq=False)
class InPCA(Projector):
    """Places distributions by their Bhattacharyya distances, on axes that may count negatively.

    A state is a row of probabilities, or of several rows one after the other with `n_classes` each, such as a network's
    predictions for all examples of a probe; rows are normalised to sum to one. The squared distance of two states is
    the mean over their rows of -log sum sqrt(p q). The doubly centred matrix of these has eigenvalues of both signs:
    along an axis of a negative one, two states are the *nearer* the further apart they are drawn. Axes are ordered by
    the magnitude of their eigenvalue; the check says which are negative.

    Quinn et al., "Visualizing probabilistic models and data with intensive principal component analysis", 2019; the
    explained stress, 1 - |W - W'| / |W| with W' made of the axes shown, is that of Mao et al., 2024.

    Trajectories (T, n, d) are fitted together. An eigenvector has no sign of its own: its largest entry is made
    positive. All T x n states take memory of order (T n)^2.

    Attributes:
        n_components: the number of axes.
        n_classes: how many probabilities make one distribution; None is the whole state.
        logits: whether states are logits, to be made probabilities; else they are taken as probabilities.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two, not finite, or negative where they
            should be probabilities.
        ParameterError: when the classes do not divide a state, there are fewer states than components, or more than
            20,000.
    """

    n_components: Annotated[int, Ge(1)] = 2
    n_classes: Annotated[int, Ge(2)] | None = None
    logits: bool = False

    @classmethod
    def test_instances(cls) -> list[InPCA]:
        """Logits, since any numbers are."""
        return [cls(logits=True)]

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Makes the distances and their axes."""
        states = checked(states)
        rows = self._distributions(states.flatten(0, -2).double())
        n = len(rows)
        if n > MOST:
            raise ParameterError(f"{n} states at all times; expected at most {MOST}. Take fewer of them: states[::2]")
        if self.n_components > n:
            raise ParameterError(f"n_components={self.n_components} of {n} states; expected at most {n}")
        squared = bhattacharyya(rows)
        centred = squared - squared.mean(dim=0) - squared.mean(dim=1, keepdim=True) + squared.mean()
        weights, vectors = torch.linalg.eigh(-(centred + centred.T) / 4)
        order = weights.abs().argsort(descending=True, stable=True)
        kept, axes = weights[order][: self.n_components], vectors[:, order[: self.n_components]]
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        places = axes * torch.where(largest < 0, -1.0, 1.0) * kept.abs().sqrt()
        first, which = equal(states.flatten(0, -2))
        places = places[first[which]]  # equal states have equal places, to the last bit
        whole = weights.square().sum().sqrt()
        lost = (weights.square().sum() - kept.square().sum()).clamp_min(0).sqrt()
        stress = float(1 - lost / whole) if float(whole) > 0 else 0.0
        negative = [place + 1 for place in range(len(kept)) if kept[place] < 0]
        signs = f"; along the axes {negative} distances count negatively" if negative else ""
        return Projection(
            places.view(*states.shape[:-1], -1).to(states),
            explained=kept.abs() / weights.abs().sum().clamp_min(1e-300),
            checks=(Check.info("explained stress", stress, f"on {self.n_components} axes{signs}"),),
        )

    def _distributions(self, points: Tensor) -> Tensor:
        """States as (n, rows, classes), each row of which sums to one."""
        classes = points.shape[1] if self.n_classes is None else self.n_classes
        if points.shape[1] % classes:
            raise ParameterError(f"n_classes={classes} does not divide the {points.shape[1]} numbers of a state")
        rows = points.view(len(points), -1, classes)
        if self.logits:
            return rows.softmax(dim=-1)
        if bool((rows < 0).any()) or bool((rows.sum(dim=-1) <= 0).any()):
            raise InputError("the states are no probabilities: some are negative or sum to zero; give logits=True")
        return rows / rows.sum(dim=-1, keepdim=True)


def bhattacharyya(distributions: Tensor) -> Tensor:
    """The squared Bhattacharyya distances (n, n) of (n, rows, classes), as means over the rows.

    Two rows that share no class are infinitely far apart; the overlap is taken to be at least 1e-30.
    """
    roots = distributions.sqrt().transpose(0, 1)
    total = roots.new_zeros(len(distributions), len(distributions))
    for some in roots:  # one row at a time, so that the memory is that of one matrix
        total -= (some @ some.T).clamp_(1e-30, 1.0).log_()
    return (total / len(roots)).fill_diagonal_(0)
