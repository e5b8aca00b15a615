"""Expansions: operations written out in simpler ones, for rule sets that have no rule for them.

Each takes an operation's own arguments and returns what it returns, or `NotImplemented` where it does not apply. All
are exact, and as safe in their numbers as what they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LIBRARY = torch.library.Library("pellucid", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("shift(Tensor x, int[] dim) -> Tensor")  # type: ignore[no-untyped-call]


def maximum_of(x: Tensor, dim: Sequence[int]) -> Tensor:
    """What `shift` subtracts: the maximum over some axes, 0 where there is none that is finite."""
    most = x.amax(tuple(dim), keepdim=True)
    return torch.where(torch.isfinite(most), most, 0)


def shifted_by(x: Tensor, most: Tensor) -> Tensor:
    """What `shift` gives: x less what is subtracted, but no infinity.

    A masked score is minus infinity, whose difference from a reference, where it is masked too, would be no number. The
    least number there is has the same exponential, which is zero.
    """
    return (x - most).clamp_min(torch.finfo(x.dtype).min)


_LIBRARY.impl("shift", lambda x, dim: shifted_by(x, maximum_of(x, dim)), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]

shift = torch.ops.pellucid.shift.default
"""Subtracts the maximum, as a constant: what follows must not depend on what is subtracted.

In a pass with a reference the same is subtracted there, the greater of both maxima.
"""


def _softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    raised: Tensor = shift(x, [dim]).exp()
    # The sum is 0 only where everything is masked; then the result is 0.
    return raised * (raised.sum(dim, keepdim=True) + torch.finfo(x.dtype).tiny).reciprocal()


def _log_softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    shifted: Tensor = shift(x, [dim])
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    dims = tuple(range(-len(shape), 0))
    return _affine(_standardised(x, dims, eps), weight, bias), None, None


def _group_norm(x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float) -> Any:
    grouped = _standardised(x.reshape(n, groups, -1), (2,), eps).reshape(x.shape)
    sides = (1, -1, *(1,) * (x.dim() - 2))
    parts = (one if one is None else one.reshape(sides) for one in (weight, bias))
    return _affine(grouped, *parts), None, None


def _batch_norm(x: Tensor, weight: Any, bias: Any, *args: Any) -> Any:
    if args[0] is not True and args[2] is not True:  # the mode stands first where there are no running statistics
        return NotImplemented
    sides = (1, -1, *(1,) * (x.dim() - 2))
    parts = (one if one is None else one.reshape(sides) for one in (weight, bias))
    dims = (0, *range(2, x.dim()))
    return _affine(_standardised(x, dims, args[-1]), *parts), None, None


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Any:
    dims = tuple(range(-len(shape), 0))
    scale = (x.square().mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return _affine(x * scale, weight, None), None


def _vector_norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    if order != 2 or dim is None:
        return NotImplemented
    return x.square().sum(dim, keepdim=keepdim).sqrt()


def _var(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    dims = tuple(range(x.dim())) if dim is None else tuple(dim)
    count = math.prod(x.shape[one] for one in dims)
    centred = x - x.mean(dims, keepdim=True)
    squares = centred.square().sum(dims, keepdim=keepdim)
    return squares * (1 / max(count - (1 if correction is None else correction), 0))


def _var_mean(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    dims = tuple(range(x.dim())) if dim is None else tuple(dim)
    return _var(x, dim, correction=correction, keepdim=keepdim), x.mean(dims, keepdim=keepdim)


def _div(x: Any, y: Any, **kwargs: Any) -> Any:
    if kwargs.get("rounding_mode") is not None or not isinstance(y, Tensor):
        return NotImplemented
    return x * y.reciprocal()


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return x * (((x + 0.044715 * x.pow(3)) * math.sqrt(2 / math.pi)).tanh() * 0.5 + 0.5)
    return x * ((x * math.sqrt(0.5)).erf() * 0.5 + 0.5)


def _maximum(x: Tensor, y: Tensor) -> Tensor:
    return x + (y - x).relu()


def _tournament(x: Tensor, dim: int) -> Tensor:
    """The maximum over an axis, in rounds of pairs; the axis stays, of size 1."""
    while (size := int(x.shape[dim])) > 1:
        half = size // 2
        winners = _maximum(x.narrow(dim, 0, half), x.narrow(dim, half, half))
        x = torch.cat([winners, x.narrow(dim, size - 1, 1)], dim) if size % 2 else winners
    return x


def _amax(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    dims = sorted({one % x.dim() for one in dim}) or list(range(x.dim()))
    for one in dims:
        x = _tournament(x, one)
    return x if keepdim else x.reshape([size for axis, size in enumerate(x.shape) if axis not in dims])


def _max(x: Tensor, other: Any = None, keepdim: bool = False) -> Any:
    if isinstance(other, Tensor):
        return _maximum(x, other)
    if other is None:
        return _amax(x)
    return _amax(x, [other], keepdim), x.argmax(other, keepdim)


def _min(x: Tensor, other: Any = None, keepdim: bool = False) -> Any:
    if isinstance(other, Tensor):
        return -_maximum(-x, -other)
    made = _max(-x, other, keepdim)
    return (-made[0], made[1]) if isinstance(made, tuple) else -made


def _max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> Any:
    kh, kw = _pair(kernel)
    sh, sw = _pair(stride) if stride else (kh, kw)
    (ph, pw), (dh, dw) = _pair(padding), _pair(dilation)
    h, w = x.shape[-2:]
    oh, ow = (_pooled(*one, ceil) for one in ((h, kh, sh, ph, dh), (w, kw, sw, pw, dw)))
    # Windows may reach beyond the edge, where there is less than anything. Not infinity, whose differences are not
    # numbers; `floor` is a constant of the pass, and the padding never wins.
    below = max(0, (oh - 1) * sh + (kh - 1) * dh + 1 - h - ph)
    right = max(0, (ow - 1) * sw + (kw - 1) * dw + 1 - w - pw)
    if any((ph, pw, below, right)):
        x = torch.ops.pellucid.pad_below.default(x, [pw, right, ph, below])

    def taken(i: int, j: int) -> Tensor:
        top, left = i * dh, j * dw
        return x[..., top : top + (oh - 1) * sh + 1 : sh, left : left + (ow - 1) * sw + 1 : sw]

    def reduced(parts: list[Tensor]) -> Tensor:
        while len(parts) > 1:
            pairs = [_maximum(*parts[k : k + 2]) for k in range(0, len(parts) - 1, 2)]
            parts = pairs + (parts[-1:] if len(parts) % 2 else [])
        return parts[0]

    made = reduced([taken(i, j) for i in range(kh) for j in range(kw)])
    return made, None


_LIBRARY.define("pad_below(Tensor x, int[] pad) -> Tensor")  # type: ignore[no-untyped-call]


def lowest_of(x: Tensor) -> float:
    """What `pad_below` pads with: less than every number."""
    return float(x.amin()) - 1 if x.numel() else 0.0


_LIBRARY.impl("pad_below", lambda x, pad: F.pad(x, pad, value=lowest_of(x)), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _pair(value: Any) -> tuple[int, int]:
    sides = [value] if isinstance(value, int) else list(value)
    return (sides[0], sides[-1])


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    made = (reach + (stride - 1 if ceil else 0)) // stride + 1
    # A last window must start within the input or the padding before it.
    return made - 1 if ceil and (made - 1) * stride >= size + padding else made


def _addmm(x: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = left @ right
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


def _addcmul(x: Tensor, one: Tensor, two: Tensor, *, value: float = 1) -> Tensor:
    return x + (one * two if value == 1 else one * two * value)


def _addcdiv(x: Tensor, one: Tensor, two: Tensor, *, value: float = 1) -> Tensor:
    return x + one * two.reciprocal() * value


def _lerp(x: Tensor, y: Tensor, weight: Any) -> Tensor:
    made: Tensor = x + (y - x) * weight
    return made


EXPANSIONS: dict[str, Callable[..., Any]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "_fused_rms_norm": _rms_norm,
    "vector_norm": _vector_norm,
    "var": _var,
    "var_mean": _var_mean,
    "std": lambda x, dim=None, **kwargs: _var(x, dim, **kwargs).sqrt(),
    "div": _div,
    "silu": lambda x: x * x.sigmoid(),
    "hardswish": lambda x: x * F.hardsigmoid(x),
    "mish": lambda x: x * F.softplus(x).tanh(),
    "gelu": _gelu,
    "maximum": _maximum,
    "minimum": lambda x, y: -_maximum(-x, -y),
    "amax": _amax,
    "amin": lambda x, dim=(), keepdim=False: -_amax(-x, dim, keepdim),
    "max": _max,
    "min": _min,
    "max_pool2d": _max_pool2d,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
}
"""By operation. An operation with a rule is never expanded."""
