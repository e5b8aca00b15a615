"""Systems of a damped curvature solved: written out, by conjugate gradients, or by LiSSA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid import Check, Passes, digest
from pellucid_influence.curvature import Block, Curvature
from pellucid_influence.training import inverse

LARGEST = 16384
"""Up to how many parameters the matrix is written out: 2 GB."""
CONVERGED = 1e-10
"""Conjugate gradients stop where the residual is this share of the right-hand side."""
RESIDUAL = 1e-2
"""The residual that is certified, as a share of the right-hand side."""


@dataclass(frozen=True, eq=False)
class Solved:
    """The solutions of systems with the damped curvature.

    Attributes:
        values: (Q, P), one for each query's gradient.
        effective: the trace of the curvature times the damped inverse, where it is known.
        apply: solves further systems (k, P), where that costs no passes.
        checks: how exact the solutions are.
    """

    values: Tensor
    effective: float | None = None
    apply: Callable[[Tensor], Tensor] | None = None
    checks: tuple[Check, ...] = ()


def explicit(curvature: Curvature, queries: Tensor, damping: float) -> Passes[Solved]:
    """By the matrix, written out and inverted."""
    hessian = queries.new_zeros(curvature.size, curvature.size)

    def add(block: Block) -> None:
        rows = block.rows.flatten(0, 1)
        hessian.addmm_(rows.T, rows, alpha=1 / len(curvature.train))

    yield from curvature.each(add, curvature.progress("explicit", {"hessian": hessian}))
    inner = inverse(hessian, damping)
    return Solved(queries @ inner, float((inner * hessian).sum()), lambda vectors: vectors @ inner)


def conjugate_gradients(curvature: Curvature, queries: Tensor, damping: float, n_steps: int) -> Passes[Solved]:
    """By conjugate gradients, all queries side by side: one product with the curvature for each step."""
    values, residual = torch.zeros_like(queries), queries.clone()
    direction, square = residual.clone(), residual.square().sum(dim=1)
    limit = CONVERGED**2 * square
    state = {"values": values, "residual": residual, "direction": direction, "square": square}
    progress = curvature.progress(("cg", damping, n_steps, digest(queries)), state)
    while progress.done < n_steps and bool((square > limit).any()):
        curved = (yield from curvature.times(direction)) + damping * direction
        bend = (direction * curved).sum(dim=1)
        # A query that is solved, or whose direction the curvature does not see, stays where it is.
        step = torch.where((square > limit) & (bend > 0), square / bend, 0)[:, None]
        values += step * direction
        residual -= step * curved
        before = square.clone()
        square.copy_(residual.square().sum(dim=1))
        direction.mul_(torch.where(before > 0, square / before, 0)[:, None]).add_(residual)
        progress.reached(progress.done + 1)
    progress.reached(progress.done, finished=True)
    note = f"after {progress.done} steps of conjugate gradients; more steps or a greater damping lower it"
    return Solved(values, checks=(_residual(residual, queries, note),))


def lissa(
    curvature: Curvature, queries: Tensor, damping: float, n_steps: int, batch_size: int, generator: torch.Generator
) -> Passes[Solved]:
    """By the Neumann series of the inverse, each term of it on a batch of examples drawn anew.

    The series converges where the scale is at least the greatest eigenvalue of every batch: it is the mean of the
    greatest traces of as many examples as a batch has, and the damping. The solution is the mean over the second half
    of the steps, in which the noise of the batches averages out.
    """
    count = len(curvature.train)
    batch_size = min(batch_size, count)
    scale = damping + float(curvature.traces.topk(batch_size).values.mean())
    values, total = queries / scale, torch.zeros_like(queries)
    label = "lissa", damping, n_steps, batch_size, generator.initial_seed(), digest(queries)
    progress = curvature.progress(label, {"values": values, "total": total})
    for step in range(n_steps):
        chosen = torch.randperm(count, generator=generator)[:batch_size].to(queries.device)
        if step < progress.done:
            continue
        if batch_size == count:
            curved = yield from curvature.times(values)
        else:
            rows = (yield from curvature.at(chosen)).rows.flatten(0, 1)
            curved = values @ rows.T @ rows / batch_size
        values += (queries - curved - damping * values) / scale
        if step >= n_steps // 2:
            total += values
        progress.reached(step + 1, finished=step + 1 == n_steps)
    values = total / (n_steps - n_steps // 2)
    residual = queries - (yield from curvature.times(values)) - damping * values
    note = f"after {n_steps} steps of LiSSA at a scale of {scale:.3g}; more steps or a greater damping lower it"
    return Solved(values, checks=(_residual(residual, queries, note),))


def _residual(residual: Tensor, queries: Tensor, note: str) -> Check:
    share = residual.norm(dim=1) / queries.norm(dim=1).clamp_min(1e-300)
    return Check.bound("residual", share, RESIDUAL, note)
