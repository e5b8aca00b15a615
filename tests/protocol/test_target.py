"""Targets: scores against plain indexing, and what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pellucid import ClassLogit, Contrast, Loss, Region, Sample, Score, Similarity, TargetError, Unit
from pellucid.protocol import Custom, make_target

B, C = 4, 5
EXAMPLES = torch.tensor([2, 0, 0, 3])  # rows of one pass: draws of different examples, in any order


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (B, C), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def score(target, outputs=None, examples=EXAMPLES, base=None, **layers) -> torch.Tensor:
    outputs = logits() if outputs is None else outputs
    return target.score(Score(outputs, lambda: outputs, examples, layers, base))


def test_the_logit_of_one_class():
    assert score(ClassLogit(3)).equal(logits()[:, 3])
    assert score(ClassLogit(-1)).equal(logits()[:, 4])


def test_one_class_for_each_example_not_for_each_row():
    classes = torch.tensor([1, 4, 0, 2])
    expected = [logits()[row, classes[example]].item() for row, example in enumerate(EXAMPLES)]
    assert score(ClassLogit(classes)).tolist() == expected


def test_the_predicted_class_is_the_examples_not_the_rows():
    base = logits(B, C).roll(1, dims=0)
    predicted = base.argmax(dim=1)
    expected = [logits()[row, predicted[example]].item() for row, example in enumerate(EXAMPLES)]
    assert score(ClassLogit(), base=base).tolist() == expected
    with pytest.raises(TargetError, match="not known yet"):
        score(ClassLogit())


def test_probabilities():
    torch.testing.assert_close(score(ClassLogit(2, probability=True)), logits().softmax(dim=1)[:, 2])


def test_a_class_of_a_segmentation_is_averaged_over_its_map():
    maps = logits(B, C, 3, 2)
    torch.testing.assert_close(score(ClassLogit(1), maps), maps[:, 1].mean(dim=(1, 2)))


def test_a_model_of_one_score_needs_no_class():
    assert score(ClassLogit(), logits(B)).equal(logits(B))
    with pytest.raises(TargetError, match="no axis of classes"):
        score(ClassLogit(0), logits(B))


@pytest.mark.parametrize("wrong", [5, -6, 1000])
def test_a_class_out_of_range(wrong):
    with pytest.raises(TargetError, match=f"target {wrong} is out of range; the model has 5 classes, 0 to 4"):
        score(ClassLogit(wrong))


def test_a_contrast_is_a_difference():
    assert score(Contrast(1, 3)).equal(logits()[:, 1] - logits()[:, 3])
    other = torch.tensor([0, 1, 2, 3])
    expected = torch.stack([logits()[row, 4] - logits()[row, other[example]] for row, example in enumerate(EXAMPLES)])
    assert score(Contrast(4, other)).equal(expected)
    base = logits().flip(0)
    predicted = base.argmax(dim=1)[EXAMPLES]
    expected = logits()[torch.arange(4), predicted] - logits()[:, 0]
    assert score(Contrast(None, 0), base=base).equal(expected)


def test_the_loss_of_labels():
    labels = torch.tensor([1, 4, 0, 2])
    expected = torch.stack([-logits()[row].log_softmax(dim=0)[labels[e]] for row, e in enumerate(EXAMPLES)])
    torch.testing.assert_close(score(Loss(labels)), expected)
    torch.testing.assert_close(score(Loss(labels.int())), expected)
    values = logits(B, C).roll(1, dims=1)
    torch.testing.assert_close(score(Loss(values)), ((logits() - values[EXAMPLES]) ** 2).sum(dim=1))
    torch.testing.assert_close(score(Loss(values[:, 0]), logits(B, 1)), (logits(B, 1)[:, 0] - values[EXAMPLES, 0]) ** 2)


def test_the_loss_of_a_segmentation():
    maps, labels = logits(B, C, 3, 2), torch.arange(24).reshape(B, 3, 2) % C
    expected = F.cross_entropy(maps, labels[EXAMPLES], reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(score(Loss(labels), maps), expected)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.zeros(B, C + 1), "expected|the model gives"),
        (torch.zeros(B, 2, dtype=torch.long), "expected class indices of shape \\(4,\\)"),
        (torch.full((B,), 9), "out of range"),
    ],
)
def test_labels_that_do_not_fit_the_output(labels, told):
    with pytest.raises(TargetError, match=told):
        score(Loss(labels))


def test_a_unit_a_channel_and_a_place():
    maps = logits(B, C, 3, 2)
    torch.testing.assert_close(score(Unit("conv", 2), conv=maps), maps[:, 2].mean(dim=(1, 2)))
    assert score(Unit("conv", 2, (1, -1)), conv=maps).equal(maps[:, 2, 1, -1])
    assert score(Unit("fc", -1), fc=logits()).equal(logits()[:, -1])
    assert Unit("conv", 2).layers == ("conv",)


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (Unit("conv", 5), "channel 5 is out of range"),
        (Unit("conv", 0, (3, 0)), "does not lie"),
        (Unit("conv", 0, (0,)), "does not lie"),
    ],
)
def test_units_that_are_not_there(unit, told):
    with pytest.raises(TargetError, match=told):
        score(unit, conv=logits(B, C, 3, 2))


def test_the_region_of_a_segmentation():
    maps = logits(B, C, 3, 2)
    assert score(Region(1), maps).equal(maps[:, 1].mean(dim=(1, 2)))
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    torch.testing.assert_close(score(Region(1, mask), maps), maps[:, 1, mask].mean(dim=1))
    weights = torch.rand(B, 3, 2, dtype=torch.float64) + 0.1
    expected = [(maps[row, 1] * weights[e]).sum() / weights[e].sum() for row, e in enumerate(EXAMPLES)]
    torch.testing.assert_close(score(Region(1, weights), maps), torch.stack(expected))


@pytest.mark.parametrize(
    ("region", "outputs", "told"),
    [
        (Region(0), (B, C), "needs an output"),
        (Region(9), (B, C, 3, 2), "out of range"),
        (Region(0, torch.ones(2, 2)), (B, C, 3, 2), r"mask is \(2, 2\); the output map is \(3, 2\)"),
        (Region(0, torch.zeros(3, 2)), (B, C, 3, 2), "is empty"),
    ],
)
def test_regions_that_do_not_fit(region, outputs, told):
    with pytest.raises(TargetError, match=told):
        score(region, logits(*outputs))


def test_the_similarity_to_an_embedding():
    embedding = logits(C).roll(2)
    expected = logits() @ embedding / logits().norm(dim=1) / embedding.norm()
    torch.testing.assert_close(score(Similarity(embedding)), expected)
    each = logits(B, C).roll(1, dims=0)
    expected = [torch.cosine_similarity(logits()[row], each[e], dim=0) for row, e in enumerate(EXAMPLES)]
    torch.testing.assert_close(score(Similarity(each)), torch.stack(expected))
    torch.testing.assert_close(score(Similarity(embedding, "fc"), fc=logits()), score(Similarity(embedding)))
    assert Similarity(embedding, "fc").layers == ("fc",)
    with pytest.raises(TargetError, match="7 features; the model gives 5"):
        score(Similarity(torch.ones(7)))


def test_any_function_of_what_the_model_returned():
    assert score(Custom(lambda output: output[:, 0] * 2)).equal(logits()[:, 0] * 2)
    for wrong, told in (
        (lambda output: output.sum(), "before summing"),
        (lambda output: output, "before summing"),
        (lambda output: 3.0, "returned float"),
    ):
        with pytest.raises(TargetError, match=told):
            score(Custom(wrong))
    assert score(Custom(lambda output: output.sum()), logits(1, C), torch.zeros(1, dtype=torch.long)).shape == (1,)


PER_EXAMPLE = [
    ClassLogit(torch.arange(B)),
    Contrast(torch.arange(B), torch.arange(B).flip(0)),
    Contrast(0, torch.arange(B)),
    Loss(torch.arange(B)),
    Loss(torch.arange(B * C).reshape(B, C).double()),
    Similarity(logits().roll(1, dims=1)),
]


@pytest.mark.parametrize("target", PER_EXAMPLE, ids=lambda target: type(target).__name__)
def test_targets_for_some_and_for_repeated_examples(target):
    outputs, everything = logits(), torch.arange(B)
    whole = score(target, outputs, everything)
    chosen = torch.tensor([3, 1])
    torch.testing.assert_close(score(target.picked(chosen), outputs[chosen], torch.arange(2)), whole[chosen])
    twice = score(target.repeated(2), torch.cat([outputs, outputs]), torch.arange(2 * B))
    torch.testing.assert_close(twice, torch.cat([whole, whole]))


def test_masks_and_regions_go_along_with_their_examples():
    maps, masks = logits(B, C, 3, 2), torch.rand(B, 3, 2) + 0.1
    target, chosen = Region(1, masks), torch.tensor([3, 1])
    whole = score(target, maps, torch.arange(B))
    torch.testing.assert_close(score(target.picked(chosen), maps[chosen], torch.arange(2)), whole[chosen])
    torch.testing.assert_close(
        score(target.repeated(2), torch.cat([maps, maps]), torch.arange(2 * B)), torch.cat([whole, whole])
    )


def test_predicted_classes_stay_those_of_the_first_inputs():
    base = logits().flip(0)
    for target in (ClassLogit(), Contrast(None, 0)):
        sample = Sample(torch.zeros(B, 2), target)
        expected = score(target, base=base)
        fixed = sample.at(torch.ones(B, 2)).target
        assert fixed.base(sample.at(torch.ones(B, 2))) is sample
        assert score(fixed, base=base).equal(expected)
        part = sample[[3, 1]]
        assert score(part.target, logits()[:2], torch.tensor([0, 1]), base).equal(
            score(target, logits()[:2], torch.tensor([3, 1]), base)
        )
        again = part.at(torch.ones(2, 2))[1:].target
        assert score(again, logits()[:1], torch.tensor([0]), base).equal(
            score(target, logits()[:1], torch.tensor([1]), base)
        )
        assert score(fixed.repeated(2), logits(), torch.tensor([B + 2, 0, 0, 3]), base).equal(expected)


# --- what a user may give --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (2, 2),
        (np.int64(2), 2),
        (torch.tensor(2), 2),
        ("Dog", 1),
        (["dog", "cat"], [1, 0]),
        (["dog", 2], [1, 2]),
        (torch.tensor([0, 1], dtype=torch.int32), [0, 1]),
        (np.array([0, 1]), [0, 1]),
        ((0, 1), [0, 1]),
        (None, None),
    ],
)
def test_indices_and_names(given, classes):
    made = make_target(given, 2, ["cat", "dog", "DOGFISH"])
    assert isinstance(made, ClassLogit)
    assert (made.classes.tolist() if isinstance(made.classes, torch.Tensor) else made.classes) == classes


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (1.0, "float"),
        (True, "bool"),
        (np.True_, "bool"),
        ([True, False], "bool"),
        (torch.tensor([0.0, 1.0]), "expected integer"),
        ([0, 1, 2], r"expected \(2,\)"),
        (torch.zeros(2, 1, dtype=torch.long), r"expected \(2,\)"),
        ("dgo", "Did you mean 'dog'"),
        ("zebra", "no class 'zebra'"),
        ("crane", r"2 classes 'crane', \[2, 3\]"),
        ({"a": 1}, "expected None, a class index"),
        ([[0], [0, 1]], "expected None, a class index"),
        (ClassLogit(torch.tensor([1.0, 2.0])), "expected integers"),
        (ClassLogit(torch.tensor([1])), r"expected \(2, \.\.\.\)"),
        (ClassLogit(1.5), "expected an integer"),
        (ClassLogit(True), "expected an integer"),
        (Contrast(0, torch.tensor([1, 2, 3])), r"expected \(2, \.\.\.\)"),
        (Loss(torch.tensor([1, 2, 3])), r"the labels have shape \(3,\)"),
        (Region(0, torch.ones(3, 4, 4)), r"the region's masks have shape \(3, 4, 4\)"),
        (Region(0, torch.ones(4)), r"expected \(h, w\)"),
        (Similarity(torch.ones(3, 4)), "the embeddings"),
    ],
)
def test_what_is_no_target(given, told):
    with pytest.raises(TargetError, match=told):
        make_target(given, 2, ["cat", "dog", "crane", "crane"])


def test_names_need_known_categories():
    with pytest.raises(TargetError, match="give the class index"):
        make_target("dog", 2, None)


def test_callables_and_targets_are_taken_as_they_are():
    def score_of(output):
        return output[:, 0]

    made = make_target(score_of, 2)
    assert isinstance(made, Custom)
    assert "score_of" in made.describe()
    unit = Unit("fc", 0)
    assert make_target(unit, 2) is unit


def test_the_users_tensor_is_copied():
    classes = torch.tensor([0, 1])
    made = make_target(classes, 2)
    classes.fill_(9)
    assert made.classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    "target",
    [*PER_EXAMPLE, ClassLogit(), ClassLogit(1), Unit("a", 1, (0, 1)), Region(1, torch.ones(2, 2)), Custom(len)],
    ids=lambda target: type(target).__name__,
)
def test_a_description_can_be_saved_as_json(target):
    assert json.loads(json.dumps(target.describe())) == target.describe()
