"""The rules of DeepLIFT: what a difference from the reference contributes to the difference of the score.

What is carried is a multiplier m: a value v contributes (v - v') m, with v' its value at the reference. A rule keeps
the sum over an op's inputs equal to that over its output, so that the whole is complete. Linear ops keep it by their
gradient; ops that no rule here is for are expanded into those that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pellucid import Gradient, Node, Rule, RuleSet

_SIGNS = ((0, None), (None, 0))

ROUNDING = 4.0
"""In units of the last place: how far a quotient of differences may be off for rounding alone."""


def ends(node: Node) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """An op's inputs, and the same at the reference."""
    assert node.reference_inputs is not None
    return node.inputs, node.reference_inputs


@dataclass(frozen=True)
class Rescale(Rule):
    """The slope of the secant: m (f(x) - f(x')) / (x - x').

    Where the quotient's rounding hides the difference between the two, the derivative half-way takes its place: it
    changes the sum by no more than rounding, and is exact where x = x'.
    """

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None]:
        """One gradient of the op, at the middles."""
        (here,), (there,) = ends(node)
        rise = node.output - node.reference_output
        size = torch.maximum(node.output.abs(), node.reference_output.abs())
        return (carried * secant(node, here, there, rise, size),)


def secant(node: Node, here: Tensor, there: Tensor, rise: Tensor, size: Tensor) -> Tensor:
    """The slope `rise` / (here - there) of an elementwise op between two points.

    Args:
        node: the op.
        here: one end.
        there: the other.
        rise: the difference of the op's values at them.
        size: how large the values were of which that is the difference.
    """
    run = here - there
    middle = torch.lerp(there, here, 0.5)
    (slope,) = node.vjp(torch.ones_like(middle), middle)
    quotient = rise / run
    far = torch.maximum(here.abs(), there.abs())
    doubt = ROUNDING * torch.finfo(run.dtype).eps * (size + slope.abs() * far) / run.abs()
    return torch.where((quotient - slope).abs() <= doubt, slope, quotient).where(run != 0, slope)


@dataclass(frozen=True)
class Midpoint(Rule):
    """A product's factors share by the middles: a b - a' b' = (a - a') (b + b') / 2 + (b - b') (a + a') / 2."""

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None]:
        """One gradient of the op, at the middles."""
        pairs = zip(*ends(node), strict=True)
        return node.vjp(carried, *(torch.lerp(there, here, 0.5) for here, there in pairs))


@dataclass(frozen=True)
class RevealCancel(Rule):
    """Positive and negative contributions to an activation's input have multipliers of their own.

    With x - x' = p + n, the sums of the positive and of the negative terms that the linear op before it adds up, p
    raises f by the mean of what it does alone and after n, and n likewise:

        m+ = m (f(x' + p) - f(x') + f(x) - f(x' + n)) / 2p
        m- = m (f(x' + n) - f(x') + f(x) - f(x' + p)) / 2n

    These are the Shapley values of two players, so that terms which cancel are seen. (m+ + m-) / 2 is handed to x and
    goes through the linear op by its gradient; the other half, +-(m+ - m-) / 2 by each term's sign, goes to that op's
    inputs directly. Behind anything but a weighted op or a sum of values there is one term, and this is `Rescale`; also
    behind a part of one that was split, such as the gates of an LSTM.
    """

    needs: ClassVar[str] = "ios"

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None] | Mapping[Node, Sequence[Tensor | None]]:
        """Two further passes through the linear op, two gradients of it, and four values of the activation."""
        (here,), (there,) = ends(node)
        source = node.sources[0]
        terms = None if source is None else _Terms.of(source)
        if source is None or terms is None:
            return Rescale()(node, carried)
        up, down = there + terms.positive, there + terms.negative
        low, high = node.reference_output, node.output
        at_up, at_down = node(up), node(down)

        size = torch.stack([value.abs() for value in (low, high, at_up, at_down)]).amax(dim=0)
        more = secant(node, up, there, at_up - low, size) + secant(node, here, down, high - at_down, size)
        less = secant(node, down, there, at_down - low, size) + secant(node, here, up, high - at_up, size)
        both, apart = carried * (more + less) / 4, carried * (more - less) / 4
        return {node: (both,), terms.source: terms.back(apart)}


@dataclass(frozen=True, eq=False)
class _Terms:
    """The sums of the positive and of the negative terms that a linear op adds up to the change of its output.

    Attributes:
        source: the op that adds up.
        positive: of the shape of the value that was asked about.
        negative: the same, at most zero.
        back: takes what each unit of positive term is handed, less where it is negative, and gives it to the terms.
    """

    source: Node
    positive: Tensor
    negative: Tensor
    back: Callable[[Tensor], Sequence[Tensor | None]]

    @classmethod
    def of(cls, source: Node) -> _Terms | None:
        """The terms of an op, or of the one that it moves the values of; None where there is but one."""
        # Of several results it is not known which is meant.
        single = len(source.inputs) == len(source.outputs) == 1
        if source.kind == "move" and single and source.sources[0] is not None:
            inner = cls.of(source.sources[0])
            if inner is None:
                return None
            up, down = source(inner.positive), source(inner.negative)
            return cls(inner.source, up, down, lambda apart: inner.back(source.vjp(apart)[0]))
        changes = [here - there for here, there in zip(*ends(source), strict=True)]
        if source.kind == "weighted" and source.weight is not None:
            (change,), weight = changes, source.weight.abs()
            rise, size = source.output - source.reference_output, source(change.abs(), weight=weight, bias=False)

            def back(apart: Tensor) -> Sequence[Tensor | None]:
                return (change.sign() * source.vjp(apart, weight=weight)[0],)

            return cls(source, (size + rise) / 2, (rise - size) / 2, back)
        if source.op in ("add", "sub") and len(changes) > 1:
            still = [torch.zeros_like(change) for change in changes]
            terms = [source(*still[:at], change, *still[at + 1 :]) for at, change in enumerate(changes)]

            def share(apart: Tensor) -> Sequence[Tensor | None]:
                return [source.vjp(apart * term.sign())[at] for at, term in enumerate(terms)]

            up, down = (torch.stack([term.clamp(*bounds) for term in terms]).sum(dim=0) for bounds in _SIGNS)
            return cls(source, up, down, share)
        return None


_LINEAR = {"weighted": Gradient(), "sum": Gradient(), "product": Midpoint(), "pointwise": Rescale()}
_REVEALING = dict.fromkeys(("activation", "sigmoid", "tanh"), RevealCancel())

DEEPLIFT = {
    # Reciprocals and roots are not defined at every partial sum, and so are rescaled under both.
    "rescale": RuleSet("deeplift, rescale", _LINEAR, needs_reference=True),
    "reveal_cancel": RuleSet(
        "deeplift, reveal-cancel", {**_LINEAR, **_REVEALING}, needs_reference=True, canonizers=("batch_norm",)
    ),
}
"""The rule sets by the names of their rule for activations."""
