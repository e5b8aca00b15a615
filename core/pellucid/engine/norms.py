"""BatchNorm in eval mode as the affine map that it is, which torch's own backward pass does not make use of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

FLOATS = (torch.float32, torch.float64)
"""Smaller types are scaled in float32 by torch's kernel, which an affine map of theirs would not be."""


class AffineNorms:
    """Lets a model's `BatchNorm2d` run as `x * scale + shift`, while a pass runs.

    In eval mode that is what it does, and the results are the same but for rounding. Yet its backward pass sums over
    all positions as in training, for which its input is kept: a quarter of EfficientNet-Lite0's gradient, a tenth of
    resnet50's. The maps are made once in each run, since older ones could miss a change of the statistics. A module of
    another class, with a `forward` of its own, or whose tensors change during the pass, runs as it is.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules
        self._lent: list[tuple[nn.BatchNorm2d, Callable[[Tensor], Tensor]]] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Lends the maps to the block."""
        if self._lent is None:
            self._lent = list(_maps(self._modules))
        try:
            for norm, forward in self._lent:
                norm.__dict__["forward"] = forward
            yield
        finally:
            for norm, forward in self._lent:
                if norm.__dict__.get("forward") is forward:
                    del norm.__dict__["forward"]


def _maps(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.BatchNorm2d, Callable[[Tensor], Tensor]]]:
    """The norms that can run as affine maps, each with its `forward`."""
    modules = list(modules)
    if any(isinstance(part, nn.DataParallel) for part in modules):
        return  # replicas on other devices share what is lent
    norms = [part for part in modules if type(part) is nn.BatchNorm2d and _plain(part)]
    for (_, _, eps), alike in groupby(norms, key=_kind):
        some = list(alike)
        sizes = [norm.num_features for norm in some]
        with torch.no_grad():
            # Of many small tensors, one long one: each operation takes longer to start than to run.
            weight, bias, mean, var = map(torch.cat, zip(*map(_tensors, some), strict=True))
            scales = torch.rsqrt_(var.add_(eps)).mul_(weight)
            shifts = torch.addcmul(bias, mean, scales, value=-1)
        for norm, scale, shift in zip(some, torch.split(scales, sizes), torch.split(shifts, sizes), strict=True):
            yield norm, _affine(norm, scale.view(-1, 1, 1), shift.view(-1, 1, 1))


def _plain(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm does nothing but normalise by statistics and weights of its own, of one type."""
    own, kept = norm._parameters, norm._buffers
    # Where a weight is made anew in each pass, as by pruning, it is no parameter.
    if (
        "forward" in norm.__dict__
        or not {"weight", "bias"} <= own.keys()
        or not {"running_mean", "running_var"} <= kept.keys()
    ):
        return False
    statistics = [kept["running_mean"], kept["running_var"]]
    tensors = [*statistics, *(tensor for tensor in (own["weight"], own["bias"]) if tensor is not None)]
    if any(tensor is None or tensor.is_inference() for tensor in tensors):
        return False
    return tensors[0].dtype in FLOATS and len({(tensor.dtype, tensor.device) for tensor in tensors}) == 1  # type: ignore[union-attr]


def _kind(norm: nn.BatchNorm2d) -> tuple[Any, ...]:
    mean: Any = norm._buffers["running_mean"]
    return mean.dtype, mean.device, norm.eps


def _tensors(norm: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    """Weight, bias, mean and variance."""
    own, kept = norm._parameters, norm._buffers
    mean, var, weight, bias = kept["running_mean"], kept["running_var"], own["weight"], own["bias"]
    assert mean is not None
    assert var is not None
    return (
        torch.ones_like(var) if weight is None else weight,
        torch.zeros_like(mean) if bias is None else bias,
        mean,
        var,
    )


def _affine(norm: nn.BatchNorm2d, scale: Tensor, shift: Tensor) -> Callable[[Tensor], Tensor]:
    holders = (
        (norm._parameters, "weight"),
        (norm._parameters, "bias"),
        (norm._buffers, "running_mean"),
        (norm._buffers, "running_var"),
    )
    known = [(holder, name, holder[name], getattr(holder[name], "_version", 0)) for holder, name in holders]
    channels, kind = len(scale), scale.dtype

    def forward(input: Tensor) -> Tensor:
        fits = type(input) is Tensor and input.dtype is kind and input.dim() == 4 and input.shape[1] == channels
        if fits and not norm.training:
            for holder, name, tensor, version in known:
                if holder.get(name) is not tensor or (tensor is not None and tensor._version != version):
                    break
            else:
                return torch.addcmul(shift, input, scale)
        return nn.BatchNorm2d.forward(norm, input)

    return forward
