"""Detected objects: boxes counted pixel by pixel, matches one by one."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pellucid import Detected, Sample, Score, TargetError
from pellucid.protocol import make_target

OBJECT = (2.0, 1.0, 8.0, 7.0)


def found(*detections):
    """Detections, each a class, a score and a box."""
    return {
        "labels": torch.tensor([label for label, _, _ in detections], dtype=torch.long),
        "scores": torch.tensor([score for _, score, _ in detections], dtype=torch.float64),
        "boxes": torch.tensor([box for _, _, box in detections], dtype=torch.float64).reshape(-1, 4),
    }


IMAGES = [
    found((1, 0.9, (2, 1, 8, 7)), (1, 0.5, (3, 1, 8, 7)), (2, 0.99, (2, 1, 8, 7))),
    found(),
    found((1, 0.3, (2, 2, 8, 7)), (1, 0.8, (7, 6, 10, 10)), (1, 0.7, (5, 4, 10, 10))),
    found((2, 0.6, (2, 1, 8, 7)), (1, 0.9, (8, 7, 10, 10))),
]


def overlap(one, other):
    """Intersection over union, counted on the pixels of a 10 x 10 image."""
    inside = [
        {(x, y) for x in range(10) for y in range(10) if box[0] <= x < box[2] and box[1] <= y < box[3]}
        for box in (one, other)
    ]
    return len(inside[0] & inside[1]) / len(inside[0] | inside[1])


def matches(image, index, box):
    rows = zip(image["labels"].tolist(), image["scores"].tolist(), image["boxes"].tolist(), strict=True)
    return [score * overlap(box, place) for label, score, place in rows if label == index]


def score(target, images=IMAGES, examples=None, derived=True):
    examples = torch.arange(len(images)) if examples is None else examples
    return target.score(Score(images, lambda: pytest.fail("no logits"), examples, derived=derived))


def test_the_best_match_of_the_class():
    for index in (1, 2, 3):
        expected = [max(matches(image, index, OBJECT), default=0.0) for image in IMAGES]
        assert score(Detected(index, OBJECT)).tolist() == pytest.approx(expected, abs=1e-12)
    assert score(Detected(1, OBJECT)).tolist()[0] == pytest.approx(0.9)


def test_a_soft_match_weighs_the_matches():
    for temperature in (0.05, 1.0):
        expected = []
        for image in IMAGES:
            own = matches(image, 1, OBJECT)
            weights = [math.exp(match / temperature) for match in own]
            expected.append(sum(w * m for w, m in zip(weights, own, strict=True)) / sum(weights) if own else 0.0)
        assert score(Detected(1, OBJECT, temperature)).tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(score(Detected(1, OBJECT, 1e-4)), score(Detected(1, OBJECT)))


def test_one_object_for_each_example_not_for_each_row():
    classes = torch.tensor([1, 2, 1, 2])
    boxes = torch.tensor([OBJECT, (0, 0, 3, 3), (7, 6, 10, 10), (2, 1, 7, 7)])
    examples = torch.tensor([3, 2, 0, 2])
    expected = [
        max(matches(image, int(classes[e]), boxes[e].tolist()), default=0.0)
        for image, e in zip(IMAGES, examples, strict=True)
    ]
    target = Detected(classes, boxes)
    assert score(target, IMAGES, examples).tolist() == pytest.approx(expected, abs=1e-12)
    whole = score(target)
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(score(target.picked(chosen), [IMAGES[2], IMAGES[0]]), whole[chosen])
    torch.testing.assert_close(score(target.repeated(2), IMAGES + IMAGES), torch.cat([whole, whole]))


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_the_match_is_differentiable_by_scores(temperature):
    scores = torch.tensor([0.9, 0.5], dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([(2.2, 1.1, 7.7, 6.9), (3.0, 1.5, 8.5, 7.0)], dtype=torch.float64)

    def of(scores):
        image = {"labels": torch.tensor([1, 1]), "scores": scores, "boxes": boxes}
        return score(Detected(1, OBJECT, temperature), [image])

    assert torch.autograd.gradcheck(of, (scores,))


def test_the_gradient_at_the_very_box_of_a_detection_is_that_of_its_score():
    """The overlap has a kink there, where rounding would decide."""
    for shift in (-1e-12, 0.0, 1e-12):
        scores = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
        boxes = torch.tensor([OBJECT], dtype=torch.float64, requires_grad=True)
        image = {"labels": torch.tensor([1]), "scores": scores, "boxes": boxes + shift}
        slopes = torch.autograd.grad(score(Detected(1, OBJECT), [image]).sum(), (scores, boxes), allow_unused=True)
        assert slopes[0].item() == pytest.approx(1)
        assert slopes[1] is None


def test_no_match_is_zero_and_so_is_its_gradient():
    scores = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
    nothing = {"labels": torch.zeros(0, dtype=torch.long), "scores": scores[1:], "boxes": torch.zeros(0, 4)}
    other = {"labels": torch.tensor([2]), "scores": scores, "boxes": torch.tensor([OBJECT])}
    for image in (nothing, other):
        result = score(Detected(1, OBJECT), [image])
        assert result.item() == 0
        (slope,) = torch.autograd.grad(result.sum(), scores)
        assert slope.item() == 0


def test_what_is_explained_must_be_detected():
    target = Detected(1, OBJECT)
    for image, told in ((1, "has 0 detections, of classes \\[\\]"), (3, "has 2 detections, of classes \\[1, 2\\]")):
        with pytest.raises(TargetError, match=f"in example {image} no detection of class 1 overlaps.*{told}"):
            score(target, [IMAGES[image]], torch.tensor([image]), derived=False)
    assert score(target, IMAGES, derived=True).tolist()[1] == 0
    assert score(Detected(1, OBJECT, required=False), IMAGES, derived=False).tolist()[1] == 0
    assert score(target, [IMAGES[0], IMAGES[2]], derived=False).shape == (2,)
    sample = Sample(torch.zeros(4, 3, 10, 10), target)
    assert not sample.at(torch.ones(4, 3, 10, 10)).target.required


def test_the_objects_that_a_model_detected():
    few = [IMAGES[0], IMAGES[2]]
    target = Detected.of(few, temperature=0.5)
    assert target.index.tolist() == [2, 1]
    assert target.box.tolist() == [[2, 1, 8, 7], [7, 6, 10, 10]]
    assert target.temperature == 0.5
    assert Detected.of(few, 2).index.tolist() == [1, 1]
    assert Detected.of(few, 2).box.tolist() == [[3, 1, 8, 7], [2, 2, 8, 7]]
    for images, which in ((IMAGES, 0), (few, 3), (few, -1), ([], 0)):
        with pytest.raises(TargetError, match="expected a rank from 0"):
            Detected.of(images, which)
    with pytest.raises(TargetError, match=r"images \[1\] do not have"):
        Detected.of(IMAGES)
    flat = found((1, 0.9, (5, 5, 5, 9)), (1, 0.4, (2, 2, 8, 7)))
    assert Detected.of([flat]).box.tolist() == [[2, 2, 8, 7]]
    for wrong in (torch.zeros(2, 3), [torch.zeros(2)], [{"boxes": torch.zeros(1, 4)}]):
        with pytest.raises(TargetError, match=r"a list with \['boxes', 'labels', 'scores'\]"):
            Detected.of(wrong)


@pytest.mark.parametrize("raw", [torch.zeros(4, 5), IMAGES[:3], [{"scores": torch.zeros(1)}] * 4, {"boxes": 1}])
def test_outputs_that_are_no_detections(raw):
    with pytest.raises(TargetError, match="for each of 4 images; the model returns a"):
        score(Detected(1, OBJECT), raw, torch.arange(4))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (Detected(None, OBJECT), "class is None"),
        (Detected(1.5, OBJECT), "expected an integer"),
        (Detected(torch.tensor([1, 2]), OBJECT), r"expected \(4, \.\.\.\)"),
        (Detected(1, torch.ones(3, 4).cumsum(1)), "the objects' boxes"),
        (Detected(1, (8, 1, 2, 7)), "has no area"),
        (Detected(1, (1, 2, 3)), r"shape \(3,\)"),
        (Detected(1, torch.ones(4, dtype=torch.bool)), "bool"),
        (Detected(1, OBJECT, -1.0), "at least 0"),
        (Detected(1, OBJECT, float("nan")), "at least 0"),
    ],
)
def test_what_is_no_object(target, told):
    with pytest.raises(TargetError, match=told):
        make_target(target, 4)


def test_a_description_can_be_saved_as_json():
    for target in (Detected(1, OBJECT), Detected.of([IMAGES[0], IMAGES[2]])):
        assert json.loads(json.dumps(target.describe())) == target.describe()
