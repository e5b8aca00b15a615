"""Composites: which rule of layer-wise relevance propagation goes where, under the names of the literature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pellucid import Gradient, ParameterError, Rule, RuleSet, nearest
from pellucid_rules.lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, SameSign, WSquare, ZBox, ZPlus
from pellucid_rules.policy_rules import Hold, Normalised, Pass, Taylor, Uniform

Attention: TypeAlias = Literal["taylor", "constant"]

RULES: dict[str, type[Rule]] = {
    "epsilon": Epsilon,
    "gamma": Gamma,
    "alpha_beta": AlphaBeta,
    "z_plus": ZPlus,
    "same_sign": SameSign,
    "w_square": WSquare,
    "flat": Flat,
    "z_box": ZBox,
    "pass": Pass,
    "gradient": Gradient,
    "hold": Hold,
    "taylor": Taylor,
    "normalised": Normalised,
    "uniform": Uniform,
}
"""The rules by the names that a table may use in place of instances."""


def policy(stabilizer: float, attention: Attention) -> dict[str, Rule]:
    """What every composite does beside convolutions and dense layers.

    Activations and other elementwise functions of one input pass relevance on; sums, means, average pooling and
    BatchNorms that could not be folded share it by contribution; a maximum hands it to the winner; a product to both
    factors alike, or past a scale; a layer norm takes its standard deviation for a constant. Attention weights get
    their half by the Taylor rule (AttnLRP) or are held constant (Ali et al., 2022), which conserves relevance.
    """
    held = ("softmax",) if attention == "constant" else ()
    return {
        "weighted": Epsilon(stabilizer),
        "sum": Epsilon(stabilizer),
        "pointwise": Pass(),
        "max": Gradient(),  # all goes to the winner
        "product": Uniform(held, stabilizer),
        "softmax": Hold() if held else Taylor(),
        "layer_norm": Normalised(stabilizer),
    }


Make: TypeAlias = Callable[[float, Rule], dict[str, Rule]]

COMPOSITES: dict[str, Make] = {
    "lrp_0": lambda s, box: {"sum": Epsilon(0), "weighted": Epsilon(0)},
    "epsilon": lambda s, box: {},
    "z_plus": lambda s, box: {"conv": ZPlus(s), "linear": ZPlus(s)},
    "epsilon_plus": lambda s, box: {"conv": ZPlus(s), "linear": Epsilon(s)},
    "epsilon_plus_flat": lambda s, box: {"conv": ZPlus(s), "linear": Epsilon(s), "first": Flat(s)},
    "epsilon_gamma_box": lambda s, box: {"conv": Gamma(0.25, s), "linear": Epsilon(s), "first": box},
    "epsilon_alpha2_beta1": lambda s, box: {"conv": AlphaBeta(2, 1, s), "linear": Epsilon(s)},
    "epsilon_alpha2_beta1_flat": lambda s, box: {"conv": AlphaBeta(2, 1, s), "linear": Epsilon(s), "first": Flat(s)},
    "preset_a": lambda s, box: {"conv": AlphaBeta(1, 0, s), "linear": Epsilon(0.1)},
    "preset_a_flat": lambda s, box: {"conv": AlphaBeta(1, 0, s), "linear": Epsilon(0.1), "first": Flat(s)},
    "preset_b": lambda s, box: {"conv": AlphaBeta(2, 1, s), "linear": Epsilon(0.1)},
    "preset_b_flat": lambda s, box: {"conv": AlphaBeta(2, 1, s), "linear": Epsilon(0.1), "first": Flat(s)},
    "attn_lrp": lambda s, box: {"conv": Gamma(0.25, s), "linear": Gamma(0.05, s)},
}
"""The composites by name: what each makes of a stabilizer and the rule for bounded inputs.

`epsilon_*` as in zennit (Anders et al., 2021), presets A and B as in iNNvestigate (Alber et al., 2019), the gammas of
`attn_lrp` from the grid that its authors search for vision transformers.
"""


def rule_set(
    composite: str | Mapping[str, Any] | RuleSet,
    *,
    canonizers: Sequence[str] = (),
    stabilizer: float = 1e-6,
    attention: Attention = "taylor",
    box: Rule | None = None,
) -> RuleSet:
    """The rule set of a composite.

    Args:
        composite: a name of `COMPOSITES`; a table of rules over the common policy, keyed by op, family, kind,
            `"first"`, `"last"` or `"layer:NAME"`, whose rules are instances, names, or names with parameters
            (`{"conv": {"gamma": {"gamma": 0.25}}}`); or a finished rule set, which stays as it is.
        canonizers: what is rewritten first, as for `RuleSet`.
        stabilizer: moves denominators away from zero.
        attention: the policy for attention weights.
        box: the rule for bounded inputs.

    Raises:
        ParameterError: for an unknown composite, rule or op, or a rule set that carries no relevance.
    """
    if isinstance(composite, RuleSet):
        if composite.carries != "relevance":
            raise ParameterError(f"rule set '{composite.name}' carries {composite.carries!r}; expected 'relevance'")
        return composite
    if isinstance(composite, Mapping):
        name = "table"
        table = {key: rule_of(rule, f"composite[{key!r}]") for key, rule in composite.items()}
    elif composite in COMPOSITES:
        name, table = composite, COMPOSITES[composite](stabilizer, box or ZBox(stabilizer=stabilizer))
    else:
        raise ParameterError(
            f"composite {composite!r} is unknown.{nearest(str(composite), COMPOSITES)} There are "
            f"{', '.join(COMPOSITES)}; or give a table such as {{'conv': 'z_plus', 'linear': 'epsilon'}}"
        )
    return relevance_rules(name, policy(stabilizer, attention) | table, canonizers)


def relevance_rules(name: str, table: Mapping[str, Rule], canonizers: Sequence[str]) -> RuleSet:
    """A rule set that carries relevance; the same object for equal rules, so that a model is made ready for it once."""
    return _made(name, tuple(table.items()), tuple(canonizers))


@functools.lru_cache(maxsize=64)
def _made(name: str, table: tuple[tuple[str, Rule], ...], canonizers: tuple[str, ...]) -> RuleSet:
    return RuleSet(name, dict(table), carries="relevance", canonizers=canonizers)


def rule_of(given: Any, where: str) -> Rule:
    """A rule from an instance, a name, or a name with parameters.

    Raises:
        ParameterError: when it is none of these; the message lists the rules.
    """
    if isinstance(given, Rule):
        return given
    name: Any = given
    parameters: Any = {}
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, parameters),) = given.items()
    if not isinstance(name, str) or name not in RULES or not isinstance(parameters, Mapping):
        hint = nearest(name, RULES) if isinstance(name, str) else ""
        raise ParameterError(f"{where} is {given!r}, which is no rule.{hint} The rules are {', '.join(RULES)}")
    try:
        return RULES[name](**parameters)
    except TypeError as error:
        raise ParameterError(f"{where}: {error}") from None
