"""Which functions use parameters, and in which form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.engine.forms import Broadcast, Convolution, Form, Linear, Role, Scale, Table

Roles: TypeAlias = Callable[[Any], Role]
"""Tells what an argument is as a parameter."""


def _linear(role: Roles, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Form | None:
    if bias is not None and bias.shape != weight.shape[:1]:
        return None  # one number for several outputs
    return Linear(input, role(weight), role(bias))


def _convolution(
    role: Roles,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Form | None:
    axes = weight.dim() - 2
    if input.dim() != weight.dim():
        return None
    kernel, steps, far = tuple(weight.shape[2:]), _each(stride, axes), _each(dilation, axes)
    if padding == "same":
        whole = [gap * (size - 1) for gap, size in zip(far, kernel, strict=True)]
        around = tuple((total // 2, total - total // 2) for total in whole)
    else:
        around = tuple((one, one) for one in _each(0 if padding == "valid" else padding, axes))
    return Convolution(
        input, role(weight), role(bias), kernel=kernel, stride=steps, padding=around, dilation=far, groups=groups
    )


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)


def _table(
    role: Roles,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Form | None:
    if max_norm is not None or scale_grad_by_freq:
        return None
    return Table(input, role(weight), padding=None if padding_idx is None else padding_idx % len(weight))


def _layer_norm(
    role: Roles, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Form:
    def normalise(given: Tensor) -> Tensor:
        return F.layer_norm(given, normalized_shape, None, None, eps)

    return Scale(input, role(weight), role(bias), normalise=normalise, channels=False)


def _rms_norm(role: Roles, input: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Form:
    def normalise(given: Tensor) -> Tensor:
        return F.rms_norm(given, normalized_shape, None, eps)

    return Scale(input, role(weight), normalise=normalise, channels=False)


def _batch_norm(
    role: Roles,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Form | None:
    if training:
        return None  # statistics of the batch mix the examples

    def normalise(given: Tensor) -> Tensor:
        mean, var = (None if one is None else one.to(given.dtype) for one in (running_mean, running_var))
        return F.batch_norm(given, mean, var, None, None, False, 0.0, eps)

    return Scale(input, role(weight), role(bias), normalise=normalise)


def _group_norm(
    role: Roles, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Form:
    def normalise(given: Tensor) -> Tensor:
        return F.group_norm(given, num_groups, None, None, eps)

    return Scale(input, role(weight), role(bias), normalise=normalise)


def _instance_norm(
    role: Roles,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Form:
    def normalise(given: Tensor) -> Tensor:
        mean, var = (None if one is None else one.to(given.dtype) for one in (running_mean, running_var))
        return F.instance_norm(given, mean, var, None, None, use_input_stats, 0.0, eps)

    return Scale(input, role(weight), role(bias), normalise=normalise)


def _add(role: Roles, input: Any, other: Any, **kwargs: Any) -> Form | None:
    given = [one for one in (input, other) if role(one) is not None]
    return Broadcast(None, role(given[0])) if len(given) == 1 and _is_whole(role, given[0]) and not kwargs else None


def _multiply(role: Roles, input: Any, other: Any, **kwargs: Any) -> Form | None:
    (parameter, argument) = (input, other) if role(input) is not None else (other, input)
    if kwargs or not isinstance(argument, Tensor) or role(argument) is not None or not _is_whole(role, parameter):
        return None
    return Broadcast(argument, role(parameter))


def _expand(role: Roles, input: Any, *sizes: Any, **kwargs: Any) -> Form | None:
    return Broadcast(None, role(input), is_view=True) if _is_whole(role, input) else None


def _is_whole(role: Roles, tensor: Any) -> bool:
    """Whether a tensor is a whole parameter: some rows of one may be repeated where it is not."""
    found = role(tensor)
    return found is not None and tuple(tensor.shape) == found[2]


FORMS: dict[Any, Callable[..., Form | None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.embedding: _table,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__), _add),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _multiply),
    Tensor.expand: _expand,
    Tensor.expand_as: _expand,
}
"""How functions use parameters; each is given the function's own arguments."""
