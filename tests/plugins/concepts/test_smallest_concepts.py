"""Smallest sufficient and destroying concepts: image by image more plainly, planted parts, controls, bad input."""

import pytest
import torch
from tests.plugins.concepts.test_ace import LAYER, world  # noqa: F401
from torch import nn

import pellucid
from pellucid import Attribution, Concepts, InputError, TargetError, Unsuitable, create, evaluate, explain

SUFFICIENT, DESTROYING = "smallest_sufficient_concepts", "smallest_destroying_concepts"
SIZE = 6


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(3)
        self.head = nn.Linear(2 * SIZE * SIZE, classes)
        self.double().eval()

    def forward(self, x):
        return self.head(x.flatten(1))


def noise(n=7, seed=0):
    return torch.randn(n, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def concepts(classes, n=7, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(classes), k, generator=generator, dtype=torch.float64)
    masks = torch.rand(n, k, SIZE, SIZE, generator=generator) > 0.7
    names = tuple(f"class {one}" for one in classes)
    return Concepts(values, tuple(f"part {place}" for place in range(k)), rows=names, masks=masks)


def plainly(model, image, masks, scores, target, hides, substitution):
    """The curve of one image and the number at which it first turns, mask by mask and pixel by pixel."""
    order = sorted(range(len(scores)), key=lambda place: -float(scores[place]))
    curve = []
    for count in range(len(scores) + 1):
        photo = image.clone()
        for row in range(SIZE):
            for column in range(SIZE):
                inside = any(bool(masks[place, row, column]) for place in order[:count])
                if inside == hides:
                    photo[:, row, column] = substitution
        curve.append(int(model(photo[None])[0].argmax()) == target)
    turned = [count for count, right in enumerate(curve) if right != hides]
    return turned[0] if turned else len(curve), [float(one) for one in curve]


@pytest.mark.parametrize("metric", [SUFFICIENT, DESTROYING])
@pytest.mark.parametrize("substitution", [0, 0.7])
@torch.no_grad()
def test_every_number_is_that_of_the_plain_derivation(metric, substitution):
    model, images, classes = Net(), noise(), [2, 0, 2, 1, 0, 2, 1]
    found = concepts([2, 0, 1])
    scores = evaluate(model, images, found, create(metric, substitution=substitution), target=classes)
    for place, target in enumerate(classes):
        row = found.rows.index(f"class {target}")
        expected, curve = plainly(
            model, images[place], found.masks[place], found.values[row], target, metric == DESTROYING, substitution
        )
        assert float(scores.values[0, place]) == expected
        assert scores.curve_y[0][place].tolist() == curve
    assert scores.curve_x[0].tolist() == [0, 1, 2, 3, 4]
    assert len(scores.values.unique()) > 2


def test_a_model_that_reads_one_part_needs_that_part_alone():
    """A planted truth: the class is the sign of the mean of the upper left corner, where one concept lies."""
    model = Net(classes=2)
    weights = torch.zeros(2, 2, SIZE, SIZE, dtype=torch.float64)
    weights[0, 0, :2, :2] = 1
    with torch.no_grad():
        model.head.weight.copy_(weights.flatten(1))
        model.head.bias.copy_(torch.tensor([-0.1, 0.0]))
    images = noise().abs()
    masks = torch.zeros(7, 3, SIZE, SIZE, dtype=torch.bool)
    masks[:, 0, 4:, 4:] = masks[:, 1, :2, :2] = masks[:, 2, 2:4, 2:4] = True
    for order, expected in (([0.1, 0.9, 0.5], 1), ([0.9, 0.1, 0.5], 3)):
        found = Concepts(torch.tensor([order]), ("no", "yes", "neither"), rows=("class 0",), masks=masks)
        for metric in (SUFFICIENT, DESTROYING):
            assert evaluate(model, images, found, metric, target=0, controls=False).values.tolist() == [[expected] * 7]
    masks[3, 1] = False  # an image without the part
    found = Concepts(torch.tensor([[0.1, 0.9, 0.5]]), ("no", "yes", "neither"), rows=("class 0",), masks=masks)
    for metric in (SUFFICIENT, DESTROYING):
        assert evaluate(model, images, found, metric, target=0, controls=False).values.tolist() == [
            [1, 1, 1, 4, 1, 1, 1]
        ]


def test_concepts_that_ace_finds_beat_random_order(world):  # noqa: F811
    net, images, random = world
    found = explain(
        net, images, create("ace", random=random, n_random=10, layer=LAYER, n_clusters=15, resolutions=(30, 60)), 0
    )
    assert found.masks.shape == (20, len(found.names), *images.shape[2:])
    # The photos' own grey, which tells the network nothing.
    metrics = [create(SUFFICIENT, substitution=0.5), create(DESTROYING, substitution=0.5)]
    controls = {f"control {seed}": explain(net, images, create("concept_control", of=found), 0, seed=seed)
                for seed in range(3)}  # fmt: skip
    scores = evaluate(net, images, {"ace": found, **controls}, metrics, target=0)
    for metric in (SUFFICIENT, DESTROYING):
        means = {row.explanation: float(one.mean()) for row, one in zip(scores.rows, scores.values, strict=True)
                 if row.metric == metric}  # fmt: skip
        own = means.pop("ace")
        assert own <= min(means.values()), (metric, own, means)
        assert own < sum(means.values()) / 3, (metric, own, means)


def test_the_control_keeps_all_but_the_scores():
    found = concepts([2, 0])
    control = create("concept_control", of=found)
    one, two, other = (explain(Net(), noise(), control, 0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.values, two.values)
    assert not torch.equal(one.values, other.values)
    assert torch.equal(one.masks, found.masks)
    assert (one.names, one.rows, one.significant) == (found.names, found.rows, None)
    scores = evaluate(Net(), noise(), found, SUFFICIENT, target=[2, 0, 2, 0, 0, 2, 0], controls=[control])
    assert [row.control for row in scores.rows] == [False, True]
    usual = evaluate(Net(), noise(), {"ours": found}, SUFFICIENT, target=[2, 0, 2, 0, 0, 2, 0])
    assert [(row.explanation, row.control) for row in usual.rows] == [("ours", False), ("random order", True)]
    with pytest.raises(InputError, match="expected the Concepts"):
        create("concept_control", of=torch.ones(3))


def test_masks_are_kept_and_checked(tmp_path):
    found = concepts([0])
    assert torch.equal(pellucid.load(found.save(tmp_path / "kept")).masks, found.masks)
    with pytest.raises(InputError, match=r"masks have shape \(7, 4, 6\)"):
        Concepts(found.values, found.names, masks=found.masks[..., 0])
    with pytest.raises(InputError, match=r"expected \(examples, 4"):
        Concepts(found.values, found.names, masks=found.masks[:, 1:])


def test_what_cannot_be_scored_is_refused():
    model, images = Net(), noise()
    with pytest.raises(InputError, match="Concepts without masks"):
        evaluate(model, images, Concepts(torch.ones(1, 2), ("a", "b"), rows=("class 0",)), SUFFICIENT, target=0)
    with pytest.raises(InputError, match="is Attribution"):
        evaluate(model, images, Attribution(images), SUFFICIENT, target=0, controls=False)
    with pytest.raises(InputError, match="for 7 images of"):
        evaluate(model, images[:5], concepts([0]), SUFFICIENT, target=0)
    with pytest.raises(InputError, match="expected class 1 as well"):
        evaluate(model, images, concepts([0]), DESTROYING, target=[0, 1, 0, 1, 0, 0, 0])
    with pytest.raises(TargetError, match="expected a class"):
        evaluate(model, images, concepts([0]), DESTROYING, target=lambda output: output[:, 0])
    with pytest.raises(Unsuitable, match="a photo"):
        evaluate(model, images.flatten(1), concepts([0]), SUFFICIENT, target=0)
