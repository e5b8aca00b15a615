"""The axes of the largest variance, of states that may be larger than the memory: they are read a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

DENSE = 256
"""Up to so many features or states, the matrix of their products is solved whole."""

BLOCK = 2**19
"""How many numbers are read at a time: their copy in double precision stays in the caches."""

PANEL = 128
"""Rows of a symmetric matrix of products that are found at a time, from the diagonal on."""

EXTRA = 8
"""Rows of each step of the Krylov space beyond the axes."""

STEPS = 10
"""After so many steps the Krylov space grows only as long as that leads to the solution."""

MOST = 20
"""The most steps of the Krylov space."""

CHANCE = 1e-6
"""The probability with which `shortfall` may err."""


class Solution(NamedTuple):
    """Axes found in a Krylov space.

    Attributes:
        squares: (k,) sums of squares along the axes.
        axes: (k, d).
        residual: how far they miss the eigenproblem, in units of the largest eigenvalue.
        shortfall: the share of the best axes' squares that these may lack at most.
    """

    squares: Tensor
    axes: Tensor
    residual: float
    shortfall: float


def blocks(points: Tensor) -> Iterator[slice]:
    """Consecutive rows of points (n, d), a few at a time."""
    size = max(1, BLOCK // points.shape[1])
    return (slice(first, first + size) for first in range(0, len(points), size))


def centred(points: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """The blocks of points (n, d) about a mean, in its precision; each stands where the last one stood.

    Fresh memory for every block would take as long as what is done with it.
    """
    room = mean.new_empty(min(len(points), max(1, BLOCK // len(mean))), len(mean))
    for rows in blocks(points):
        block = points[rows]
        yield room[: len(block)].copy_(block).sub_(mean)


def moments(points: Tensor) -> tuple[Tensor, float, float]:
    """The mean (d,) of points (n, d), the sum of their squared distances from it, and their largest magnitude."""
    origin = points[0].double()  # sums about a point of the cloud lose nothing to a mean far from zero
    whole, square, largest = torch.zeros_like(origin), 0.0, 0.0
    for rows, away in zip(blocks(points), centred(points, origin), strict=True):
        whole += away.sum(dim=0)
        square += float(away.flatten() @ away.flatten())
        low, high = points[rows].aminmax()
        largest = max(largest, -float(low), float(high))
    shift = whole / len(points)
    return origin + shift, max(0.0, square - len(points) * float(shift @ shift)), largest


def is_small(points: Tensor, count: int) -> bool:
    """Whether the products of all features, or of all points, are sooner found than a Krylov space."""
    return min(points.shape) <= max(DENSE, STEPS * (count + EXTRA))


def by_products(points: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums of squares (k,) along the first axes, and the axes (k, d), exact in double precision."""
    n, d = points.shape
    return _by_covariance(points, mean, count) if d <= n else _by_inner_products(points, mean, count)


def _by_covariance(points: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=points.device)
    for block in centred(points, mean):
        _add_products(products, block.T)
    squares, vectors = torch.linalg.eigh(products, UPLO="U")
    return squares.flip(0)[:count].clamp_min(0), vectors.flip(1).T[:count]


def _by_inner_products(points: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    n, d = points.shape
    columns = [slice(first, first + max(1, BLOCK // n)) for first in range(0, d, max(1, BLOCK // n))]
    products = torch.zeros(n, n, dtype=torch.float64, device=points.device)
    for some in columns:
        _add_products(products, points[:, some].double() - mean[some])
    squares, vectors = torch.linalg.eigh(products, UPLO="U")
    kept = vectors.flip(1)[:, :count]
    axes = torch.empty(d, count, dtype=torch.float64, device=points.device)
    for some in columns:
        axes[some] = (points[:, some].double() - mean[some]).T @ kept
    # Of axes without variance only rounding is left; the factorisation makes them orthogonal to the others.
    return squares.flip(0)[:count].clamp_min(0), torch.linalg.qr(axes)[0].T


def _add_products(products: Tensor, rows: Tensor) -> None:
    """Adds the inner products of rows (m, k) to products (m, m), on and above the diagonal."""
    for first in range(0, len(rows), PANEL):
        panel = slice(first, first + PANEL)
        products[panel, first:].addmm_(rows[panel], rows[first:].T)


def by_krylov_space(points: Tensor, mean: Tensor, total: float, count: int, tolerance: float) -> Solution:
    """The axes of points (n, d) from products with few vectors at a time, each of which reads the points once.

    Args:
        points: (n, d).
        mean: (d,) theirs.
        total: the sum of their squared distances from it.
        count: how many axes.
        tolerance: the residual at which the axes are found.
    """
    d, width = len(mean), count + EXTRA
    spread, height = total / len(points), float(mean @ mean)
    # A mean far from the spread is taken from every block, since the rounding of its products would show.
    near = height <= 100 * spread
    # Squares of what a run that diverges computes leave the range of single precision.
    single = 1e-24 < spread + height < 1e24
    dtype = torch.promote_types(points.dtype, torch.float32) if single else torch.float64
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(d, width, generator=generator, dtype=torch.float64).to(points.device)
    basis, images = drawn.new_empty(MOST * width, d), drawn.new_empty(MOST * width, d)
    inner = drawn.new_zeros(MOST * width, MOST * width)
    last, residuals = torch.linalg.qr(drawn)[0].T, list[float]()
    for step in range(1, MOST + 1):
        size = step * width
        new = slice(size - width, size)
        basis[new], images[new] = last, _products(points, mean.to(dtype), last, near)
        inner[:size, new] = basis[:size] @ images[new].T
        squares, turns = torch.linalg.eigh(inner[:size, :size], UPLO="U")
        squares, turns = squares.flip(0)[:count].clamp_min(0), turns.flip(1)[:, :count].T
        axes = turns @ basis[:size]
        missed = (turns @ images[:size] - squares.unsqueeze(1) * axes).norm(dim=1)
        residuals.append(float(missed.max() / squares[0].clamp_min(1e-300)))
        if residuals[-1] <= tolerance or size + width > d or (step >= STEPS and _too_far(residuals, tolerance)):
            break
        last = images[new] - inner[:size, new].T @ basis[:size]
        for _ in range(2):  # once is not enough for orthogonality to rounding
            last = torch.linalg.qr(last.T)[0].T
            last = last - last @ basis[:size].T @ basis[:size]
        last = torch.linalg.qr(last.T)[0].T
    return Solution(squares, torch.linalg.qr(axes.T)[0].T, residuals[-1], shortfall(len(residuals), width, count, d))


def _too_far(residuals: list[float], tolerance: float) -> bool:
    """Whether residuals that go on falling as in the last two steps miss the tolerance at the most steps."""
    left = (MOST - len(residuals)) / 2
    return bool(residuals[-1] * (residuals[-1] / residuals[-3]) ** left > tolerance)


def shortfall(steps: int, width: int, count: int, size: int) -> float:
    """The share by which the sums of squares along axes from a Krylov space may fall short of the largest ones.

    With s steps the space has p(A) W for every polynomial p of degree s - 1, where A is the matrix and W the normal
    draw that it started from. Take the Chebyshev polynomial of [0, (1 - e) l], l the i-th eigenvalue, and combine the
    columns of W so that the parts along the first i eigenvectors are any given ones; the other parts grow with the norm
    of W's other rows and that of the inverse of those i, which probability bounds. Where p is so large at l that it
    outweighs them, A is at least (1 - e) l on i dimensions of the space, and so is its i-th eigenvalue there. Whatever
    the spectrum is, this holds but with a probability of 1e-6 over W.

    Bounds of the norms: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, section 10.

    Args:
        steps: how many products were made, at least two.
        width: the vectors in each.
        count: how many axes.
        size: the features.
    """
    chance, spare = CHANCE / (2 * count), width - count + 1
    others = math.sqrt(size) + math.sqrt(width) + math.sqrt(-2 * math.log(chance))
    inverse = math.e * math.sqrt(width) / spare * chance ** (-1 / spare)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        grown = (steps - 1) * math.acosh((1 + share) / (1 - share)) - math.log(2)
        enough = 2 * grown + math.log(share / (1 - share)) >= 2 * math.log(others * inverse)
        low, high = (low, share) if enough else (share, high)
    return high


def _products(points: Tensor, mean: Tensor, vectors: Tensor, near: bool) -> Tensor:
    """The covariance, times n, of points (n, d) times vectors (k, d); products in the precision of the mean.

    The mean is taken from the products where it is near, which spares the copies of the blocks.
    """
    given = (points[rows].to(mean.dtype) for rows in blocks(points)) if near else centred(points, mean)
    whole, sums = torch.zeros_like(vectors), vectors.new_zeros(len(vectors), 1)
    factors, left = vectors.to(mean.dtype), mean if near else torch.zeros_like(mean)
    offset = (factors @ left).unsqueeze(1)
    for block in given:
        places = factors @ block.T - offset
        whole += places @ block
        sums += places.sum(dim=1, keepdim=True)
    return whole - sums * left
