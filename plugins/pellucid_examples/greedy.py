"""The two greedy choices of MMD-critic, on a kernel matrix that is never held."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid_examples.kernels import KernelMatrix


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What the greedy choice of prototypes found.

    Attributes:
        chosen: (m,) their places, in the order of their choice.
        gains: (m,) by how much each lowered the squared MMD; the first, from nothing.
        witness: (n,) the mean kernel of each point with the data, less that with the prototypes: above zero the data
            are denser there.
        mmd: the squared maximum mean discrepancy of data and prototypes.
        chance: what that is on average for as many prototypes chosen at random.
        diagonal: (n,) the kernel of each point with itself.
    """

    chosen: Tensor
    gains: Tensor
    witness: Tensor
    mmd: float
    chance: float
    diagonal: Tensor


def prototypes(matrix: KernelMatrix, count: int) -> Prototypes:
    """Adds, one after the other, the point that raises J(S) = 2/(n|S|) sum k - 1/|S|^2 sum k most; ties to the first.

    J(S) + MMD^2(S) is the mean of the kernel matrix, whatever S is. Each step costs one row of the matrix.
    """
    sums, diagonal = matrix.sums()
    n = len(matrix)
    means = sums / n
    near = torch.zeros_like(means)
    free = torch.ones_like(means, dtype=torch.bool)
    linear = quadratic = value = 0.0
    chosen, gains = [], []
    for size in range(1, count + 1):
        values = 2 * (linear + means) / size - (quadratic + 2 * near + diagonal) / size**2
        best = int(torch.where(free, values, -torch.inf).argmax())
        linear += float(means[best])
        quadratic += float(2 * near[best] + diagonal[best])
        gains.append(float(values[best]) - value)
        value += gains[-1]
        near += matrix.row(best)
        free[best] = False
        chosen.append(best)
    mean, own = float(means.mean()), float(diagonal.mean())
    # Of prototypes drawn without replacement, a pair is the same point once in m and else any other.
    between = (n * mean - own) / (n - 1) if n > 1 else own
    return Prototypes(
        torch.tensor(chosen, device=means.device),
        torch.tensor(gains, dtype=torch.float64, device=means.device),
        means - near / count,
        mean - value,
        (1 / count - 1 / n) * (own - between),
        diagonal,
    )


def criticisms(matrix: KernelMatrix, found: Prototypes, count: int) -> Tensor:
    """Adds, one after the other, the point that raises sum |witness| + log det K most; prototypes are left out.

    The determinant grows by the Schur complement of the new point, which a Cholesky factor of the chosen points' kernel
    gives for all points at once; a point that equals a chosen one has none, and is clamped.
    """
    left = found.diagonal.clone()
    least = torch.finfo(matrix.points.dtype).eps * found.diagonal.clamp_min(torch.finfo(torch.float64).tiny)
    factor = left.new_zeros(count, len(matrix))
    free = torch.ones_like(left, dtype=torch.bool)
    free[found.chosen] = False
    chosen: list[int] = []
    for step in range(count):
        values = found.witness.abs() + left.maximum(least).log()
        best = int(torch.where(free, values, -torch.inf).argmax())
        scale = left[best].maximum(least[best]).sqrt()
        factor[step] = (matrix.row(best) - factor[:step, best] @ factor[:step]) / scale
        left -= factor[step].square()
        free[best] = False
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.long, device=left.device)
