"""EK-FAC: each layer's curvature, diagonal in a Kronecker product of two bases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid import Factor, ParameterError, Passes
from pellucid_influence.curvature import Block, Curvature
from pellucid_influence.solvers import Solved

WIDEST = 4096
"""A side of a weight with more rows or columns, such as a vocabulary, keeps its own axes as the basis."""


@dataclass(eq=False)
class Layer:
    """The curvature of one layer, whose gradients are matrices (q, p): a bias is a further column of its weight.

    Attributes:
        places: where the layer's parameters lie among all.
        form: (q, p) of the weight; a vector is one row.
        biased: whether a bias follows.
        left: (q, q) the moments, and then the basis, of the rows; a number where the axes are kept.
        right: (p, p) those of the columns.
        values: (q, p) the eigenvalues.
    """

    places: slice
    form: tuple[int, int]
    biased: bool
    left: Tensor = field(default_factory=lambda: torch.empty(0))
    right: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))

    def begin(self, like: Tensor) -> None:
        """Makes the sums, empty."""
        high, wide = self.form[0], self.form[1] + self.biased
        self.left, self.right = (like.new_zeros(() if side > WIDEST else (side, side)) for side in (high, wide))
        self.values = like.new_zeros(high, wide)

    def matrices(self, vectors: Tensor) -> Tensor:
        """The layer's part of vectors (k, P) as matrices (k, q, p)."""
        own = vectors[:, self.places]
        if not self.biased:
            return own.reshape(len(own), *self.form)
        weights, bias = own[:, : -self.form[0]], own[:, -self.form[0] :]
        return torch.cat([weights.reshape(len(own), *self.form), bias[..., None]], dim=2)

    def flat(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        if not self.biased:
            return matrices.flatten(1)
        return torch.cat([matrices[..., :-1].flatten(1), matrices[..., -1]], dim=1)

    def add_moments(self, matrices: Tensor) -> None:
        """Adds G G^T and G^T G."""
        if self.left.dim():
            rows = matrices.transpose(0, 1).flatten(1)
            self.left += rows @ rows.T
        if self.right.dim():
            columns = matrices.flatten(0, 1)
            self.right += columns.T @ columns

    def turn(self) -> None:
        """Makes the bases of the moments."""
        self.left, self.right = (
            torch.linalg.eigh(one).eigenvectors if one.dim() else one for one in (self.left, self.right)
        )

    def turned(self, matrices: Tensor, *, back: bool = False) -> Tensor:
        """Matrices in the bases, or from them back."""
        left, right = (one.mT if back and one.dim() else one for one in (self.left, self.right))
        if left.dim():
            matrices = left.mT @ matrices
        return matrices @ right if right.dim() else matrices


def ek_fac(curvature: Curvature, queries: Tensor, damping: float) -> Passes[Solved]:
    """By the best diagonal in a Kronecker product of bases, layer by layer; two passes over the training rows.

    George et al., 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis". The bases of
    the paper are those of the layer's inputs' and output gradients' second moments apart; ours are those of the
    gradients' own, E[G G^T] and E[G^T G], which assume no independence of the two: for a vector of parameters, and for
    a layer of one output, the curvature of the layer is exact. What is between layers is left out.
    """
    layers = list(_layers(curvature.factors.layers))
    for layer in layers:
        layer.begin(queries)

    def moments(block: Block) -> None:
        rows = block.rows.flatten(0, 1)
        for layer in layers:
            layer.add_moments(layer.matrices(rows))

    def squares(block: Block) -> None:
        rows = block.rows.flatten(0, 1)
        for layer in layers:
            layer.values += layer.turned(layer.matrices(rows)).square().sum(dim=0) / len(curvature.train)

    def state(*names: str) -> dict[str, Tensor]:
        return {f"{name} {place}": getattr(layer, name) for place, layer in enumerate(layers) for name in names}

    yield from curvature.each(moments, curvature.progress(("moments", WIDEST), state("left", "right")))
    for layer in layers:
        layer.turn()
    yield from curvature.each(squares, curvature.progress(("squares", WIDEST), state("values")))
    least, most = min(float(one.values.min()) for one in layers), max(float(one.values.max()) for one in layers)
    if not least + damping > 1e-12 * (most + damping):
        raise ParameterError(
            f"the curvature is singular or nearly so with a damping of {damping:.3g} against a greatest eigenvalue of "
            f"{most:.3g}; expected a greater damping, such as 'auto'"
        )

    def apply(vectors: Tensor) -> Tensor:
        return torch.cat(
            [
                one.flat(one.turned(one.turned(one.matrices(vectors)) / (one.values + damping), back=True))
                for one in layers
            ],
            dim=1,
        )

    effective = sum(float((one.values / (one.values + damping)).sum()) for one in layers)
    return Solved(apply(queries), effective, apply)


def _layers(factors: tuple[Factor, ...]) -> Iterator[Layer]:
    start = 0
    for factor in factors:
        shape = factor.shapes[0]
        numbers = [torch.Size(one).numel() for one in factor.shapes]
        high = shape[0] if len(shape) > 1 else 1
        yield Layer(slice(start, start + sum(numbers)), (high, numbers[0] // high), factor.biased)
        start += sum(numbers)
