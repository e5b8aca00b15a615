"""BatchNorm in eval mode as the affine map that it is, which torch's own backward pass does not make use of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn

FLOATS = (torch.float32, torch.float64)
"""Smaller types are scaled in float32 by torch's kernel, which an affine map of theirs would not be."""

KINDS: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
"""The norms that run as maps, with how many axes their inputs have.

For one example torch's own gradient is wrong (2.15, CPU) where the input is contiguous and the gradient is that of maps
turned into tokens.
"""

Norm: TypeAlias = nn.BatchNorm2d | nn.BatchNorm3d


class AffineNorms:
    """Lets a model's `BatchNorm2d` and `BatchNorm3d` run as `x * scale + shift`, while a pass runs.

    In eval mode that is what it does, and the results are the same but for rounding. Yet its backward pass sums over
    all positions as in training, for which its input is kept: a quarter of EfficientNet-Lite0's gradient, a tenth of
    resnet50's. The numbers of the maps are computed in each run, since older ones could miss a change of the
    statistics. A module of another class, with a `forward` of its own, or whose tensors change during the pass, runs as
    it is.
    """

    def __init__(self, modules: Iterable[nn.Module], cache: dict[Any, Any]) -> None:
        modules = list(modules)
        # Replicas on other devices would share what is lent.
        alone = not any(isinstance(part, nn.DataParallel) for part in modules)
        self._norms = [part for part in modules if isinstance(part, Norm) and type(part) in KINDS] if alone else []
        self._cache = cache
        self._lent: list[tuple[Norm, _Map]] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Lends the maps to the block."""
        if self._lent is None:
            self._lent = self._made()
        try:
            for norm, made in self._lent:
                norm.__dict__["forward"] = made
            yield
        finally:
            for norm, made in self._lent:
                if norm.__dict__.get("forward") is made:
                    del norm.__dict__["forward"]

    def _made(self) -> list[tuple[Norm, _Map]]:
        """The norms that can run as maps, each with its map, whose numbers are those of now."""
        norms = [norm for norm in self._norms if "forward" not in norm.__dict__]
        tensors = [tensor for norm in norms for tensor in _own(norm)]
        key = [*map(id, tensors), *(norm.eps for norm in norms)]
        known = self._cache.get("norms")
        if known is None or known[0] != key:
            # The tensors are kept with their identities, which stay true only while they live.
            known = self._cache["norms"] = (key, tensors, _groups(norms))
        lent = []
        for group in known[2]:
            group.compute()
            for place, made in group.maps:
                made.stand_for(norms[place])
                lent.append((norms[place], made))
        return lent


def _own(norm: Norm) -> tuple[Tensor | None, ...]:
    """Weight, bias, mean and variance, where they are the norm's own and not made anew in each pass, as by pruning."""
    own, kept = norm._parameters, norm._buffers
    return own.get("weight"), own.get("bias"), kept.get("running_mean"), kept.get("running_var")


class _Map:
    """What stands for a norm's `forward`."""

    __slots__ = ("channels", "eps", "norm", "scale", "shift", "tensors", "versions")

    def __init__(self, tensors: tuple[Tensor | None, ...], scale: Tensor, shift: Tensor, axes: int) -> None:
        self.tensors = tensors
        self.channels = len(scale)
        sides = (-1, *(1,) * (axes - 2))
        self.scale, self.shift = scale.view(sides), shift.view(sides)

    def stand_for(self, norm: Norm) -> None:
        """Notes the norm, and how often its tensors were changed in place when the map's numbers were computed."""
        self.norm = ref(norm)  # maps are kept with what is learnt of a model, which must not keep the model
        self.eps = norm.eps
        self.versions = [0 if tensor is None else tensor._version for tensor in self.tensors]

    def __call__(self, input: Tensor) -> Tensor:
        norm, scale = self.norm(), self.scale
        assert norm is not None
        fits = type(input) is Tensor and input.dtype is scale.dtype and input.dim() == scale.dim() + 1
        if fits and input.shape[1] == self.channels and norm.eps == self.eps and not norm.training:
            for now, tensor, version in zip(_own(norm), self.tensors, self.versions, strict=True):
                if now is not tensor or (tensor is not None and tensor._version != version):
                    break
            else:
                return torch.addcmul(self.shift, input, scale)
        if norm.training:
            self.versions = [-1] * 4  # its statistics change, which torch does not count
        return type(norm).forward(norm, input)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the norm that the model makes in its pass, or writes to a file, is a norm as any other."""
        return getattr, (self.norm(), "forward")


class _Group:
    """Norms of one type, device and epsilon, whose maps are computed together.

    Of many small tensors one long one is made, since each operation takes longer to start than to run.
    """

    def __init__(self, norms: Sequence[tuple[int, Norm]]) -> None:
        """Makes the maps, by the places of their norms, without their numbers."""
        first: Any = norms[0][1]
        means: list[Any] = [norm._buffers["running_mean"] for _, norm in norms]
        sizes = [len(mean) for mean in means]
        self.eps = first.eps
        self.scales, self.shifts = (first.running_mean.new_empty(sum(sizes)) for _ in range(2))
        cut = zip(norms, torch.split(self.scales, sizes), torch.split(self.shifts, sizes), strict=True)
        self.maps = [(place, _Map(_own(norm), scale, shift, KINDS[type(norm)])) for (place, norm), scale, shift in cut]
        weights, biases, _, variances = zip(*(made.tensors for _, made in self.maps), strict=True)
        self.tensors = (
            [torch.ones_like(mean) if one is None else one for one, mean in zip(weights, means, strict=True)],
            [torch.zeros_like(mean) if one is None else one for one, mean in zip(biases, means, strict=True)],
            means,
            list(variances),
        )

    def compute(self) -> None:
        """Computes the maps from what the norms' tensors are now."""
        with torch.no_grad():
            weight, bias, mean, var = (torch.cat(several) for several in self.tensors)
            torch.mul(torch.rsqrt_(var.add_(self.eps)), weight, out=self.scales)
            torch.addcmul(bias, mean, self.scales, value=-1, out=self.shifts)


def _groups(norms: Sequence[Norm]) -> list[_Group]:
    plain = [(place, norm) for place, norm in enumerate(norms) if _plain(norm)]
    return [_Group(list(alike)) for _, alike in groupby(plain, key=lambda one: _kind(one[1]))]


def _plain(norm: Norm) -> bool:
    """Whether a norm does nothing but normalise by statistics and weights of its own, of one type."""
    weight, bias, mean, var = _own(norm)
    if mean is None or var is None or (norm.affine and (weight is None or bias is None)):
        return False
    tensors = [tensor for tensor in (weight, bias, mean, var) if tensor is not None]
    alike = {(tensor.dtype, tensor.device, tensor.shape) for tensor in tensors}
    return len(alike) == 1 and mean.dtype in FLOATS and not any(tensor.is_inference() for tensor in tensors)


def _kind(norm: Norm) -> tuple[Any, ...]:
    mean: Any = norm._buffers["running_mean"]
    return mean.dtype, mean.device, norm.eps
