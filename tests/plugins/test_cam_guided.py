"""Guided Grad-CAM: the product of its two parts, what it asks for, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import LayerError, Unsuitable


class Net(nn.Module):
    """Two convolutions, pooling between them, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        maps = F.relu(self.second(F.max_pool2d(F.relu(self.first(x)), 2)))
        return self.head(maps.mean(dim=(2, 3)))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("layer", ["auto", "first"])
def test_is_the_upsampled_map_times_guided_backpropagation(layer):
    model, x = Net().double(), images()
    found = pellucid.explain(model, x, pellucid.create("guided_grad_cam", layer=layer), target=1)
    cam = pellucid.explain(model, x, pellucid.create("grad_cam", layer=layer), target=1).values
    guided = pellucid.explain(model, x, "guided_backprop", target=1).values
    assert cam.abs().amax() > 0
    wide = F.interpolate(cam[:, None], (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.values, wide * guided, rtol=1e-12, atol=1e-15)
    assert found.over == "input"
    assert found.checks.named("equals_plain_gradient").passed


def test_shares_the_passes_of_its_two_parts():
    model, x = Net().double(), images()
    techniques = ["guided_grad_cam", "grad_cam", "guided_backprop"]
    together = pellucid.explain(model, x, techniques, target=1)
    for name in techniques:
        alone = pellucid.explain(model, x, name, target=1)
        torch.testing.assert_close(together[name].values, alone.values, rtol=1e-12, atol=1e-15)
    assert together["guided_grad_cam"].meta.passes["backward"] == 2


def test_agrees_with_captum_where_hooks_on_modules_see_every_relu():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).double()  # fmt: skip
    x = images()
    with pytest.warns(UserWarning, match="hooks"):
        expected = (
            attr.GuidedGradCam(model, model[3])
            .attribute(x.clone().requires_grad_(), target=2, interpolate_mode="bilinear")
            .detach()
        )
    found = pellucid.explain(model, x, pellucid.create("guided_grad_cam", layer="3"), target=2).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().amax()))


def test_other_inputs_than_one_image_and_layers_that_are_not_there_are_refused():
    table = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(Unsuitable, match="guided_backprop"):
        pellucid.explain(table, torch.randn(2, 4), "guided_grad_cam", target=0)
    with pytest.raises(LayerError):
        pellucid.explain(Net().double(), images(), pellucid.create("guided_grad_cam", layer="third"), target=0)
