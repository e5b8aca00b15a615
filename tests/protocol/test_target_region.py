"""Regions of segmentation maps, position by position."""

from __future__ import annotations

import json

import pytest
import torch

from pellucid import Region, Sample, Score, TargetError
from pellucid.protocol import make_target

B, C, H, W = 4, 3, 5, 6
EXAMPLES = torch.tensor([2, 0, 0, 3])  # rows of one pass: draws of different examples, in any order
BOXES = torch.tensor([[0.0, 0, 2, 3], [1, 1, 6, 5], [0.4, 2.5, 4.6, 4.4], [5, 0, 6, 1]])


def maps(seed=0, rows=B):
    return torch.randn(rows, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(target, examples=EXAMPLES, base=None, outputs=None):
    outputs = maps(rows=len(examples)) if outputs is None else outputs
    return target.score(Score(outputs, lambda: outputs, examples, base=base))


def plainly(index, inside, examples=EXAMPLES, mean=True):
    """The score position by position; `inside` is a function of the example, y and x that gives a weight."""
    outputs, scores = maps(rows=len(examples)), []
    for row, example in enumerate(examples.tolist()):
        weights = [(inside(example, y, x), float(outputs[row, index, y, x])) for y in range(H) for x in range(W)]
        total = sum(weight * value for weight, value in weights)
        scores.append(total / sum(weight for weight, _ in weights) if mean else total)
    return torch.tensor(scores, dtype=torch.float64)


def in_box(box, y, x):
    left, top, right, bottom = (float(side) for side in box)
    return left <= x + 0.5 < right and top <= y + 0.5 < bottom


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_box_holds_the_positions_whose_centres_lie_in_it(reduce):
    one = Region(1, box=(1, 0.6, 3.5, 4), reduce=reduce)
    expected = plainly(1, lambda _, y, x: in_box((1, 0.6, 3.5, 4), y, x), mean=reduce == "mean")
    torch.testing.assert_close(score(one), expected)
    each = Region(2, box=BOXES, reduce=reduce)
    torch.testing.assert_close(score(each), plainly(2, lambda e, y, x: in_box(BOXES[e], y, x), mean=reduce == "mean"))
    torch.testing.assert_close(score(Region(0, box=(0, 0, W, H))), score(Region(0)))


def test_predicted_positions_are_those_of_the_sample_itself():
    base = maps(seed=1)
    predicted = base.argmax(dim=1)
    expected = plainly(1, lambda e, y, x: int(predicted[e, y, x]) == 1)
    torch.testing.assert_close(score(Region(1, predicted=True), base=base), expected)
    torch.testing.assert_close(score(Region(1 - C, predicted=True), base=base), expected)
    with pytest.raises(TargetError, match="not known yet"):
        score(Region(1, predicted=True))


def test_mask_box_and_prediction_narrow_the_region_together():
    base, weights = maps(seed=1), torch.rand(B, H, W, dtype=torch.float64) + 0.1
    predicted = base.argmax(dim=1)
    region = Region(0, weights, (0, 0, 5, 4), predicted=True, reduce="sum")

    def inside(e, y, x):
        return float(weights[e, y, x]) * in_box((0, 0, 5, 4), y, x) * (int(predicted[e, y, x]) == 0)

    torch.testing.assert_close(score(region, base=base), plainly(0, inside, mean=False))


def test_gradients_lie_in_the_region_only():
    outputs = maps().requires_grad_()
    (slope,) = torch.autograd.grad(score(Region(1, box=(1, 1, 3, 3)), outputs=outputs).sum(), outputs)
    expected = torch.zeros(B, C, H, W, dtype=torch.float64)
    expected[:, 1, 1:3, 1:3] = 1 / 4
    torch.testing.assert_close(slope, expected)


def test_boxes_go_along_with_their_examples():
    target, everything = Region(1, torch.rand(B, H, W) + 0.1, BOXES), torch.arange(B)
    whole = score(target, everything)
    chosen = torch.tensor([3, 1])
    torch.testing.assert_close(score(target.picked(chosen), torch.arange(2), outputs=maps()[chosen]), whole[chosen])
    twice = score(target.repeated(2), torch.arange(2 * B), outputs=torch.cat([maps(), maps()]))
    torch.testing.assert_close(twice, torch.cat([whole, whole]))


def test_predicted_positions_stay_those_of_the_first_inputs():
    base, target = maps(seed=1), Region(1, predicted=True)
    sample = Sample(torch.zeros(B, 2), target)
    assert target.base(sample) is sample
    other = sample.at(torch.ones(B, 2))
    assert other.target.base(other) is sample
    assert score(other.target, base=base).equal(score(target, base=base))
    part = sample[[3, 1]].target
    assert score(part, torch.tensor([0, 1]), base, maps(rows=2)).equal(
        score(target, torch.tensor([3, 1]), base, maps(rows=2))
    )
    assert Region(1, box=BOXES).fixed_by(sample).base(sample) is None


@pytest.mark.parametrize(
    ("region", "told"),
    [
        (Region(3), "out of range"),
        (Region(0, box=(0, 0, 7, 2)), "does not lie in the output map, 5 high and 6 wide"),
        (Region(0, box=(-1, 0, 3, 2)), "does not lie in the output map"),
        (Region(0, box=(0, 0, 3, 5.5)), r"box \[0\.0, 0\.0, 3\.0, 5\.5\] does not lie"),
        (Region(0, box=(0.6, 0, 1.4, 5)), r"the region is empty for examples \[0, 2, 3\]"),
        (Region(0, torch.eye(H, W), box=(3, 0, 6, 2)), "is empty"),
    ],
)
def test_regions_that_do_not_fit_the_map(region, told):
    with pytest.raises(TargetError, match=told):
        score(region)


def test_a_class_that_is_predicted_nowhere():
    base = maps(seed=1)
    base[2, 1] = -100
    with pytest.raises(TargetError, match=r"where class 1 is predicted is empty for examples \[2\]"):
        score(Region(1, predicted=True), base=base)


@pytest.mark.parametrize(
    ("region", "told"),
    [
        (Region(0, box=(1, 1, 1, 4)), "has no area"),
        (Region(0, box=(3, 1, 1, 4)), "left < right"),
        (Region(0, box=(0, 0, float("nan"), 4)), "has no area"),
        (Region(0, box=(0, 0, 4)), r"shape \(3,\); expected left, top, right and bottom"),
        (Region(0, box="all"), "expected four numbers"),
        (Region(0, box=BOXES[:3]), r"the region's boxes have shape \(3, 4\)"),
        (Region(0, reduce="max"), "expected 'mean' or 'sum'"),
    ],
)
def test_what_is_no_region(region, told):
    with pytest.raises(TargetError, match=told):
        make_target(region, B)


@pytest.mark.parametrize(
    "region", [Region(1), Region(1, torch.ones(2, 2), BOXES, True, "sum"), Region(0, box=(0, 0, 1, 1))]
)
def test_a_description_can_be_saved_as_json(region):
    assert json.loads(json.dumps(region.describe())) == region.describe()
