"""Layer-wise relevance propagation."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge

from pellucid import (
    Attribution,
    Check,
    Explainer,
    LayerError,
    Ledger,
    Look,
    ParameterError,
    Passes,
    RuleSet,
    Sample,
    nearest,
)
from pellucid_rules.composites import Attention, rule_set
from pellucid_rules.lrp_rules import ZBox
from pellucid_rules.policy_rules import Taylor

Canonizer = Literal["batch_norm"]


@dataclass(frozen=True, eq=False)
class LRP(Explainer):
    """Shares the score out from op to op, back to the input, each op by a rule.

    What an op has got it hands to its inputs by what these contributed. The rules run on the model's graph, so that
    functional, reused and in-place ops, residuals and attention are treated as what they are; ops without a rule are
    named in the checks, with where relevance is lost (biases keep their share) or made.

    Bach et al., 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
    propagation". The composites are those of zennit and iNNvestigate; transformers follow AttnLRP (Achtibat et al.,
    2024). Unlike module hooks, which pass BatchNorm by, what could not be folded shares by contribution.

    Attributes:
        composite: `"lrp_0"`, `"epsilon"`, `"z_plus"`, `"epsilon_plus"`, `"epsilon_plus_flat"`, `"epsilon_gamma_box"`,
            `"epsilon_alpha2_beta1"`, `"epsilon_alpha2_beta1_flat"`, `"preset_a"`, `"preset_b"` (and either with
            `"_flat"`), `"attn_lrp"`; a table of rules such as `{"conv": Gamma(0.25), "first": "flat"}`, keyed by op,
            family, kind, `"first"`, `"last"` or `"layer:NAME"`; or a `RuleSet` that carries relevance.
        canonizers: `"batch_norm"` folds BatchNorms into the convolutions that alone feed them.
        stabilizer: moves denominators away from zero, in units of activations; `Epsilon`'s epsilon in the composites.
        attention: whether attention weights get half the relevance, and hand it on by the `"taylor"` rule of AttnLRP,
            so that what steers attention is seen, but the constant terms of its expansions keep a share (see the check
            "softmax share"); or are `"constant"`, which conserves all and shows only what was attended to (Ali et al.,
            2022).
        low: the least value of an input for a z-box: a number, one for each channel, or a tensor; `"auto"` is black
            under the model's normalisation where that is known, and else each example's own least value.
        high: the greatest value, likewise.
        layer: `"input"`, or a layer's name, or `"auto"`: where the relevance is shown, in the shape of its output.

    Raises:
        ParameterError: for an unknown composite, rule or op, or bounds that do not fit the inputs.
        LayerError: for a rule for a layer that the model does not have.
    """

    composite: str | Mapping[str, Any] | Any = "epsilon_plus"
    canonizers: tuple[Canonizer, ...] = ("batch_norm",)
    stabilizer: Annotated[float, Ge(0)] = 1e-6
    attention: Attention = "taylor"
    low: Any = "auto"
    high: Any = "auto"
    layer: str = "input"

    axioms: ClassVar[frozenset[str]] = frozenset({"conservation", "symmetry", "implementation_invariance"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rules()

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Each kind of rule."""
        return [
            cls(),
            cls(composite="lrp_0"),
            cls(composite="epsilon_gamma_box"),
            cls(composite="epsilon_alpha2_beta1_flat"),
            cls(composite={"conv": "z_plus", "first": "w_square"}, canonizers=()),
        ]

    def rules(self, sample: Sample | None = None) -> RuleSet:
        """The rule set, with the bounds of a sample's inputs where these are `"auto"`."""
        low, high = bounds(self.low, self.high, sample)
        return rule_set(
            self.composite,
            canonizers=self.canonizers,
            stabilizer=self.stabilizer,
            attention=self.attention,
            box=ZBox(low, high, self.stabilizer),
        )

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One forward pass, and one back by the rules."""
        rules = self.rules(sample)
        seen = yield Look(at=sample, gradients=[self.layer], rules=rules)
        assert seen.ledger is not None
        if self.layer == "input":
            _require_layers(rules, seen.ledger)
        return Attribution(seen.gradients[self.layer], over=self.layer, checks=relevance_checks(seen.ledger))


def _require_layers(rules: RuleSet, ledger: Ledger) -> None:
    layers = {entry.layer for entry in ledger.entries}
    for key in rules.table:
        if key.startswith("layer:") and not fnmatch.filter(layers, key.removeprefix("layer:")):
            hint = nearest(key.removeprefix("layer:"), layers)
            raise LayerError(f"composite: the rule for '{key}' met no op; no layer of that name ran any.{hint}")


def bounds(low: Any, high: Any, sample: Sample | None) -> tuple[Any, Any]:
    """The bounds of a z-box, `"auto"` resolved: black and white where the normalisation is known, else None.

    Raises:
        ParameterError: for another word, or a lower bound above the upper one.
    """
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, str) and bound != "auto":
            raise ParameterError(f"{name}={bound!r}: expected 'auto', a number, one for each channel, or a tensor")
    ends = [_end(end, sample) if isinstance(bound, str) else bound for end, bound in ((0.0, low), (1.0, high))]
    if all(end is not None for end in ends):
        least, greatest = (torch.as_tensor(end, dtype=torch.float64) for end in ends)
        alike = least.shape == greatest.shape or not (least.dim() and greatest.dim())
        if alike and bool((least > greatest).any()):
            raise ParameterError(f"low={low!r} is above high={high!r}; expected bounds that inputs lie between")
    return ends[0], ends[1]


def _end(value: float, sample: Sample | None) -> tuple[float, ...] | None:
    """A colour under the model's normalisation, for each channel."""
    if sample is None or sample.mean is None or sample.std is None:
        return None
    return tuple((value - mean) / std for mean, std in zip(sample.mean, sample.std, strict=True))


_ADDING = frozenset({"weighted", "sum", "norm"})
"""The kinds of op that have biases, or to which constants are added."""


def relevance_checks(ledger: Ledger) -> tuple[Check, ...]:
    """Where relevance stayed or came from, as shares of the score, and which ops had no rule."""
    whole = max(float(ledger.started.abs().sum()), torch.finfo(torch.float64).tiny)
    expanded = [entry for entry in ledger.entries if entry.rule == Taylor.__name__]
    kept = [entry for entry in ledger.entries if entry.kind in _ADDING]
    others = [entry for entry in ledger.entries if entry.kind not in _ADDING and entry not in expanded]

    def share(entries: list[Any], told: str) -> tuple[float, str]:
        worst = max(entries, key=lambda entry: entry.lost, default=None)
        where = "" if worst is None or worst.lost <= 1e-9 * whole else f"; most at {worst.where}"
        return sum(entry.taken - entry.given for entry in entries) / whole, f"{told}, as a share of the score{where}"

    lost, told = share(others, "lost or made by rules")
    checks = [Check.bound("conservation", abs(lost), 0.01, told)]
    checks.append(Check.info("bias share", *share(kept, "kept by biases, constants and stabilizers")))
    if expanded:
        constants = share(expanded, "kept by the constant terms of softmax expansions (attention='constant' has none)")
        checks.append(Check.info("softmax share", *constants))
    return (*checks, ledger.check_ruled("ruled"))
