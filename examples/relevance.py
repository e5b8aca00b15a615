"""Relevance, carried back by rules: composites, checks, attention, baselines and patterns."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

import pellucid
from pellucid import Attribution, Explainer, Look, Passes, Sample


def by_composites(model: nn.Module, images: Tensor) -> dict[str, Attribution]:
    """Explains images by a composite of the literature, and by a table of rules of one's own."""
    return pellucid.explain(
        model,
        images,
        {
            "of the literature": pellucid.create("lrp", composite="epsilon_gamma_box", low=0.0, high=1.0),
            "of one's own": pellucid.create(
                "lrp", composite={"conv": {"gamma": {"gamma": 0.1}}, "linear": "epsilon", "first": "flat"}
            ),
        },
    )


def accounts(model: nn.Module, images: Tensor) -> Iterator[str]:
    """Says what became of the score: what arrived, what stayed on the way, and what had no rule."""
    result = pellucid.explain(model, images, "lrp")
    for check in result.checks:
        yield f"{check.name}: {check.value} {check.note}"


@dataclass(frozen=True, eq=False)
class Audited(Explainer):
    """LRP that tells of the three ops at which most relevance is lost or made."""

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One rule pass, with its ledger."""
        rules = pellucid.create("lrp", composite="epsilon_plus").rules(sample)
        seen = yield Look(at=sample, gradients=["input"], rules=rules)
        for entry in seen.ledger.worst(3):
            print(f"{entry.where} by {entry.rule}: {entry.taken:.3g} came, {entry.given:.3g} went on")
        return Attribution(seen.gradients["input"], over="input", checks=(seen.ledger.check_ruled(),))


def both_policies(model: nn.Module, inputs: Tensor) -> dict[str, Attribution]:
    """Explains a transformer with attention that is a decision of its own, and with attention that is given."""
    policies = {policy: pellucid.create("lrp", attention=policy) for policy in ("taylor", "constant")}
    return pellucid.explain(model, inputs, policies)


def against_baselines(model: nn.Module, images: Tensor, others: Tensor) -> dict[str, Attribution]:
    """Shares out the score's rise from one image, and from the mean over several."""
    return pellucid.explain(
        model,
        images,
        [
            pellucid.create("deeplift", rule="reveal_cancel", baselines="blur"),
            pellucid.create("deep_shap", baselines=others),
        ],
    )


def along_patterns(model: nn.Module, images: Tensor, data: Tensor) -> dict[str, Attribution]:
    """Shows the signal that the score responds to, and shares the score out over it; patterns are fitted on data."""
    techniques = [pellucid.create(name, data=data) for name in ("pattern_net", "pattern_attribution")]
    return pellucid.explain(model, images, techniques)
