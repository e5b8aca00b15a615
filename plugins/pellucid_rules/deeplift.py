"""DeepLIFT, from one baseline and from a distribution of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from pellucid import (
    Attribution,
    Check,
    Explainer,
    InputError,
    Leaves,
    Look,
    Part,
    Passes,
    Sample,
    Seen,
    Sum,
)
from pellucid_rules.deeplift_rules import DEEPLIFT

ActivationRule: TypeAlias = Literal["rescale", "reveal_cancel"]

TOLERANCE = 1e-3
"""The greatest error of a sum in single precision; what is above it is an op or a target that no rule fits."""


@dataclass(frozen=True, eq=False)
class DeepLIFT(Explainer):
    """Shares out f(x) - f(baseline) by carrying differences from the baseline back through every op.

    Each op hands the difference of its output to its inputs so that nothing is lost or made: linear ops by their
    weights, activations by the slope of their secant (`"rescale"`), products half and half. Softmax, normalisation and
    max pooling are expanded into such ops, pooling into a tournament of differences. So the values sum to
    f(x) - f(baseline) on any architecture, up to rounding, for the price of one gradient and a forward pass; the error
    of the sum is in the checks. A target that is not linear in the outputs, such as a probability, breaks the sum.

    `"reveal_cancel"` keeps positive and negative contributions to an activation apart, so that inputs which cancel get
    credit: min(x1, x2) is shared between the two. BatchNorm is folded into its convolution first.

    Shrikumar et al., 2017, "Learning important features through propagating activation differences". The paper has no
    rule for products, normalisation, attention or smooth pooling; those here keep the sum and are exact for two
    factors. Where x and the baseline agree, the slope is the derivative.

    Attributes:
        rule: how activations share.
        baselines: what x is compared to, as for `Sample.baseline`; of the inputs' shape, or one that broadcasts to it.
            `deep_shap` takes several.
    """

    rule: ActivationRule = "rescale"
    baselines: str | float | Tensor | Leaves = "zero"

    axioms: ClassVar[frozenset[str]] = frozenset({"completeness", "sensitivity", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Both rules."""
        return [cls(), cls(rule="reveal_cancel")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One rule pass with a reference."""
        start = sample.baseline(self.baselines)
        seen = yield Look(at=sample, gradients=["input"], rules=DEEPLIFT[self.rule], reference=sample.at(start))
        values = (sample.inputs - start) * seen.gradients["input"]
        return Attribution(values, over="input", checks=_certified(values, seen, sample))


@dataclass(frozen=True, eq=False)
class DeepSHAP(Explainer):
    """DeepLIFT, averaged over the rows of a distribution of baselines.

    The values sum to f(x) less the mean of f over the baselines. They approximate Shapley values whose absent features
    are drawn from the baselines; for a model linear in its features they are equal to them.

    Lundberg and Lee, 2017, "A unified approach to interpreting model predictions".

    Attributes:
        baselines: the reference data, (R, ...) with rows that broadcast to an input's; all R are used for every
            example, a rule pass each. None takes, for each example, the other examples of its batch; a word or a number
            is a single baseline, as for `Sample.baseline`.
        rule: as for `deeplift`.

    Raises:
        InputError: if there are no baselines and no other example in the batch.
        ParameterError: if the baselines do not fit the inputs.
    """

    baselines: str | float | Tensor | Leaves | None = None
    rule: ActivationRule = "rescale"

    axioms: ClassVar[frozenset[str]] = frozenset({"completeness", "sensitivity", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """With a baseline, since the batch's other examples are another question for every batch."""
        return [cls(baselines="zero")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """A rule pass for each baseline."""
        references, rows = self._references(sample)

        def there(_: Any, draws: Tensor, examples: Tensor) -> Any:
            return references[rows[draws, examples]]

        def contribution(part: Part) -> Any:
            return (part.inputs - references[rows[part.draws, part.examples]]) * part.gradients["input"]

        seen = yield Look(
            at=sample.derived(len(rows), lambda inputs, draws, examples: inputs),
            gradients=["input"],
            rules=DEEPLIFT[self.rule],
            reference=sample.derived(len(rows), there),
            fold=Sum(contribution),
        )
        values = seen.folded / len(rows)
        return Attribution(values, over="input", checks=_certified(values, seen, sample))

    def _references(self, sample: Sample) -> tuple[Any, Tensor]:
        """The reference data, and (R, B) which of their rows each example is compared to."""
        count = len(sample)
        own = torch.arange(count)
        if self.baselines is None:
            if count < 2:
                raise InputError(
                    "deep_shap has one example and no baselines; give baselines=(a tensor of typical inputs), or more "
                    "examples, which then serve each other as baselines"
                )
            return sample.inputs, (own + torch.arange(1, count)[:, None]) % count
        if isinstance(self.baselines, (str, float, int)):
            return sample.baseline(self.baselines), own[None]
        references, size = sample.references(self.baselines)
        return references, torch.arange(size)[:, None].expand(-1, count)


def _certified(values: Any, seen: Seen, sample: Sample) -> tuple[Check, ...]:
    """Certifies that the values of each example sum to the score's rise, and that every op had a rule.

    The error is a share of the rise; a rise under a thousandth of the scores themselves counts as that, since it is
    the difference of two rounded numbers.
    """
    assert seen.ledger is not None
    assert seen.reference_scores is not None
    here, there = (scores.reshape(-1, len(sample)).mean(dim=0) for scores in (seen.scores, seen.reference_scores))
    leaves = values.values() if isinstance(values, Leaves) else [values]
    rise, total = here - there, torch.stack([leaf.double().flatten(1).sum(dim=1) for leaf in leaves]).sum(dim=0)
    size = torch.maximum(rise.abs(), 1e-3 * torch.maximum(here.abs(), there.abs()))
    error = (total - rise).abs() / size.clamp_min(torch.finfo(rise.dtype).tiny)
    note = "relative error of the sum f(x) - f(baseline)"
    return Check.bound("completeness", error, TOLERANCE, note), seen.ledger.check_ruled()
