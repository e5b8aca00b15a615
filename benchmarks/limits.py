"""Physical limits: the passes that the mathematics needs and nothing else, at the best batch size.

Parameters locked, channels last for model and inputs, no bookkeeping at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def locked(model: nn.Module) -> nn.Module:
    """A model ready for raw passes."""
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def forward(model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        model(inputs.contiguous(memory_format=torch.channels_last))


def gradient(model: nn.Module, inputs: Tensor) -> None:
    leaf = inputs.contiguous(memory_format=torch.channels_last).clone().requires_grad_()
    torch.autograd.grad(model(leaf).amax(dim=1).sum(), leaf)


def head_gradient(model: nn.Module, layer: nn.Module, inputs: Tensor, call: int = 0) -> None:
    """A forward without a graph up to a layer (its `call`-th call), then the head's forward and backward."""
    kept: list[Tensor] = []
    calls = iter(range(10**6))

    def start(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
        if next(calls) != call:
            return None
        kept.append(output.detach().requires_grad_())
        return kept[0].view_as(kept[0])

    handle = layer.register_forward_hook(start)
    try:
        scores = model(inputs.contiguous(memory_format=torch.channels_last))
    finally:
        handle.remove()
    torch.autograd.grad(scores.amax(dim=1).sum(), kept[0])


def in_batches(run: Callable[[nn.Module, Tensor], None], model: nn.Module, rows: Tensor, size: int) -> None:
    for start in range(0, len(rows), size):
        run(model, rows[start : start + size])


def best_size(
    run: Callable[[nn.Module, Tensor], None], model: nn.Module, row: Tensor, sizes: tuple[int, ...] = (2, 4, 6, 8, 16)
) -> int:
    """The batch size with the least time for each row."""
    best, least = sizes[0], float("inf")
    for size in sizes:
        rows = row.expand(size, *row.shape[1:]).clone()
        run(model, rows)
        rounds = max(2, 32 // size)
        started = time.perf_counter()
        for _ in range(rounds):
            run(model, rows)
        each = (time.perf_counter() - started) / rounds / size
        if each < least:
            best, least = size, each
    return best
