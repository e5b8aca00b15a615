"""The rules of layer-wise relevance propagation: how an op's relevance is shared out among its inputs.

z_ij is what input i contributes to output j, z_j their sum with the bias, R_j the output's relevance. Each rule says
R_i. A stabilizer moves a denominator away from zero, by its own sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Node, ParameterError, Rule
from pellucid_rules.shares import (
    Given,
    at_least_zero,
    divided,
    opposed_shares,
    over,
    positive_shares,
    representable,
    shares_of,
    signed,
    times,
)


@dataclass(frozen=True)
class Epsilon(Rule):
    """Shares by contribution: R_i = sum over j of z_ij / (z_j + epsilon sign z_j) R_j.

    Bach et al., 2015; LRP-0 for `epsilon=0`. A large epsilon absorbs the relevance of weak outputs, and so removes
    noise. The bias counts as a contribution and keeps its share.

    Attributes:
        epsilon: the stabilizer, in units of the outputs.
    """

    epsilon: float = 1e-6

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "epsilon")

    def needs_at(self, node: Node) -> str:
        """Not the output of a sum in front of a ReLU: it is added up anew, in place of memory for both."""
        return "i" if node.rectified and node.op == "add" and self.epsilon else "io"

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """Two multiplications around the gradient."""
        if node.rectified and self.epsilon:
            total = node(*node.inputs).clamp_(min=0) if node.op == "add" else node.output.clamp(min=0)
            total.add_(representable(self.epsilon, total.dtype))
            return times(node.inputs, node.vjp(torch.div(carried, total, out=total)))
        return times(node.inputs, node.vjp(divided(carried, node.output, self.epsilon)))


@dataclass(frozen=True)
class Gamma(Rule):
    """Prefers what pulls the way the output went: contributions of its sign weigh 1 + gamma, the others 1.

    The generalised rule (Andéol et al., 2021); for inputs that are not negative and positive outputs it is that of
    Montavon et al., 2019: the weights w + gamma max(w, 0). 0 is `Epsilon`, infinity `ZPlus`.

    Attributes:
        gamma: the further weight.
        stabilizer: in units of the outputs.
    """

    gamma: float = 0.25
    stabilizer: float = 1e-6

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "gamma", "stabilizer")

    def needs_at(self, node: Node) -> str:
        """The output only where its sign is not known."""
        return "i" if node.rectified and node.kind == "weighted" and all(node.nonnegative) else "io"

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One further pass through the op, and one or two gradients."""
        gamma, weight = self.gamma, node.weight
        if weight is None:
            return self._of_sum(node, carried)
        if node.rectified and (given := positive_shares(node, carried, 1 / (1 + gamma), self.stabilizer / (1 + gamma))):
            return given
        # Over 1 + gamma / 2, contributions weigh z + part |z| by the sign of the output.
        (inputs,), bias, output = node.inputs, node.bias, node.output
        part, both, magnitude = gamma / (2 + gamma), signed(node), weight.abs()
        size = inputs.abs() if both else inputs
        sizes = node(size, weight=magnitude, bias=False if bias is None else bias.abs())
        stabilizer = representable(2 * self.stabilizer / (2 + gamma), sizes.dtype)
        each = over(carried, sizes.mul_(part).add_(output.abs().add_(stabilizer)), self.stabilizer)
        (first,), (second,) = node.vjp(output.sign().mul_(each)), node.vjp(each, weight=magnitude)
        if both:
            return (first.mul_(inputs).addcmul_(size, second, value=part),)
        return (first.add_(second, alpha=part).mul_(inputs),)

    def _of_sum(self, node: Node, carried: Tensor) -> Given:
        shares, gamma = shares_of(node), self.gamma
        up = shares.total > 0
        weighed = shares.total + gamma * torch.where(up, shares.positive, shares.negative)
        each = divided(carried, weighed, self.stabilizer)
        more = (1 + gamma) * each
        return shares.back(torch.where(up, more, each), torch.where(up, each, more))


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """Shares by sign: R_i = sum over j of (alpha z_ij+ / z_j+ - beta z_ij- / z_j-) R_j, with alpha - beta = 1.

    Bach et al., 2015. z_j+ and z_j- are the sums of the positive and of the negative contributions, each with the bias
    where it has its sign.

    Attributes:
        alpha: for the positive contributions.
        beta: for the negative ones.
        stabilizer: in units of the outputs.
        bias: whether the bias counts as a contribution; without it all relevance is handed on.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6
    bias: bool = True

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "alpha", "beta", "stabilizer")
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise ParameterError(
                f"AlphaBeta(alpha={self.alpha:g}, beta={self.beta:g}): alpha - beta is {self.alpha - self.beta:g}; "
                f"expected 1, so that relevance is conserved: alpha={self.beta + 1:g}, or beta={self.alpha - 1:g}"
            )

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One further pass through the op, and one gradient for each sign."""
        given = None
        if node.weight is not None:
            if self.beta:
                given = opposed_shares(node, carried, self.alpha, self.beta, self.stabilizer, bias=self.bias)
            elif (node.rectified and (self.bias or node.bias is None)) or not signed(node):
                given = positive_shares(node, carried, 0.0, self.stabilizer, bias=self.bias)
        if given is not None:
            return given
        shares = shares_of(node, bias=self.bias)
        up = shares.over_positive(self.alpha * carried, self.stabilizer)
        return shares.back(up, shares.over_negative(-self.beta * carried, self.stabilizer) if self.beta else None)


@dataclass(frozen=True)
class ZPlus(Rule):
    """Shares by positive contribution alone: R_i = sum over j of z_ij+ / z_j+ R_j.

    Montavon et al., 2017, for inputs that are not negative, the weights max(w, 0); for signed inputs all positive
    contributions count, as in alpha1-beta0, which it equals behind ReLUs. Behind other activations an output may have
    relevance and no positive contribution; it hands it to the negative ones in proportion, in place of losing it.

    Attributes:
        stabilizer: in units of the outputs.
        bias: whether a positive bias counts as a contribution; without it all relevance is handed on, as in the paper.
    """

    stabilizer: float = 1e-6
    bias: bool = True

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")

    def needs_at(self, node: Node) -> str:
        """The output only where there may be one without a positive contribution."""
        return "i" if self.bias and node.rectified and node.kind == "weighted" and all(node.nonnegative) else "io"

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One further pass through the op."""
        if node.weight is not None:
            # A positive output has a positive contribution.
            sure = node.rectified and (self.bias or node.bias is None)
            if sure or not signed(node):
                given = positive_shares(node, carried, 0.0, self.stabilizer, bias=self.bias, sure=sure)
                if given is not None:
                    return given
        shares = shares_of(node, bias=self.bias)
        up = shares.over_positive(carried, self.stabilizer)
        if shares.pulled_up:
            return shares.back(up)
        stranded = (shares.positive == 0) & (carried != 0)
        if not bool(stranded.any()):
            return shares.back(up)
        down = shares.over_negative(carried.where(stranded, torch.zeros_like(carried)), self.stabilizer)
        return shares.back(up.masked_fill_(stranded, 0.0), down)


@dataclass(frozen=True)
class SameSign(Rule):
    """Shares by the contributions that have the output's sign, which is `Gamma` for an infinite gamma.

    For sums of signed branches (residuals), where `Epsilon` hands more than all to one branch and less than nothing to
    the other: here what was positive stays so. Of a sum of values that are not negative, it is `ZPlus` and `Epsilon`.

    Attributes:
        stabilizer: in units of the outputs.
        bias: whether constants count as contributions.
    """

    stabilizer: float = 1e-6
    bias: bool = False

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """Two further passes through the op for a sum; one for a weighted op."""
        shares = shares_of(node, bias=self.bias)
        up, zero = shares.total > 0, torch.zeros_like(carried)
        return shares.back(
            shares.over_positive(torch.where(up, carried, zero), self.stabilizer),
            shares.over_negative(torch.where(up, zero, carried), self.stabilizer),
        )


@dataclass(frozen=True)
class WSquare(Rule):
    """Shares by the squared weights, whatever the inputs: R_i = sum over j of w_ij^2 / sum over i of w_ij^2 R_j.

    For a first layer with inputs of any size (Montavon et al., 2017).

    Attributes:
        stabilizer: in units of the squared weights.
        bias: whether the squared bias counts, and keeps its share.
    """

    stabilizer: float = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One further pass through the op."""
        weight = _weight(self, node) ** 2
        bias = node.bias**2 if self.bias and node.bias is not None else False
        return _whatever_the_inputs(node, carried, weight, bias, self.stabilizer)


@dataclass(frozen=True)
class Flat(Rule):
    """Shares evenly among all inputs that an output sees: R_i = sum over j of 1 / n_j R_j.

    For a first layer, where it shows regions in place of pixels (Lapuschkin et al., 2019).

    Attributes:
        stabilizer: in units of the number of inputs.
    """

    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One further pass through the op."""
        return _whatever_the_inputs(node, carried, torch.ones_like(_weight(self, node)), False, self.stabilizer)


@dataclass(frozen=True)
class ZBox(Rule):
    """Shares by how far an input could have pulled from the far end of its range [low, high].

    R_i = sum over j of (x_i w_ij - low w_ij+ - high w_ij-) / sum over i of the same R_j, for a first layer with
    bounded inputs (Montavon et al., 2017). With bounds at zero it is LRP-0 without the bias.

    Attributes:
        low: the least value that an input can have: a number, one for each channel, or a tensor that broadcasts to an
            input; None is each example's own least.
        high: the greatest value, likewise.
        stabilizer: in units of the outputs.
    """

    low: Any = None
    high: Any = None
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and not isinstance(bound, (int, float, tuple, Tensor)):
                object.__setattr__(self, name, torch.as_tensor(bound))

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """Two further passes through the op, of one row where all have the same bounds, and two gradients."""
        weight, (inputs,) = _weight(self, node), node.inputs
        low, high = (self._bound(name, inputs) for name in ("low", "high"))
        # Bounds that all rows share need one; the bias is in both of what is compared.
        rows = 1 if node.op == "convolution" and low.stride(0) == high.stride(0) == 0 else len(inputs)
        ends = [torch.empty_like(inputs[:rows]).copy_(bound[:rows]) for bound in (low, high)]
        parts = [weight.clamp(min=0), weight.clamp(max=0)]
        if node.op == "convolution" and not node.arguments[6] and node.arguments[8] == 1:
            # Both at once, as channels of one input.
            both, by = torch.cat(ends, 1), torch.cat(parts, 1)
            total = node.output - node(both, weight=by)
            (slopes,) = node.vjp(divided(carried, total, self.stabilizer), torch.cat([inputs, inputs], 1), weight=by)
            above, below = slopes.chunk(2, 1)
        else:
            total = node.output - node(ends[0], weight=parts[0]).add_(node(ends[1], weight=parts[1], bias=False))
            each = divided(carried, total, self.stabilizer)
            (above,), (below,) = (node.vjp(each, weight=part) for part in parts)
        return (((inputs - low) * above).addcmul_(inputs - high, below),)

    def _bound(self, name: str, inputs: Tensor) -> Tensor:
        given = getattr(self, name)
        if given is None:
            axes = tuple(range(1, inputs.dim()))
            return (inputs.amin(axes, keepdim=True) if name == "low" else inputs.amax(axes, keepdim=True)).expand_as(
                inputs
            )
        bound = torch.as_tensor(given, dtype=inputs.dtype, device=inputs.device)
        if bound.dim() == 1 and inputs.dim() > 2:
            bound = bound.reshape(-1, *(1,) * (inputs.dim() - 2))
        try:
            return bound.expand(inputs.shape)
        except RuntimeError:
            raise ParameterError(
                f"`{name}` of the z-box has shape {tuple(torch.as_tensor(given).shape)}, which does not broadcast to "
                f"an input's {tuple(inputs.shape[1:])}; give a number, one for each channel, or a tensor of that shape"
            ) from None


def _weight(rule: Rule, node: Node) -> Tensor:
    if node.weight is None:
        raise ParameterError(
            f"{type(rule).__name__} was given to '{node.op}', which has no weights; give it to 'first', 'conv', "
            "'linear' or 'weighted'"
        )
    weight: Tensor = node.weight
    return weight


def _whatever_the_inputs(
    node: Node, carried: Tensor, weight: Tensor, bias: Tensor | bool, stabilizer: float
) -> tuple[Tensor]:
    (inputs,) = node.inputs
    total = node(torch.ones_like(inputs), weight=weight, bias=bias)
    (given,) = node.vjp(divided(carried, total, stabilizer), weight=weight)
    return (given,)
