"""The axes of the largest variance, of states that may be larger than the memory: they are read a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

DENSE = 1024
"""Up to so many features or states, the matrix of their products is solved whole."""

BLOCK = 2**19
"""How many numbers are read at a time: their copy in double precision stays in the caches."""

EXTRA = 8
"""Columns of the Krylov space beyond the axes."""

STEPS = 12
"""The most steps of the Krylov space."""


def blocks(points: Tensor) -> Iterator[slice]:
    """Consecutive rows of points (n, d), a few at a time."""
    size = max(1, BLOCK // points.shape[1])
    return (slice(first, first + size) for first in range(0, len(points), size))


def moments(points: Tensor) -> tuple[Tensor, float, float]:
    """The mean (d,) of points (n, d), the sum of their squared distances from it, and their largest magnitude."""
    origin = points[0].double()  # sums about a point of the cloud lose nothing to a mean far from zero
    whole, square, largest = torch.zeros_like(origin), 0.0, 0.0
    for rows in blocks(points):
        away = points[rows].double() - origin
        whole += away.sum(dim=0)
        square += float(away.flatten() @ away.flatten())
        low, high = points[rows].aminmax()
        largest = max(largest, -float(low), float(high))
    shift = whole / len(points)
    return origin + shift, max(0.0, square - len(points) * float(shift @ shift)), largest


def by_covariance(points: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums of squares (k,) along the first axes, and the axes (k, d), from the d x d products of features."""
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=points.device)
    for rows in blocks(points):
        centred = points[rows].double() - mean
        products.addmm_(centred.T, centred)
    squares, vectors = torch.linalg.eigh(products)
    return squares.flip(0)[:count].clamp_min(0), vectors.flip(1).T[:count]


def by_inner_products(points: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `by_covariance`, from the n x n products of points."""
    n, d = points.shape
    columns = [slice(first, first + max(1, BLOCK // n)) for first in range(0, d, max(1, BLOCK // n))]
    products = torch.zeros(n, n, dtype=torch.float64, device=points.device)
    for some in columns:
        centred = points[:, some].double() - mean[some]
        products.addmm_(centred, centred.T)
    squares, vectors = torch.linalg.eigh(products)
    kept = vectors.flip(1)[:, :count]
    axes = torch.empty(d, count, dtype=torch.float64, device=points.device)
    for some in columns:
        axes[some] = (points[:, some].double() - mean[some]).T @ kept
    # Of axes without variance only rounding is left; the factorisation makes them orthogonal to the others.
    return squares.flip(0)[:count].clamp_min(0), torch.linalg.qr(axes)[0].T


def by_krylov_space(points: Tensor, mean: Tensor, count: int, tolerance: float) -> tuple[Tensor, Tensor, float]:
    """As `by_covariance`, from products with few vectors at a time; and how far the axes miss its eigenproblem."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(mean), count + EXTRA, generator=generator, dtype=torch.float64).to(points.device)
    basis = torch.linalg.qr(drawn)[0]
    images = _products(points, mean, basis)
    while True:
        inner = basis.T @ images
        squares, turns = torch.linalg.eigh((inner + inner.T) / 2)
        squares, turns = squares.flip(0)[:count].clamp_min(0), turns.flip(1)[:, :count]
        missed = (images @ turns - basis @ turns * squares).norm(dim=0)
        residual = float(missed.max() / squares[0].clamp_min(1e-300))
        if residual <= tolerance or images.shape[1] >= min(STEPS * drawn.shape[1], len(mean) - drawn.shape[1]):
            return squares, torch.linalg.qr(basis @ turns)[0].T, residual
        last = images[:, -drawn.shape[1] :]
        for _ in range(2):  # once is not enough for orthogonality to rounding
            last = last - basis @ (basis.T @ last)
            last = torch.linalg.qr(last)[0]
        basis = torch.cat([basis, last], dim=1)
        images = torch.cat([images, _products(points, mean, last)], dim=1)


def _products(points: Tensor, mean: Tensor, vectors: Tensor) -> Tensor:
    """The covariance, times n, of points (n, d) times vectors (d, k); products in the points' precision, or single."""
    dtype = torch.promote_types(points.dtype, torch.float32)
    whole, vectors, mean = torch.zeros_like(vectors), vectors.to(dtype), mean.to(dtype)
    for rows in blocks(points):
        centred = points[rows].to(dtype) - mean
        whole += centred.T @ (centred @ vectors)
    return whole
