"""Checks of the axioms: what a technique claims, and invariance to the coding style, which all owe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.protocol.sample import Sample
from pellucid.protocol.target import ClassLogit
from pellucid.testing.behaviour import ROUNDING
from pellucid.testing.case import TARGETS, Case, require_same, values_of
from pellucid.testing.laws import LOOKING, ON_IMAGES, Group, claiming, require
from pellucid.testing.models import STYLES, BiasFree, HalfBlind, Mirrored, Saturated, Smooth, randomised

axiom_check = Group("Axioms")

EXACT = 1e-3
"""Of what a sum must be: far above rounding, far below a path with one node too many or too few."""


@axiom_check("does not depend on how the network is written", LOOKING, ON_IMAGES)
def implementation_invariance(case: Case) -> None:
    """ReLU as a module, as a function, as one module that runs twice, and in place."""
    if case.table:
        case.skip("its networks are for images")
    own, expected = case.model(), case.plain()
    for style in STYLES:
        if style is not type(own):
            model = style().double().eval()
            model.load_state_dict(own.state_dict())
            result = case.run(model, technique=case.fresh())
            require_same(result, expected, f"{style.__name__} and {type(own).__name__}", ROUNDING)


@axiom_check("shares out the score's rise over the baseline", claiming("completeness"))
def completeness(case: Case) -> None:
    """The values sum to f(x) - f(baseline), on a quadratic."""
    inputs = case.inputs()
    model = _random(case, Smooth(inputs[0].numel()))
    baselines = getattr(case.technique, "baselines", getattr(case.technique, "baseline", "zero"))
    ground = Sample(inputs, ClassLogit(0)).baseline("zero" if baselines is None else baselines)
    _require_sums(_sums(case.run(model, inputs)), _scores(model, inputs) - _scores(model, ground))


@axiom_check("conserves the score", claiming("conservation"))
def conservation(case: Case) -> None:
    """The values sum to f(x), on a piecewise linear network without biases."""
    inputs = case.inputs()
    model = _random(case, BiasFree(inputs[0].numel()))
    _require_sums(_sums(case.run(model, inputs)), _scores(model, inputs))


@axiom_check("is linear in the score", claiming("linearity"))
def linearity(case: Case) -> None:
    """The values of 2 f_0 - 3 f_1 are twice those of f_0 less three times those of f_1, on a quadratic."""
    inputs = case.inputs()
    model = _random(case, Smooth(inputs[0].numel()))
    targets = (0, 1, lambda output: 2 * output[:, 0] - 3 * output[:, 1])
    one, other, both = (values_of(case.run(model, inputs, target, case.fresh())) for target in targets)
    expected = [2 * ours - 3 * theirs for ours, theirs in zip(one, other, strict=True)]
    require_same(both, expected, "2 f_0 - 3 f_1", ROUNDING)


@axiom_check("treats what is symmetric alike", claiming("symmetry"))
def symmetry(case: Case) -> None:
    """A model that cannot tell its inputs from their mirror image, at inputs that are their own."""
    inputs = case.inputs()
    found = case.run(Mirrored(case.model()), inputs + inputs.flip(-1))
    require_same([leaf.flip(-1) for leaf in values_of(found)], found, "mirrored features", ROUNDING)


@axiom_check(
    "gives nothing to what the model ignores, and something to what changed the score", claiming("sensitivity")
)
def sensitivity(case: Case) -> None:
    """Sundararajan et al., 2017: dummy and sensitivity (a); the second where the gradient is zero."""
    for leaf in values_of(case.run(HalfBlind(case.model()))):
        unseen = leaf[..., leaf.shape[-1] // 2 :]
        require(bool((unseen == 0).all()), f"features that the model ignores get up to {float(unseen.abs().max()):.2g}")
    inputs = torch.zeros_like(case.inputs())
    inputs.flatten(1)[:, 0] = 2.0
    first = values_of(case.run(Saturated().double(), inputs, target=0, technique=case.fresh()))[0].flatten(1)[:, 0]
    require(bool((first > 0.5).all()), f"the one feature that raised the score by 1 gets {float(first.min()):.2g}")


def _random(case: Case, model: nn.Module) -> nn.Module:
    return randomised(model.double(), case.generator("axiom").initial_seed())


def _scores(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = model(inputs)
    return scores[torch.arange(len(inputs)), torch.tensor(TARGETS)]


def _sums(result: Any) -> Tensor:
    if getattr(result, "segments", None) is not None:  # each of its pixels has the value of a whole segment
        segments: Tensor = result.of_segments().sum(dim=1)
        return segments
    return torch.stack([leaf.flatten(1).sum(dim=1) for leaf in values_of(result)]).sum(dim=0)


def _require_sums(found: Tensor, expected: Tensor) -> None:
    error = float(((found - expected).abs() / expected.abs()).max())
    require(
        math.isfinite(error) and error <= EXACT,
        f"the values sum to {[round(one, 4) for one in found.tolist()]}; expected "
        f"{[round(one, 4) for one in expected.tolist()]}",
    )
