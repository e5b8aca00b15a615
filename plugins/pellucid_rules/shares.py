"""What the inputs of an op contribute to each of its outputs, positive and negative apart, without making each term."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pellucid import Node, ParameterError, Rule

_FEW = 64
"""Contributions to an output up to which each sign is summed for itself: few may be of one sign but for a tiny rest, of
which the difference of two sums would leave nothing."""

_ROUNDING = 8.0
"""In units of the last place of all that was summed: contributions that sum to less are none."""


Given = Sequence[Tensor | None]


def at_least_zero(rule: Rule, *names: str) -> None:
    """Refuses parameters of a rule that are no finite numbers of at least zero."""
    for name in names:
        value = getattr(rule, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ParameterError(f"{type(rule).__name__}({name}={value!r}): expected a number that is at least 0")


def divided(carried: Tensor, by: Tensor, stabilizer: float) -> Tensor:
    """`carried / by`, the denominator moved away from zero by the stabilizer; without one, zero where it is zero."""
    if stabilizer:
        stabilizer = representable(stabilizer, by.dtype)
        # In place, since on a CPU new memory costs more than the arithmetic.
        moved = torch.copysign(torch.full((), stabilizer, dtype=by.dtype, device=by.device), by).add_(by)
        return torch.div(carried, moved, out=moved) if carried.dtype == by.dtype else carried / moved
    nothing = by == 0
    return (carried / by.masked_fill(nothing, 1.0)).masked_fill_(nothing, 0.0)


def representable(stabilizer: float, dtype: torch.dtype) -> float:
    """The stabilizer, or in half precision more, so that what is divided by it stays finite."""
    limits = torch.finfo(dtype)
    return stabilizer if limits.bits > 16 else max(stabilizer, limits.eps)


def times(inputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each input times what it was handed."""
    return tuple(value * slope for value, slope in zip(inputs, slopes, strict=True))


def signed(node: Node) -> bool:
    """Whether a node's first input has negative values."""
    return not node.nonnegative[0] and bool(node.inputs[0].amin() < 0)


def over(carried: Tensor, total: Tensor, stabilizer: float) -> Tensor:
    """`carried / total` in the memory of `total`, which has its stabilizer; without one, zero where it is zero."""
    return torch.div(carried, total, out=total) if stabilizer else divided(carried, total, 0.0)


def biased(node: Node, inputs: Tensor, weight: Tensor, bias: Tensor | None, stabilizer: float) -> Tensor:
    """A weighted op with other parameters, plus a stabilizer, which costs nothing where it can be part of a bias."""
    if bias is None:
        total = node(inputs, weight=weight, bias=False)
        return total.add_(representable(stabilizer, total.dtype)) if stabilizer else total
    return node(inputs, weight=weight, bias=bias + representable(stabilizer, bias.dtype) if stabilizer else bias)


def positive_shares(
    node: Node, carried: Tensor, low: float, stabilizer: float, *, bias: bool = True, sure: bool = True
) -> tuple[Tensor] | None:
    """Shares in a weighted op's output where negative contributions weigh `low` and all others 1.

    The denominators are sums of what the outputs are, if positive, and of positive contributions: nothing cancels.

    Args:
        node: the op.
        carried: what its output carries.
        low: the weight of negative contributions, from 0 to 1; the bias counts by its own sign.
        stabilizer: in units of the outputs.
        bias: whether a bias counts as a contribution.
        sure: whether all outputs that carry anything are positive; else the inputs have to be nowhere negative, `low`
            is zero, and there may be outputs without a positive contribution: then None is returned if one carries.
    """
    (inputs,), weight, added = node.inputs, node.weight, node.bias if bias else None
    assert weight is not None
    if not sure or not signed(node):
        weight = torch.nn.functional.leaky_relu(weight, low)
        added = None if added is None else torch.nn.functional.leaky_relu(added, low)
        total = biased(node, inputs, weight, added, stabilizer)
        least = representable(stabilizer, total.dtype)
        if low:
            total.clamp_(min=least)  # where nothing is carried
        if not sure and not bool(total.amin() > least) and bool(((total <= least) & (carried != 0)).any()):
            return None
        (slopes,) = node.vjp(over(carried, total, stabilizer), weight=weight)
        return (slopes.mul_(inputs),)
    # Twice what was said, over 1 + low: z and |z| are sums of contributions and of their magnitudes.
    part = (1 - low) / (1 + low)
    size, magnitude = inputs.abs(), weight.abs().mul_(part)
    total = biased(node, size, magnitude, None if added is None else added.abs().mul_(part), stabilizer * (1 + part))
    total.add_(node.output).clamp_(min=stabilizer)
    each = over(carried, total, stabilizer)
    (first,), (second,) = node.vjp(each), node.vjp(each, weight=magnitude)
    return (first.mul_(inputs).addcmul_(size, second),)


def opposed_shares(
    node: Node, carried: Tensor, alpha: float, beta: float, stabilizer: float, *, bias: bool = True
) -> tuple[Tensor] | None:
    """Shares in a weighted op's output by sign: `alpha` of it for positive contributions, minus `beta` for negative.

    What `Shares` gives, in half the passes over memory: bias and stabilizer are part of the op, and alpha and beta meet
    the gradients as these are added up.

    Args:
        node: the op.
        carried: what its output carries.
        alpha: more than 1.
        beta: more than 0.
        stabilizer: in units of the outputs.
        bias: whether a bias counts as a contribution.

    Returns:
        What the input gets, or None for few contributions of inputs of both signs, which `Shares` takes one by one.
    """
    (inputs,), weight, output = node.inputs, node.weight, node.output
    assert weight is not None
    both, few = signed(node), weight[0].numel() <= _FEW
    if both and few:
        return None
    shift = node.bias if bias else None
    if not bias and (constant := _constant(node)) is not None:
        output = output - constant
    least = representable(stabilizer, output.dtype) if stabilizer else 0.0
    more = 1 + _ROUNDING * torch.finfo(output.dtype).eps
    if both:  # twice the sum of each sign is the sum of all magnitudes and, or less, the sum of all
        size, magnitude = inputs.abs(), weight.abs()
        total = biased(node, size, magnitude, None if shift is None else shift.abs(), 2 * stabilizer)
        up = over(carried, _more_than(2 * least, torch.add(total, output, alpha=more)), stabilizer)
        down = over(carried, _more_than(2 * least, torch.sub(total, output, alpha=more, out=total)), stabilizer)
        same = torch.add(_scaled(down, beta), up, alpha=alpha)
        apart = torch.sub(same, down, alpha=2, out=down)
        (first,), (second,) = node.vjp(same), node.vjp(apart, weight=magnitude)
        return (first.mul_(inputs).addcmul_(size, second),)
    raised, lowered = weight.clamp(min=0), weight.clamp(max=0)
    total = biased(node, inputs, raised, None if shift is None else shift.clamp(min=0), stabilizer)
    if few:
        against = biased(node, inputs, -lowered, None if shift is None else (-shift).clamp_(min=0), stabilizer)
    else:
        against = _more_than(least, torch.sub(total, output, alpha=more))
    (first,) = node.vjp(over(carried, total, stabilizer), weight=raised)
    (second,) = node.vjp(over(carried, against, stabilizer), weight=lowered)
    return (_scaled(second, beta).add_(first, alpha=alpha).mul_(inputs),)


def _more_than(least: float, sums: Tensor) -> Tensor:
    """Sums found by subtraction, with infinity, of which every share is zero, for those that are but rounding."""
    return torch.threshold_(sums, least, math.inf)


def _scaled(tensor: Tensor, by: float) -> Tensor:
    return tensor if by == 1 else tensor.mul_(by)


def _constant(node: Node) -> Tensor | None:
    """What a weighted op adds, so that it broadcasts to the output."""
    bias = node.bias
    if bias is None or bias.dim() != 1 or node.op != "convolution":
        return bias
    return bias.reshape(-1, *(1,) * (node.output.dim() - 2))


class Shares(ABC):
    """The contributions z_ij to the outputs z_j of a linear op: their sums by sign, and shares of them handed back.

    For a weighted op z_ij = x_i w_ij, and each sign is the op at inputs and weights of chosen signs. Where many signed
    inputs meet, and |z| is the op at |x| and |w|, the positive contributions sum to (z + |z|) / 2, which saves a pass
    through the op. For sums, means and the like the sign of a coefficient is that of the gradient.

    Attributes:
        node: the op.
        constant: what is added to the contributions, so that it broadcasts to the output; None for nothing.
        rounded: whether the sums of the positive and of the negative contributions were found by subtraction.
    """

    rounded = (False, False)

    def __init__(self, node: Node, *, bias: bool = True) -> None:
        self.node = node
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

    @cached_property
    def pulled_up(self) -> bool:
        """Whether every output has a positive contribution."""
        return bool(self._positive.amin() > 0)

    def over_positive(self, carried: Tensor, stabilizer: float) -> Tensor:
        """`carried` for each unit of the positive contributions; zero where there are none."""
        each = self._over(self.positive, carried, stabilizer)
        if not self.rounded[0] or self.pulled_up:
            return each
        return each.masked_fill_(self._positive == 0, 0.0)

    def over_negative(self, carried: Tensor, stabilizer: float) -> Tensor:
        """`carried` for each unit of the negative contributions; zero where there are none."""
        each = self._over(self.negative, carried, -stabilizer)
        return each.masked_fill_(self._negative == 0, 0.0) if self.rounded[1] else each

    @staticmethod
    def _over(part: Tensor, carried: Tensor, stabilizer: float) -> Tensor:
        if not stabilizer:
            return divided(carried, part, 0.0)
        moved = part + math.copysign(representable(abs(stabilizer), part.dtype), stabilizer)
        return torch.div(carried, moved, out=moved)

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
    def __init__(self, node: Node, weight: Tensor, *, bias: bool) -> None:
        super().__init__(node, bias=bias)
        self.weight = weight

    def _constant(self) -> Tensor | None:
        return _constant(self.node)

    @property
    def _less(self) -> float:
        """A little less than one, so that what is nothing but rounding becomes zero."""
        return 1 - _ROUNDING * torch.finfo(self.linear.dtype).eps


class _BySign(_Weighted):
    """Inputs of each sign for themselves, as magnitudes with a weight that has their sign."""

    def __init__(self, node: Node, weight: Tensor, *, bias: bool, signed: bool) -> None:
        super().__init__(node, weight, bias=bias)
        (inputs,) = node.inputs
        parts = [(inputs.clamp(min=0), weight), ((-inputs).clamp_(min=0), -weight)] if signed else [(inputs, weight)]
        self.parts = [(values, part.clamp(min=0), part) for values, part in parts]
        self.rounded = (False, not signed and weight[0].numel() > _FEW)

    @cached_property
    def _positive(self) -> Tensor:
        return _total([self.node(values, weight=up, bias=False) for values, up, _ in self.parts])

    @cached_property
    def _negative(self) -> Tensor:
        if self.rounded[1]:
            return torch.sub(self.linear, self._positive, alpha=self._less).clamp_(max=0)
        return _total([self.node(values, weight=part.clamp(max=0), bias=False) for values, _, part in self.parts])

    def back(self, up: Tensor, down: Tensor | None = None) -> tuple[Tensor, ...]:
        given = []
        for values, weight, part in self.parts:
            (slope,) = self.node.vjp(up, weight=weight)
            if down is not None:
                slope = slope.add_(self.node.vjp(down, weight=part.clamp(max=0))[0])
            given.append(slope.mul_(values))
        return (_total(given),)


class _ByMagnitude(_Weighted):
    """Many signed inputs, by the op at the magnitudes of inputs and weights."""

    rounded = (True, True)

    def __init__(self, node: Node, weight: Tensor, *, bias: bool) -> None:
        super().__init__(node, weight, bias=bias)
        (self.inputs,) = node.inputs
        self.magnitude, self.size = self.inputs.abs(), weight.abs()

    @cached_property
    def _positive(self) -> Tensor:
        both = self.node(self.magnitude, weight=self.size, bias=False)
        return torch.add(self.linear, both, alpha=self._less, out=both).mul_(0.5).clamp_(min=0)

    @cached_property
    def _negative(self) -> Tensor:
        return (self.linear - self._positive).clamp_(max=0)

    def back(self, up: Tensor, down: Tensor | None = None) -> tuple[Tensor, ...]:
        same, apart = (up, up) if down is None else (up + down, up - down)
        (first,), (second,) = self.node.vjp(same), self.node.vjp(apart, weight=self.size)
        return (first.mul_(self.inputs).addcmul_(self.magnitude, second).mul_(0.5),)


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

    def back(self, up: Tensor, down: Tensor | None = None) -> tuple[Tensor, ...]:
        given = times(self.ups, self.node.vjp(up))
        if down is None:
            return given
        further = times(self.downs, self.node.vjp(down))
        return tuple(one + other for one, other in zip(given, further, strict=True))


def _total(parts: list[Tensor]) -> Tensor:
    first, *others = parts
    for other in others:
        first.add_(other)
    return first


def shares_of(node: Node, *, bias: bool = True) -> Shares:
    """The contributions of a node's inputs.

    Args:
        node: of the kind "weighted" or "sum".
        bias: whether a bias counts as a contribution, of its own sign.

    Raises:
        ParameterError: for another kind.
    """
    if node.weight is not None:
        both = signed(node)
        if both and node.weight[0].numel() > _FEW:
            return _ByMagnitude(node, node.weight, bias=bias)
        return _BySign(node, node.weight, bias=bias, signed=both)
    if node.kind == "sum":
        return _Summed(node, bias=bias)
    raise ParameterError(
        f"a rule for positive and negative contributions was given to '{node.op}', which is not linear; give it to "
        f"'conv', 'linear', 'weighted' or 'sum', and another, such as 'pass', to '{node.kind}'"
    )
