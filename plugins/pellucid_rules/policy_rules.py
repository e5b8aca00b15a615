"""The rules of layer-wise relevance propagation where there are no weights: activations, maxima, attention, gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pellucid import Node, Rule
from pellucid_rules.shares import Given, at_least_zero, divided, times


@dataclass(frozen=True)
class Pass(Rule):
    """Hands relevance on as it is: for ops of one input that act on each element alone, such as activations."""

    needs: ClassVar[str] = ""
    multiple_of = "carried"

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """Nothing to compute."""
        return (carried,)


@dataclass(frozen=True)
class Taylor(Rule):
    """Shares by the first-order terms about the inputs, x_i df_j/dx_i / f_j R_j: for the softmax, as in AttnLRP.

    Achtibat et al., 2024: x_i (R_i - softmax_i times the sum of R). What the expansion leaves over is not handed on, so
    that relevance is not conserved; the ledger says how much.
    """

    multiple_of = "inputs"

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One gradient."""
        # A masked score is minus infinity and its attention zero: nothing is handed to it.
        (inputs,), (slopes,) = node.inputs, node.vjp(divided(carried, node.output, 0.0))
        return (torch.where(slopes == 0, slopes, inputs * slopes),)


@dataclass(frozen=True)
class Hold(Rule):
    """Takes the op as a constant: its inputs get nothing."""

    needs: ClassVar[str] = ""
    multiple_of = "inputs"

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """Nothing to compute."""
        return (None,) * len(node.shapes)


@dataclass(frozen=True)
class Normalised(Rule):
    """Holds the standard deviation of a layer norm constant; the rest of it is linear, and shared by contribution.

    Ali et al., 2022, and AttnLRP (Achtibat et al., 2024), whose identity rule for the division it is.

    Attributes:
        stabilizer: in units of the outputs.
        bias: whether the bias counts as a contribution, and keeps its share.
    """

    stabilizer: float = 1e-6
    bias: bool = True

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One gradient, and what it takes off for the deviation given back."""
        (inputs,), (output, mean, scale) = node.inputs, node.outputs
        over = [axis for axis, size in enumerate(mean.shape) if size == 1]
        centre = node(inputs.new_zeros([size if axis in over else 1 for axis, size in enumerate(inputs.shape)]))
        linear = output - centre
        each = divided(carried, output if self.bias else linear, self.stabilizer)
        (slopes,) = node.vjp(each)
        along = (each * linear).mean(over, keepdim=True) * scale**2
        return (inputs * (slopes + (inputs - mean) * along),)


@dataclass(frozen=True)
class Uniform(Rule):
    """Shares a product equally between its two factors; a scale gets nothing.

    AttnLRP's uniform rule. A scale is a factor that is broadcast along an axis of the product (the gate of a
    squeeze-and-excitation block, one over a standard deviation), or that comes from one of the ops in `constants`: it
    says how much of the other passes, which gets all.

    Attributes:
        constants: ops whose results are scales as well, such as "softmax": then attention weights are held constant
            (Ali et al., 2022).
        stabilizer: in units of the outputs.
    """

    constants: tuple[str, ...] = ()
    stabilizer: float = 1e-6

    multiple_of = "inputs"

    def __post_init__(self) -> None:
        at_least_zero(self, "stabilizer")

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One gradient by each factor."""
        values, output = node.inputs, node.output
        scales = [
            _origin(source) in self.constants or (node.op == "mul" and value.numel() < output.numel())
            for value, source in zip(values, node.sources, strict=True)
        ]
        if all(scales):
            scales = [False] * len(scales)
        slopes = node.vjp(divided(carried / scales.count(False), output, self.stabilizer))
        parts = times(values, slopes)
        return tuple(None if scale else part for scale, part in zip(scales, parts, strict=True))


def _origin(source: Node | None) -> str:
    """The op that made a value, before it was moved about; "" where that is the model's input."""
    while source is not None and source.kind == "move":
        source = source.sources[0]
    return "" if source is None else source.op
