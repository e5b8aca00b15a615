"""How many rows go through the model at once."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from pellucid.errors import ParameterError

# Measured on 2-core CPUs at 224 x 224 (EfficientNet-Lite0 and resnet50, 90 MiB of outputs a row): forward passes are
# fastest at 6 to 8 rows and gradients at 8; larger batches leave the caches and make the allocator return its pages,
# and take up to half as long again for each row (docs/architecture.md).
FORWARD_BYTES = 640 * 2**20
GRADIENT_BYTES = 768 * 2**20
MOST_FORWARD = 8
MOST_GRADIENT = 8
IMAGE = 3 * 224 * 224
MOST_ROWS = 4096


def rows_at_once(asked: int | str, *, bytes_per_row: int, numel: int, gradients: bool, device: torch.device) -> int:
    """The number of rows that one pass takes.

    Args:
        asked: the user's `batch_size`, a number or "auto".
        bytes_per_row: what the model's outputs take for one example, all layers together.
        numel: how many numbers one example has.
        gradients: whether a graph is kept.
        device: where the model is.
    """
    if isinstance(asked, int):
        return asked
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(MOST_ROWS, int(0.4 * free / max(bytes_per_row * (2 if gradients else 1), 1))))
    budget = GRADIENT_BYTES if gradients else FORWARD_BYTES
    most = (MOST_GRADIENT if gradients else MOST_FORWARD) * max(1, IMAGE // max(numel, 1))
    return max(1, min(most, MOST_ROWS, budget // max(bytes_per_row, 1)))


def check_batch_size(batch_size: Any) -> None:
    """Refuses a batch size that is neither "auto" nor a positive number."""
    if batch_size == "auto":
        return
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ParameterError(f"batch_size={batch_size!r}: expected 'auto' or an integer of at least 1")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def release(device: torch.device) -> None:
    """Gives cached memory of an accelerator back, so that a smaller batch finds it."""
    with contextlib.suppress(AssertionError):
        if device.type == "cuda":
            torch.cuda.empty_cache()
