"""The page on targets says what the files say, and the files run."""

import re

import pytest
import torch
from tests.docs.pages import ROOT, blocks, check_taken_from_files, example
from torch import nn
from torchvision.models import detection

import pellucid

PAGE = (ROOT / "docs/targets.md").read_text()
BLOCKS = blocks(PAGE)


@pytest.fixture(scope="module")
def examples():
    return example("targets")


def test_every_block_stands_in_a_tested_file():
    check_taken_from_files(PAGE)


def test_every_example_stands_on_the_page(examples):
    named = {name for _, _, text in BLOCKS for name in re.findall(r"^def (\w+)", text, flags=re.MULTILINE)}
    made = {name for name, one in vars(examples).items() if getattr(one, "__module__", "") == "example_targets"}
    assert named == made


def test_every_target_of_the_table_exists():
    table = re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE, flags=re.MULTILINE)
    targets = {
        name
        for name in pellucid.__all__
        if isinstance(one := getattr(pellucid, name), type) and issubclass(one, pellucid.Target)
    }
    assert {name for name, _ in table} == targets - {"Target"}
    for name, parameters in table:
        fields = getattr(pellucid, name).__dataclass_fields__
        assert {one.partition("=")[0] for one in parameters.split(", ")} <= set(fields)


class Segments(nn.Module):
    """Two maps of three classes."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, images):
        maps = torch.relu(self.conv(images))
        return {"out": self.head(maps), "aux": self.other(maps)}


def inputs(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_segmentation(examples):
    torch.manual_seed(0)
    model, images = Segments().eval(), inputs(2, 3, 16, 16)
    index = int(model(images)["out"][0, :, 8, 8].argmax())
    found = examples.why_this_segment(model, images, index)
    assert set(found) == {"saliency", "grad_cam", "occlusion"}
    assert all(one.values.abs().max() > 0 for one in found.values())
    in_box = examples.why_in_this_box(model, images, 1, (2, 2, 6, 6))
    reached = in_box.values.abs().amax(dim=(0, 1)).nonzero()
    assert (reached.amin(dim=0).tolist(), reached.amax(dim=0).tolist()) == ([1, 1], [6, 6])  # and a pixel around
    plain = pellucid.explain(model, images, "grad_cam", lambda maps: maps["aux"][:, 1].mean(dim=(1, 2)))
    torch.testing.assert_close(examples.why_in_the_auxiliary_map(model, images, 1).values, plain.values)


def test_detection(examples):
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, "min_size": 64, "max_size": 64}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(box_score_thresh=0.0, **options).eval()
    images = inputs(2, 3, 64, 64)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images)  # fits the normalisations to the random weights, so that the images matter
    model.eval()
    found = examples.why_these_objects(model, images)
    assert found["saliency"].values.shape == images.shape
    assert found["saliency"].target.description["detected"]["class"] == [
        int(one["labels"][one["scores"].argmax()]) for one in model(images)
    ]
    assert found["grad_cam"].meta.layer == "backbone.body.16"
    one = model(images)[0]
    masked = examples.d_rise(model, images, int(one["labels"][0]), one["boxes"][0].tolist(), n_masks=8)
    assert masked.values[0].abs().max() > 0


def test_regression(examples):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).eval(), inputs(4, 5)
    weights = model.weight.detach()
    torch.testing.assert_close(examples.why_this_value(model, x, 2).values, x * weights[2])
    truth = torch.arange(4.0)
    off = examples.why_off_the_mark(model, x, truth).values
    values = model(x)[:, 0].detach()
    after = values[:, None] - x * weights[0]  # a feature hidden
    torch.testing.assert_close(off, ((values - truth) ** 2)[:, None] - (after - truth[:, None]) ** 2)
