"""Activations, however a network writes them: as one op, as a bound at zero, or as a gate spelled out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pellucid import Check, Gradient, Ledger, Node, Rule, RuleSet

_GATES = frozenset({"sigmoid", "hardsigmoid", "tanh", "erf"})
_ELEMENTWISE = frozenset({"add", "sub", "rsub", "neg", "mul", "div", "pow", "clone"}) | _GATES
_DEEPEST = 8
"""How many ops a gate is spelled out in at most; GELU by tanh has six."""


@dataclass(frozen=True, eq=False)
class ActivationRules(RuleSet):
    """One rule for every activation, and the plain gradient for all else. Made by `by_activation`."""

    def rule_for(self, node: Node) -> Rule | None:
        """The table's rule; bounds and products are activations only where they are used as such."""
        rule = super().rule_for(node)
        if node.op in ("clamp", "clamp_min"):
            return rule if node.arguments[1] == 0 else Gradient()
        return rule if node.op != "mul" or gated(node) is not None else Gradient()


def by_activation(name: str, rule: Rule) -> ActivationRules:
    """The rule set that a rule for activations makes.

    The ops of the family "activation" are ReLU, ReLU6, leaky ReLU, ELU, GELU, SiLU, hard-swish, Mish, softplus and the
    like. max(x, 0) and x g(x), with g an elementwise function of x through a sigmoid, tanh or erf, are taken for one.
    """
    return ActivationRules(name, {**dict.fromkeys(("activation", "clamp", "mul"), rule), "*": Gradient()})


def gated(node: Node) -> tuple[Node, int] | None:
    """Whether a product multiplies a value by a function of itself: the node that takes the value in, and where.

    The value may be scaled before it is multiplied, as in 0.5 x (1 + erf(x / sqrt 2)); it is then taken in there.
    """
    if len(node.operands) != 2:
        return None
    for place in (0, 1):
        for holder, at in _scaled(node, place):
            roots, through = _roots(node, 1 - place, holder.operands[at], _DEEPEST)
            if through and roots == {holder.operands[at]}:
                return holder, at
    return None


def _scaled(node: Node, place: int) -> Iterator[tuple[Node, int]]:
    """The operand of a node, and what that is the multiple of."""
    yield node, place
    source = node.sources[place]
    while source is not None and source.op in ("mul", "div") and len(source.operands) == 1:
        yield source, 0
        source = source.sources[0]


def _roots(node: Node, place: int, stop: int, depth: int) -> tuple[set[int], bool]:
    """What an operand is an elementwise function of, looking no further than `stop`; and whether by way of a gate."""
    slot, source = node.operands[place], node.sources[place]
    if slot == stop or source is None or depth == 0 or source.op not in _ELEMENTWISE:
        return {slot}, False
    found: set[int] = set()
    through = source.op in _GATES
    for inner in range(len(source.operands)):
        roots, also = _roots(source, inner, stop, depth - 1)
        found, through = found | roots, through or also
    return found, through


def activations_met(ledger: Ledger, rule: type[Rule]) -> Check:
    """Certifies that there was an activation for a rule to act on."""
    met = sum(entry.rule == rule.__name__ for entry in ledger.entries)
    note = f"{met} activations met" if met else "no activation like ReLU was met, so that this is the plain gradient"
    return Check.bound("equals_plain_gradient", float(met == 0), 0.5, note)
