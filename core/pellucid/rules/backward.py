"""Vector-Jacobian products of the common operations; of all others, autograd of the one operation.

Each takes the site, what is carried, and the operation's arguments and results, and gives what its active operands get.
A site keeps the shapes, so that what only moves values needs none of them. `"i"` says that the operands' values are
needed, `"o"` the results'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pellucid.rules.node import Site

Backward = Callable[["Site", Tensor, Sequence[Any], Any], Sequence[Tensor | None]]
aten = torch.ops.aten


def backward_of(site: Site) -> tuple[str, Backward]:
    """What an operation's product needs, and the product."""
    if (len(site.out) == 1 or site.primary or site.op == "split") and (site.op, site.kind) != ("batch_norm", "norm"):
        for name in (site.base, site.op):
            found = _TABLE.get(name)
            if found is not None and (found[0] is None or site.active in found[0]):
                # A product with a constant needs the constant only, which is always there.
                return "" if name in _BY_OTHERS and len(site.active) == 1 else found[1], found[2]
    return "i", by_autograd


def by_autograd(site: Site, carried: Any, args: Sequence[Any], out: Any) -> Sequence[Tensor | None]:
    """The product by running the one operation under autograd."""
    grads: Sequence[Any]
    with torch.enable_grad():
        leaves = [args_at(args, path).detach().requires_grad_() for path in site.paths]
        made = site.target(*with_operands(args, site.paths, leaves), **site.kwargs_of(args))
        pairs = [
            (one, grad)
            for one, grad in zip(_listed(made), _listed(carried), strict=False)
            if grad is not None and isinstance(one, Tensor) and one.requires_grad
        ]
        if not pairs:
            return [None] * len(leaves)
        grads = [grad.to(one.dtype).expand_as(one) for one, grad in pairs]
        return torch.autograd.grad([one for one, _ in pairs], leaves, grads, allow_unused=True)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def args_at(args: Sequence[Any], path: tuple[int, ...]) -> Any:
    """The argument at a place, which may lie in a list."""
    value: Any = args
    for index in path:
        value = value[index]
    return value


def with_operands(args: Sequence[Any], paths: Sequence[tuple[int, ...]], operands: Sequence[Any]) -> list[Any]:
    """The arguments with some operands exchanged."""
    made = list(args)
    for path, operand in zip(paths, operands, strict=True):
        if len(path) == 1:
            made[path[0]] = operand
        else:
            inner = list(made[path[0]])
            inner[path[1]] = operand
            made[path[0]] = inner
    return made


def fitted(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums over what was broadcast."""
    return gradient if tuple(gradient.shape) == shape else gradient.sum_to_size(shape)


def _padded(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """Arguments, with the defaults of those that were left out."""
    return [*given, *defaults[len(given) :]]


def _reshaped(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [g.reshape(site.shapes[0])]


def _permute(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    dims = [dim % g.dim() for dim in a[1]]
    return [g.permute([dims.index(dim) for dim in range(len(dims))])]


def _slice(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    dim, start, end, step = _padded(a[1:], (0, None, None, 1))
    shape = site.shapes[0]
    return [aten.slice_backward(g, shape, dim, start or 0, shape[dim] if end is None else end, step)]


def _cat(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    dim = (a[1] if len(a) > 1 else 0) % g.dim()
    pieces, start = [], 0
    for shape in site.operand_shapes:
        size = 0 if shape == (0,) else shape[dim]
        pieces.append(g.narrow(dim, start, size))
        start += size
    return [pieces[index] for index in site.active]


def _split(site: Site, g: Any, a: Sequence[Any], o: Any) -> list[Tensor]:
    dim = a[2] if len(a) > 2 else 0
    like = next(one for one in g if one is not None)
    pieces = [like.new_zeros(shape) if one is None else one for one, shape in zip(g, site.result_shapes, strict=True)]
    return [torch.cat(pieces, dim)]


def _copy(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor | None]:
    # The first operand is overwritten.
    return [fitted(g, shape) if index else None for index, shape in zip(site.active, site.shapes, strict=True)]


def _pad(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten.constant_pad_nd(g, [-pad for pad in a[1]], 0)]


def _add(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    alpha = site.kwargs.get("alpha", a[2] if len(a) > 2 else 1)
    scales = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[site.op]
    return [
        fitted(g if scales[index] == 1 else g * scales[index], shape)
        for index, shape in zip(site.active, site.shapes, strict=True)
    ]


def _mul(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [fitted(g * a[1 - index], shape) for index, shape in zip(site.active, site.shapes, strict=True)]


def _div(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [fitted(g / a[1], site.shapes[0])]


def _sum(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    shape = site.shapes[0]
    dims = a[1] if len(a) > 1 and a[1] is not None else []
    dims = [dims] if isinstance(dims, int) else dims
    dims = sorted({dim % len(shape) for dim in dims}) or range(len(shape))
    if not (len(a) > 2 and a[2]):
        for dim in dims:
            g = g.unsqueeze(dim)
    return [g.expand(shape)]


def _mean(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    (spread,) = _sum(site, g, a, o)
    return [spread * (max(g.numel(), 1) / max(spread.numel(), 1))]


def _convolution(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten.convolution_backward(g, a[0], a[1], None, *a[3:], [True, False, False])[0]]


def _mm(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    left, right = a[-2], a[-1]
    which = [index - (len(a) - 2) for index in site.active]
    return [g @ right.transpose(-1, -2) if index == 0 else left.transpose(-1, -2) @ g for index in which]


def _batch_norm(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    scale = torch.rsqrt(a[4] + a[-1]) if a[1] is None else a[1] * torch.rsqrt(a[4] + a[-1])
    return [g * scale.reshape(1, -1, *(1,) * (g.dim() - 2)).to(g)]


def _layer_norm(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [
        aten.native_layer_norm_backward(g.contiguous(), a[0], a[1], o[1], o[2], a[2], a[3], [True, False, False])[0]
    ]


def _max_pool(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten.max_pool2d_with_indices_backward(g, a[0], *_padded(a[1:], ((), (), 0, 1, False)), o[1])]


def _avg_pool(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten.avg_pool2d_backward(g, a[0], *_padded(a[1:], ((), (), 0, False, True, None)))]


def _gelu(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten.gelu_backward(g, a[0], **site.kwargs)]


def _hardtanh(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten.hardtanh_backward(g, a[0], *_padded(a[1:], (-1, 1)))]


def _softmax(site: Site, g: Tensor, a: Sequence[Any], o: Any) -> list[Tensor]:
    return [aten._softmax_backward_data(g, o, a[1], g.dtype)]


_ONE: Any = [(0,)]
_ANY: Any = None
_BY_OTHERS = frozenset({"mul", "mm", "bmm"})

_TABLE: dict[str, tuple[Any, str, Backward]] = {
    **dict.fromkeys(("view", "squeeze", "unsqueeze", "_reshape_alias"), (_ONE, "", _reshaped)),
    **dict.fromkeys(("clone", "alias", "lift_fresh", "contiguous", "shift"), (_ONE, "", lambda s, g, a, o: [g])),
    "to": (_ONE, "", lambda s, g, a, o: [g.to(s.dtypes[0])]),
    "permute": (_ONE, "", _permute),
    "transpose": (_ONE, "", lambda s, g, a, o: [g.transpose(a[1], a[2])]),
    "t": (_ONE, "", lambda s, g, a, o: [g.t()]),
    "expand": (_ONE, "", lambda s, g, a, o: [fitted(g, s.shapes[0])]),
    "slice": (_ONE, "", _slice),
    "select": (_ONE, "", lambda s, g, a, o: [aten.select_backward(g, s.shapes[0], a[1], a[2])]),
    "roll": (_ONE, "", lambda s, g, a, o: [torch.roll(g, [-shift for shift in a[1]], *a[2:])]),
    "flip": (_ONE, "", lambda s, g, a, o: [g.flip(a[1])]),
    "cat": (_ANY, "", _cat),
    "split": (_ONE, "", _split),
    "copy": (_ANY, "", _copy),
    "constant_pad_nd": (_ONE, "", _pad),
    "pad_below": (_ONE, "", _pad),
    "add": (_ANY, "", _add),
    "sub": (_ANY, "", _add),
    "rsub": (_ANY, "", _add),
    "neg": (_ONE, "", lambda s, g, a, o: [-g]),
    "mul": (_ANY, "i", _mul),
    "div": (_ONE, "", _div),
    "sum": (_ONE, "", _sum),
    "mean": (_ONE, "", _mean),
    "convolution": (_ONE, "i", _convolution),
    "mm": (_ANY, "i", _mm),
    "bmm": (_ANY, "i", _mm),
    "addmm": ([(1,)], "", _mm),
    "batch_norm": (_ONE, "", _batch_norm),
    "native_layer_norm": (_ONE, "io", _layer_norm),
    "max_pool2d_with_indices": (_ONE, "io", _max_pool),
    "avg_pool2d": (_ONE, "i", _avg_pool),
    "_adaptive_avg_pool2d": (_ONE, "i", lambda s, g, a, o: [aten._adaptive_avg_pool2d_backward(g, a[0])]),
    "_softmax": (_ONE, "o", _softmax),
    "_safe_softmax": (_ONE, "o", _softmax),
    "relu": (_ONE, "o", lambda s, g, a, o: [aten.threshold_backward(g, o, 0)]),
    "hardtanh": (_ONE, "i", _hardtanh),
    "gelu": (_ONE, "i", _gelu),
    "silu": (_ONE, "i", lambda s, g, a, o: [aten.silu_backward(g, a[0])]),
    "hardswish": (_ONE, "i", lambda s, g, a, o: [aten.hardswish_backward(g, a[0])]),
    "hardsigmoid": (_ONE, "i", lambda s, g, a, o: [aten.hardsigmoid_backward(g, a[0])]),
    "sigmoid": (_ONE, "o", lambda s, g, a, o: [aten.sigmoid_backward(g, o)]),
    "tanh": (_ONE, "o", lambda s, g, a, o: [aten.tanh_backward(g, o)]),
    "exp": (_ONE, "o", lambda s, g, a, o: [g * o]),
    "reciprocal": (_ONE, "o", lambda s, g, a, o: [-g * o * o]),
}
