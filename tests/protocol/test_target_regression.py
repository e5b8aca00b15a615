"""Values of a regression against plain arithmetic."""

from __future__ import annotations

import json

import pytest
import torch

from pellucid import Regression, Score, TargetError
from pellucid.protocol import make_target

B, K = 4, 3
EXAMPLES = torch.tensor([2, 0, 0, 3])  # rows of one pass: draws of different examples, in any order
PLAIN = {"signed": lambda d: d, "negated": lambda d: -d, "absolute": abs, "squared": lambda d: d * d}


def values(*shape):
    return torch.randn(shape or (B, K), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def score(target, outputs=None, examples=EXAMPLES):
    outputs = values() if outputs is None else outputs
    return target.score(Score(outputs, lambda: outputs, examples))


@pytest.mark.parametrize("measure", PLAIN)
def test_the_deviation_from_a_reference(measure):
    expected = [PLAIN[measure](float(values()[row, 1]) - 0.5) for row in range(B)]
    assert score(Regression(1, 0.5, measure)).tolist() == pytest.approx(expected, abs=1e-12)
    index, reference = torch.tensor([0, 2, 1, -1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = [
        PLAIN[measure](float(values()[row, int(index[example])]) - float(reference[example]))
        for row, example in enumerate(EXAMPLES)
    ]
    assert score(Regression(index, reference, measure)).tolist() == pytest.approx(expected, abs=1e-12)


def test_models_of_one_value():
    assert score(Regression(), values(B)).equal(values(B))
    assert score(Regression(), values(B, 1)).equal(values(B, 1)[:, 0])
    assert score(Regression(), values()).equal(values()[:, 0])


def test_the_negated_slope_points_down():
    outputs = values().requires_grad_()
    (slope,) = torch.autograd.grad(score(Regression(1, 2.0, "negated"), outputs).sum(), outputs)
    assert slope.equal(torch.tensor([0.0, -1, 0]).double().expand(B, K))


def test_references_go_along_with_their_examples():
    target = Regression(torch.tensor([0, 2, 1, -1]), torch.arange(4.0), "squared")
    whole, chosen = score(target, examples=torch.arange(B)), torch.tensor([3, 1])
    torch.testing.assert_close(score(target.picked(chosen), values()[chosen], torch.arange(2)), whole[chosen])
    twice = score(target.repeated(2), torch.cat([values(), values()]), torch.arange(2 * B))
    torch.testing.assert_close(twice, torch.cat([whole, whole]))
    assert score(Regression(0, torch.tensor(1.0)).picked(chosen), values()[:2], torch.arange(2)).shape == (2,)


@pytest.mark.parametrize(
    ("target", "shape", "told"),
    [
        (Regression(3), (B, K), "target 3 is out of range; the model has 3 values, 0 to 2"),
        (Regression(1), (B,), "the model has 1 values, 0 to 0"),
        (Regression(), (B, 1, 2, 2), r"the model gives \(4, 1, 2, 2\).*Region"),
    ],
)
def test_values_that_are_not_there(target, shape, told):
    with pytest.raises(TargetError, match=told):
        score(target, values(*shape))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (Regression(None), "index is None"),
        (Regression(1.5), "expected an integer"),
        (Regression(0, torch.ones(3)), r"the references have shape \(3,\); expected a number or \(4,\)"),
        (Regression(0, float("inf")), "not finite"),
        (Regression(0, measure="likelihood"), "expected one of"),
        (Regression(torch.tensor([0, 1])), r"expected \(4, \.\.\.\)"),
    ],
)
def test_what_is_no_regression(target, told):
    with pytest.raises(TargetError, match=told):
        make_target(target, B)


@pytest.mark.parametrize("target", [Regression(), Regression(torch.arange(4), torch.arange(4.0), "squared")])
def test_a_description_can_be_saved_as_json(target):
    assert json.loads(json.dumps(target.describe())) == target.describe()
