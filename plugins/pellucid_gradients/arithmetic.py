"""What the family's techniques share: sums and norms over all inputs of an example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid import Leaves


def total(values: Any) -> Tensor:
    """The sum of each example's values over all inputs, (B,)."""

    def sum_of(leaf: Tensor) -> Tensor:
        return leaf.flatten(1).sum(dim=1, dtype=torch.promote_types(leaf.dtype, torch.float32))

    leaves = values.values() if isinstance(values, Leaves) else [values]
    return torch.stack([sum_of(leaf) for leaf in leaves]).sum(dim=0)


def noise_share(values: Any, variance: Any, n: int) -> Tensor:
    """The norm of the values' Monte-Carlo standard errors as a share of the norm of the values, (B,).

    Args:
        values: means over the draws, (B, ...).
        variance: the draws' variances, dividing by n.
        n: how many draws.
    """
    error, size = (total(variance) / (n - 1)).sqrt(), total(values**2).sqrt()
    return error / size.clamp_min(torch.finfo(size.dtype).tiny)


NOISE_TOLERANCE = 0.5
"""From here on, half of what a map shows is noise."""
