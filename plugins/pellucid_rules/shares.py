"""What the inputs of an op contribute to each of its outputs, positive and negative apart, without making each term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pellucid import Node, ParameterError

_ROUNDING = 8.0
"""In units of the last place of all that was summed: a sum below it says nothing of its terms."""


def divided(carried: Tensor, by: Tensor, stabilizer: float) -> Tensor:
    """`carried / by`, the denominator moved away from zero by the stabilizer; without one, zero where it is zero."""
    if stabilizer:
        # In place, since on a CPU new memory costs more than the arithmetic.
        moved = torch.copysign(torch.full((), stabilizer, dtype=by.dtype, device=by.device), by).add_(by)
        return torch.div(carried, moved, out=moved) if carried.dtype == by.dtype else carried / moved
    nothing = by == 0
    return (carried / by.masked_fill(nothing, 1.0)).masked_fill_(nothing, 0.0)


def times(inputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each input times what it was handed."""
    return tuple(value * slope for value, slope in zip(inputs, slopes, strict=True))


class Shares(ABC):
    """The contributions z_ij to the outputs z_j of a linear op: their sums by sign, and shares of them handed back.

    For a weighted op z_ij = x_i w_ij. With |z| the op at |x| and |w|, its positive contributions sum to (z + |z|) / 2:
    one further pass through the op in place of one for each pair of signs, and where no input is negative, the op with
    the positive weights alone. For sums, means and the like the sign of a coefficient is that of the gradient.

    Attributes:
        node: the op.
        signed: whether some input is negative.
        constant: what is added to the contributions, so that it broadcasts to the output; None for nothing.
    """

    def __init__(self, node: Node, *, bias: bool = True) -> None:
        self.node = node
        self.signed = True
        self.constant = self._constant()
        self._bias = self.constant if bias else None

    @cached_property
    def linear(self) -> Tensor:
        """The output without its bias."""
        output: Tensor = self.node.output
        return output if self.constant is None else output - self.constant

    @property
    def total(self) -> Tensor:
        """The sum of all contributions."""
        output: Tensor = self.node.output
        return self.linear if self._bias is None else output

    @cached_property
    def positive(self) -> Tensor:
        """The sum of the positive contributions."""
        return self._positive if self._bias is None else self._positive + self._bias.clamp(min=0)

    @cached_property
    def negative(self) -> Tensor:
        """The sum of the negative contributions."""
        return self._negative if self._bias is None else self._negative + self._bias.clamp(max=0)

    def over_positive(self, carried: Tensor, stabilizer: float) -> Tensor:
        """`carried` for each unit of the positive contributions; zero where their sum is mere rounding."""
        each = divided(carried, self.positive, stabilizer)
        return each.masked_fill_(self._rounded(self._positive), 0.0) if self.signed else each

    def over_negative(self, carried: Tensor, stabilizer: float) -> Tensor:
        """`carried` for each unit of the negative contributions; zero where their sum is mere rounding."""
        return divided(carried, self.negative, stabilizer).masked_fill_(self._rounded(self._negative), 0.0)

    def _rounded(self, part: Tensor) -> Tensor:
        size = self._positive - self._negative
        return part.abs() <= _ROUNDING * torch.finfo(part.dtype).eps * size

    @abstractmethod
    def _constant(self) -> Tensor | None:
        """What is added to the contributions."""

    @property
    @abstractmethod
    def _positive(self) -> Tensor:
        """The sum of the positive contributions without the bias."""

    @property
    @abstractmethod
    def _negative(self) -> Tensor:
        """The sum of the negative contributions without the bias."""

    @abstractmethod
    def back(self, up: Tensor, down: Tensor | None = None) -> tuple[Tensor, ...]:
        """What each input gets when output j hands `up`_j to every unit of positive and `down`_j of negative z_ij.

        Args:
            up: for the positive contributions, of the output's shape.
            down: for the negative ones; None is zero.
        """


class _Weighted(Shares):
    def __init__(self, node: Node, *, bias: bool = True) -> None:
        super().__init__(node, bias=bias)
        (self.inputs,), weight = node.inputs, node.weight
        assert weight is not None
        self.weight: Tensor = weight
        self.signed = bool(self.inputs.amin() < 0)

    @cached_property
    def _up(self) -> Tensor:
        return self.weight.clamp(min=0)

    @cached_property
    def _size(self) -> Tensor:
        return self.weight.abs()

    def _constant(self) -> Tensor | None:
        bias = self.node.bias
        if bias is None or bias.dim() != 1 or self.node.op != "convolution":
            return bias
        return bias.reshape(-1, *(1,) * (self.node.output.dim() - 2))

    @cached_property
    def _positive(self) -> Tensor:
        if not self.signed:
            return self.node(self.inputs, weight=self._up, bias=False)
        return self.node(self.inputs.abs(), weight=self._size, bias=False).add_(self.linear).mul_(0.5)

    @cached_property
    def _negative(self) -> Tensor:
        return self.linear - self._positive

    def back(self, up: Tensor, down: Tensor | None = None) -> tuple[Tensor, ...]:
        node, inputs = self.node, self.inputs
        if self.signed:
            same, apart = (up, up) if down is None else (up + down, up - down)
            (first,), (second,) = node.vjp(same), node.vjp(apart, weight=self._size)
            return (first.mul_(inputs).addcmul_(inputs.abs(), second).mul_(0.5),)
        (slope,) = node.vjp(up, weight=self._up)
        if down is not None:
            slope = slope.add_(node.vjp(down, weight=self.weight.clamp(max=0))[0])
        return (slope.mul_(inputs),)


class _Summed(Shares):
    def __init__(self, node: Node, *, bias: bool = True) -> None:
        super().__init__(node, bias=bias)
        slopes = node.vjp(torch.ones_like(node.output))
        zeros = [torch.zeros_like(value) for value in node.inputs]
        self.ups = [
            torch.where(value * slope > 0, value, zero)
            for value, slope, zero in zip(node.inputs, slopes, zeros, strict=True)
        ]
        self.downs = [value - up for value, up in zip(node.inputs, self.ups, strict=True)]

    def _constant(self) -> Tensor | None:
        return self.node(*(torch.zeros_like(value) for value in self.node.inputs))

    @cached_property
    def _positive(self) -> Tensor:
        return self._at(self.ups)

    @cached_property
    def _negative(self) -> Tensor:
        return self._at(self.downs)

    def _at(self, values: Sequence[Tensor]) -> Tensor:
        made = self.node(*values)
        return made if self.constant is None else made - self.constant

    def _rounded(self, part: Tensor) -> Tensor:
        return part == 0

    def back(self, up: Tensor, down: Tensor | None = None) -> tuple[Tensor, ...]:
        given = times(self.ups, self.node.vjp(up))
        if down is None:
            return given
        further = times(self.downs, self.node.vjp(down))
        return tuple(one + other for one, other in zip(given, further, strict=True))


def shares_of(node: Node, *, bias: bool = True) -> Shares:
    """The contributions of a node's inputs.

    Args:
        node: of the kind "weighted" or "sum".
        bias: whether a bias counts as a contribution, of its own sign.

    Raises:
        ParameterError: for another kind.
    """
    if node.kind == "weighted":
        return _Weighted(node, bias=bias)
    if node.kind == "sum":
        return _Summed(node, bias=bias)
    raise ParameterError(
        f"a rule for positive and negative contributions was given to '{node.op}', which is not linear; give it to "
        f"'conv', 'linear', 'weighted' or 'sum', and another, such as 'pass', to '{node.kind}'"
    )
