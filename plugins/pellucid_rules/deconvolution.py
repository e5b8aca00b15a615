"""Deconvolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pellucid import Attribution, Explainer, Look, Node, Passes, Rule, Sample
from pellucid_rules.activations import activations_met, by_activation, gated


@dataclass(frozen=True)
class UnReLU(Rule):
    """Lets through only what is positive, whatever the activation did on the way forward."""

    needs: ClassVar[str] = ""

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None] | Mapping[Node, Sequence[Tensor | None]]:
        """No derivative; where a gate is spelled out, straight to the value that it gates."""
        holder, place = gated(node) or (node, 0)
        parts = [carried.clamp(min=0) if at == place else None for at in range(len(holder.operands))]
        return {node: [None] * len(node.operands), holder: parts}


UN_RELU = by_activation("deconvolution", UnReLU())


@dataclass(frozen=True, eq=False)
class Deconvolution(Explainer):
    """Projects a class, a unit or a whole layer's channel back to the input by a deconvnet.

    Convolutions are transposed, max pooling puts values back where its maxima were (the switches), and every ReLU and
    its like cuts off what is negative of what is carried back, whatever its sign on the way forward: neither mask nor
    derivative of the activation count. All other ops carry the gradient. `target=Unit("layer3", 7)` projects a channel,
    with a position a single unit, as in the paper; without one the class's logit is projected.

    Zeiler and Fergus, 2014, "Visualizing and understanding convolutional networks". The paper starts from the unit's
    activation, here from one, so that the scale is that of a gradient. Networks without max pooling have no switches,
    and their pictures depend little on the input (Springenberg et al., 2015).
    """

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One rule pass."""
        seen = yield Look(at=sample, gradients=["input"], rules=UN_RELU)
        assert seen.ledger is not None
        checks = (activations_met(seen.ledger, UnReLU), seen.ledger.check_ruled())
        return Attribution(seen.gradients["input"], over="input", reduce="norm", checks=checks)
