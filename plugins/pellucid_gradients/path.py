"""Straight paths from a baseline: where to look at them, and whether what was found there adds up."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pellucid import Leaves, ParameterError
from pellucid_gradients.arithmetic import total

Baselines: TypeAlias = str | float | Tensor | Leaves
"""What `Sample.baseline` takes."""

Quadrature: TypeAlias = Literal["gausslegendre", "trapezoid", "midpoint"]


@functools.cache
def nodes(quadrature: Quadrature, n: int) -> tuple[Tensor, Tensor]:
    """The places in [0, 1] and the weights, which sum to one, of a rule with n points.

    Raises:
        ParameterError: for a trapezoid of fewer than two points.
    """
    if quadrature == "gausslegendre":
        places, weights = np.polynomial.legendre.leggauss(n)
        return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)
    if quadrature == "midpoint":
        return (torch.arange(n, dtype=torch.float64) + 0.5) / n, torch.full((n,), 1 / n, dtype=torch.float64)
    if n < 2:
        raise ParameterError(f"quadrature='trapezoid' has both ends of the path among its n_steps={n}; give 2 or more")
    ends = torch.ones(n, dtype=torch.float64)
    ends[[0, -1]] = 0.5
    return torch.linspace(0, 1, n, dtype=torch.float64), ends / (n - 1)


def completeness_error(values: Any, here: Tensor, there: Tensor) -> Tensor:
    """|sum of values - (f(x) - f(baseline))| as a share of |f(x) - f(baseline)|, (B,).

    A difference under a millionth of the scores themselves is rounding, and counts as that.
    """
    gain = here - there
    rounding = 1e-6 * torch.maximum(here.abs(), there.abs()).clamp_min(torch.finfo(gain.dtype).tiny * 1e6)
    return (total(values).to(gain) - gain).abs() / torch.maximum(gain.abs(), rounding)
