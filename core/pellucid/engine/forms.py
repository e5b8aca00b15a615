"""The forms in which parameters are used, and the gradients of each example in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.protocol.factors import Factor

Role: TypeAlias = "tuple[str, int, tuple[int, ...]] | None"
"""A parameter's name, the first of its rows that is meant, and its shape; None for what is no wanted parameter."""

SHORT = 32
"""How many numbers side by side are worth copying once for several lines of a convolution's kernel."""


@dataclass(eq=False)
class Form(ABC):
    """One function of an argument and of parameters, whose result has the examples on some axis.

    Attributes:
        argument: what the gradient needs of what the function was given.
        weight: the weight.
        bias: the bias.
        is_view: whether the result is not the function's own.
        sequences: (L, sequences, E) is the form of the argument, inside of attention; None elsewhere.
    """

    argument: Tensor | None
    weight: Role
    bias: Role = None
    is_view: bool = False
    sequences: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(role[0] for role in (self.weight, self.bias) if role is not None)

    def take(self, result: Tensor, rows: int, sequences: int | None) -> bool:
        """Whether the rows of the examples are known in the result; learns how they lie."""
        self.sequences = sequences
        if sequences is not None:
            return sequences % rows == 0 and (result.dim() == 3 or len(result) % sequences == 0)
        # Axes of examples and of windows or time are often joined; the examples are then the outer ones.
        return result.dim() > 0 and len(result) > 0 and len(result) % rows == 0

    def _by_rows(self, tensor: Tensor) -> Tensor:
        """The tensor with the examples first, and in single precision at least."""
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        if self.sequences is None:
            return tensor
        return tensor.reshape(-1, self.sequences, tensor.shape[-1]).transpose(0, 1)

    def factors(self, argument: Tensor | None, gradient: Tensor, rows: int) -> Iterator[Factor]:
        """The gradients of each example, from the one by the function's result."""
        given = None if argument is None else self._by_rows(argument)
        for factor in self.of(given, self._by_rows(gradient)):
            yield regrouped(factor, rows)

    @abstractmethod
    def of(self, given: Any, slopes: Tensor) -> Iterator[Factor]:
        """The factors of each row of the result."""

    def _linear(self, inputs: Tensor, slopes: Tensor) -> Iterator[Factor]:
        """The factors of a linear layer from (rows, T, p) and (rows, T, q)."""
        both = [role for role in (self.weight, self.bias) if role is not None]
        if self.weight is not None and all(role[1] == 0 and role[2][0] == slopes.shape[-1] for role in both):
            yield Factor.outer([role[0] for role in both], [role[2] for role in both], inputs, slopes)
            return
        if self.weight is not None:  # some rows of the weight; the gradient by the others is zero
            name, start, shape = self.weight
            yield Factor.outer((name,), (shape,), inputs, _placed(slopes, start, shape[0]))
        yield from _vector(self.bias, slopes.sum(dim=1))


def _placed(values: Tensor, start: int, size: int) -> Tensor:
    return F.pad(values, (start, size - start - values.shape[-1]))


def _vector(role: Role, values: Tensor) -> Iterator[Factor]:
    """The factor of a parameter from its gradients (rows, ...), which may be of some of its rows."""
    if role is not None:
        name, start, shape = role
        values = values.reshape(len(values), -1)
        size = torch.Size(shape).numel()
        begin = start * (size // max(shape[0], 1)) if shape else 0
        yield Factor((name,), (shape,), (values if values.shape[1] == size else _placed(values, begin, size),))


def regrouped(factor: Factor, rows: int) -> Factor:
    """The factor of each example, where it has several rows of the result."""
    count = len(factor)
    if count == rows:
        return factor
    if factor.inputs is None or factor.slopes is None:
        parts = tuple(part.reshape(rows, count // rows, -1).sum(dim=1) for part in factor.parts)
        return replace(factor, parts=parts)
    inputs, slopes = (tensor.reshape(rows, -1, *tensor.shape[2:]) for tensor in (factor.inputs, factor.slopes))
    return Factor.outer(factor.names, factor.shapes, inputs, slopes)


class Linear(Form):
    """A linear layer."""

    def take(self, result: Tensor, rows: int, sequences: int | None) -> bool:
        """A single vector is that of no batch."""
        return result.dim() > 1 and super().take(result, rows, sequences)

    def of(self, given: Any, slopes: Tensor) -> Iterator[Factor]:
        """Inputs and slopes at each position."""
        yield from self._linear(
            given.reshape(len(given), -1, given.shape[-1]), slopes.reshape(len(slopes), -1, slopes.shape[-1])
        )


@dataclass(eq=False)
class Convolution(Form):
    """A convolution of one, two or three axes.

    Attributes:
        kernel: the kernel's sizes.
        stride: the steps.
        padding: what is added before and after, by axis.
        dilation: the distances of the kernel's taps.
        groups: how many groups of channels are kept apart.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def of(self, given: Any, slopes: Tensor) -> Iterator[Factor]:
        """Patches and slopes at each position of the output."""
        positions, depth, width = slopes[0, 0].numel(), math.prod(self.kernel) * given.shape[1], slopes.shape[1]
        cheap = depth * width <= positions**2 * (depth + width)
        whole = self.weight is not None and self.weight[2][0] == width
        if self.weight is not None and whole and cheap and self.groups == 1 and len(self.kernel) == 2:
            yield self._written(self.weight, given, slopes)
            yield from _vector(self.bias, slopes.sum(dim=(2, 3)))
            return
        patches = self._patches(given)
        slopes = slopes.flatten(2)
        if self.groups == 1:
            yield from self._linear(patches.transpose(1, 2), slopes.transpose(1, 2))
            return
        rows = len(slopes)
        if self.weight is not None:
            split = slopes.reshape(rows * self.groups, -1, slopes.shape[2])
            weight = split @ patches.reshape(rows * self.groups, -1, patches.shape[2]).transpose(1, 2)
            yield from _vector(self.weight, weight.reshape(rows, -1))
        yield from _vector(self.bias, slopes.sum(dim=2))

    def _written(self, weight: tuple[str, int, tuple[int, ...]], given: Tensor, slopes: Tensor) -> Factor:
        """The weight's gradients, with the channels last: patches are then copied in long runs, and half as many."""
        (high, wide), (step, stride), (far, dilation) = self.kernel, self.stride, self.dilation
        (above, below), (left, right) = self.padding
        rows, _, height, breadth = slopes.shape
        image = given.permute(0, 2, 3, 1)
        image = (F.pad(image, (0, 0, left, right, above, below)) if any(map(any, self.padding)) else image).contiguous()
        channels = image.shape[3]
        each, line, pixel, _ = image.stride()
        slopes = slopes.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
        if wide * channels < SHORT:
            taps = image.as_strided(
                (rows, height, breadth, high, wide, channels),
                (each, step * line, stride * pixel, far * line, dilation * pixel, 1),
            )
            gradient = slopes @ taps.reshape(rows, height * breadth, -1)
        else:
            taps = image.as_strided(
                (rows, image.shape[1], breadth, wide, channels), (each, line, stride * pixel, dilation * pixel, 1)
            ).contiguous()
            last = (height - 1) * step + 1
            by_line = [taps[:, far * k : far * k + last : step] for k in range(high)]
            gradient = torch.cat([slopes @ one.reshape(rows, height * breadth, -1) for one in by_line], dim=2)
        return Factor((weight[0],), (weight[2],), (gradient.flatten(1),), order=(0, 2, 3, 1))

    def _patches(self, given: Tensor) -> Tensor:
        """What the kernel sees at each position of the output, (rows, channels * taps, positions)."""
        if len(self.kernel) == 2 and all(before == after for before, after in self.padding):
            padding = tuple(before for before, _ in self.padding)
            return F.unfold(given, self.kernel, self.dilation, padding, self.stride)
        if any(map(any, self.padding)):
            given = F.pad(given, [side for axis in reversed(self.padding) for side in axis])
        for axis, (size, step, far) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            given = given.unfold(2 + axis, (size - 1) * far + 1, step)[..., ::far]
        axes = len(self.kernel)
        taps = given.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
        return taps.reshape(len(given), taps.shape[1:2].numel() * taps.shape[2 : 2 + axes].numel(), -1)


@dataclass(eq=False)
class Table(Form):
    """An embedding.

    Attributes:
        padding: the row that is not learnt, or None.
    """

    padding: int | None = None

    def of(self, given: Any, slopes: Tensor) -> Iterator[Factor]:
        """The rows that were looked up, and the slopes."""
        assert self.weight is not None
        places = given.reshape(len(given), -1)
        slopes = slopes.reshape(len(slopes), -1, slopes.shape[-1])
        if self.padding is not None:
            slopes = slopes * (places != self.padding)[..., None]
        yield Factor.outer((self.weight[0],), (self.weight[2],), places + self.weight[1], slopes)

    def _by_rows(self, tensor: Tensor) -> Tensor:
        return tensor if self.argument is None or not tensor.is_floating_point() else super()._by_rows(tensor)


@dataclass(eq=False)
class Scale(Form):
    """A normalisation with a weight and a bias for each channel or feature.

    Attributes:
        normalise: the same without weight and bias.
        channels: whether these lie on the second axis; otherwise on the last ones.
    """

    normalise: Callable[[Tensor], Tensor] = torch.clone
    channels: bool = True

    def take(self, result: Tensor, rows: int, sequences: int | None) -> bool:
        """What is normalised must have an axis more than what it is normalised over."""
        role = self.weight or self.bias
        return role is not None and result.dim() > len(role[2]) and super().take(result, rows, sequences)

    def of(self, given: Any, slopes: Tensor) -> Iterator[Factor]:
        """What was scaled times the slopes, summed over positions."""
        role = self.weight or self.bias
        assert role is not None
        axes = range(2, slopes.dim()) if self.channels else range(1, slopes.dim() - len(role[2]))

        def summed(values: Tensor) -> Tensor:
            return values.sum(dim=tuple(axes)) if axes else values

        if self.weight is not None:
            yield from _vector(self.weight, summed(self.normalise(given) * slopes))
        yield from _vector(self.bias, summed(slopes))


class Broadcast(Form):
    """A parameter that is added to an argument or, where the argument matters, multiplied with it."""

    def take(self, result: Tensor, rows: int, sequences: int | None) -> bool:
        """The parameter must be the same for all examples."""
        assert self.weight is not None
        shape = self.weight[2]
        self.sequences = None
        same = len(shape) < result.dim() or shape[0] == 1
        fits = self.argument is None or self.argument.shape == result.shape
        return sequences is None and same and fits and result.dim() > 0 and len(result) % rows == 0

    def of(self, given: Any, slopes: Tensor) -> Iterator[Factor]:
        """The slopes, times the argument, summed over the axes that the parameter has not."""
        assert self.weight is not None
        shape = self.weight[2]
        values = slopes if given is None else slopes * given
        shape = (1,) * (values.dim() - len(shape)) + tuple(shape)
        axes = [axis for axis in range(1, values.dim()) if shape[axis] == 1 and values.shape[axis] > 1]
        yield from _vector(self.weight, values.sum(dim=axes) if axes else values)
