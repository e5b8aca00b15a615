"""PatternNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid import (
    Attribution,
    Check,
    Explainer,
    Gradient,
    Leaves,
    Look,
    Node,
    ParameterError,
    Passes,
    Rule,
    RuleSet,
    Sample,
    each,
)
from pellucid_rules.patterns import Estimator, Patterns, fitting


@dataclass(frozen=True, eq=False)
class Along(Rule):
    """The gradient with a weighted op's weights replaced by its patterns, or by their product with the weights."""

    patterns: Patterns
    times_weight: bool

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None]:
        """One transposed convolution or matrix product."""
        assert node.weight is not None
        pattern = self.patterns.of(node)
        return node.vjp(carried, weight=pattern * node.weight if self.times_weight else pattern)


@dataclass(frozen=True, eq=False)
class PatternNet(Explainer):
    """Projects the signal behind the score back to the input, along patterns fitted on data in place of weights.

    A neuron's weights w say how to filter its inputs, not where its signal is: they also cancel what distracts. The
    signal lies along the pattern a = cov(x, y) / w^T cov(x, y). Going back as the gradient does, with a in place of
    each w (BatchNorm folded into it first), shows the part of the input that the score responds to, times the score.

    Kindermans et al., 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution", for chains of
    convolutions, dense layers, ReLUs and max pooling. What else a network has, sums, attention products, normalisation
    that cannot be folded, carries the gradient.

    Attributes:
        patterns: `Patterns.fit(model, data)`, to use again; or
        data: typical inputs (N, ...) to fit patterns on, anew in each call.
        estimator: of `data`: `"two_component"` (S_a+-: where a ReLU or its like follows, the patterns are those of its
            positive regime) or `"linear"` (S_a).

    Raises:
        ParameterError: if neither patterns nor data are given, or the patterns are another model's.
        InputError: if the patterns or data are of another shape than the inputs.
    """

    patterns: Patterns | None = None
    data: Tensor | Leaves | None = None
    estimator: Estimator = "two_component"

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})
    known_failures: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "finds the glyph that decides, not the distractor of equal energy",
            "finds the glyph of the class that is asked, not another class's",
        ),
        "the test instances' patterns are fitted on images of another size",
    )
    times_weight: ClassVar[bool] = False

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Both estimators, on random images."""
        data = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return [cls(data=data), cls(data=data, estimator="linear")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One rule pass over the data, where patterns are not given, and one at the sample."""
        if (self.patterns is None) == (self.data is None):
            raise ParameterError(
                f"{type(self).__name__} needs either patterns=Patterns.fit(model, data) or data=(typical inputs); its "
                f"patterns are {'not fitted' if self.patterns is None else 'given twice'}"
            )
        patterns = self.patterns
        if patterns is None:
            patterns = yield from fitting(sample, self.data, self.estimator)
        patterns.check(sample.inputs)
        rules = RuleSet(
            "patterns", {"weighted": Along(patterns, self.times_weight), "*": Gradient()}, canonizers=("batch_norm",)
        )
        seen = yield Look(at=sample, gradients=["input"], rules=rules)
        silent = Check.info("silent", patterns.silent, "neurons without data, whose patterns are zero")
        return Attribution(_scaled(seen.gradients["input"], seen.scores), over="input", checks=(silent,))


def _scaled(values: Any, scores: Tensor) -> Any:
    """Each example's values times its score."""
    return each(lambda leaf: leaf * scores.to(leaf).reshape(-1, *(1,) * (leaf.dim() - 1)), values)
