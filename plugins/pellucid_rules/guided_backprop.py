"""Guided backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pellucid import Attribution, Explainer, Look, Node, Passes, Rule, Sample
from pellucid_rules.activations import activations_met, by_activation


@dataclass(frozen=True)
class Guided(Rule):
    """Lets through only what is positive, times the activation's own derivative.

    For a product with a gate both factors get theirs, which together is the derivative.
    """

    needs: ClassVar[str] = ""

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None]:
        """One gradient of the op."""
        return node.vjp(carried.clamp(min=0))


GUIDED = by_activation("guided backprop", Guided())


@dataclass(frozen=True, eq=False)
class GuidedBackprop(Explainer):
    """The gradient with its negative part cut off at every activation.

    At each ReLU and its like (ReLU6, leaky ReLU, ELU, GELU, SiLU, hard-swish, Mish, softplus; also spelled out) what is
    carried back becomes max(0, carried) times the activation's derivative. For ReLU that keeps what passes both
    the ReLU's own mask and the deconvnet's. All other ops, attention and squeeze-and-excitation among them, carry the
    plain gradient.

    Springenberg et al., 2015, "Striving for simplicity: the all convolutional net", for ReLU networks. The pictures are
    sharp because the method recovers edges of the input, and depend little on the class (Adebayo et al., 2018; Nie et
    al., 2018): do not read them as evidence for a class.
    """

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One rule pass."""
        seen = yield Look(at=sample, gradients=["input"], rules=GUIDED)
        assert seen.ledger is not None
        checks = (activations_met(seen.ledger, Guided), seen.ledger.check_ruled())
        return Attribution(seen.gradients["input"], over="input", reduce="norm", checks=checks)
