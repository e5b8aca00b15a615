"""What "auto" means, and that what was learnt of a model is of the model as it is now."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pellucid


def near(one, two, tolerance=1e-5):
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()) + 1e-12)


class Backbone(nn.Module):
    """Gives its last map beside what it made of it, as those of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())

    def forward(self, x):
        maps = self.stages(x)
        return {"maps": maps, "pooled": maps.mean(dim=(2, 3))}


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = Backbone(), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.backbone(x)["pooled"])


def test_auto_is_the_name_under_which_the_map_was_used(images):
    model = Pooled().eval()
    found = pellucid.explain(model, images(), "grad_cam", 1)
    wanted = pellucid.explain(model, images(), pellucid.create("grad_cam", layer="backbone.stages.1"), 1)
    assert found.meta.layer == "backbone.stages"
    near(found.values, wanted.values)


class Turned(nn.Module):
    """Pools tokens after it turned them, where the channels are as many as the positions of a larger grid."""

    def __init__(self, flat):
        super().__init__()
        self.patches, self.merged = nn.Conv2d(3, 16, 2, stride=2), nn.Conv2d(16, 64, 2, stride=2)
        self.norm, self.head, self.flat = nn.LayerNorm(64), nn.Linear(64, 4), flat

    def forward(self, x):
        maps = self.merged(self.patches(x)).flatten(2)  # (B, 64, 16), which are no 64 tokens
        maps = maps if self.flat else self.norm(maps.transpose(1, 2)).transpose(1, 2)
        return self.head(torch.tanh(maps).mean(dim=2))


@pytest.mark.parametrize(("flat", "layer"), [(True, "merged"), (False, "norm")])
def test_channels_before_positions_are_no_tokens(flat, layer):
    torch.manual_seed(0)
    found = pellucid.explain(Turned(flat).eval(), torch.randn(2, 3, 16, 16), "grad_cam", 1)
    assert (found.meta.layer, found.values.shape) == (layer, (2, 4, 4))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2)
        self.one, self.two, self.turned = nn.Linear(6, 4), nn.Linear(6, 4), False

    def forward(self, x):
        low = self.low(x)
        high = self.high(low)
        return {"out": self.one(high.mean(dim=(2, 3))), "aux": self.two(low.mean(dim=(2, 3)))}


@pytest.mark.parametrize("order", [("out", "aux"), ("aux", "out")])
def test_auto_is_of_the_output_that_counts(order, images):
    model = TwoHeads().eval()
    layers = {
        output: pellucid.explain(pellucid.adapt(model, output=output), images(), "grad_cam", 1).meta.layer
        for output in order
    }
    assert layers == {"out": "high", "aux": "low"}
    found = [
        pellucid.explain(pellucid.adapt(model, output=pick), images(), "grad_cam", 1).meta.layer
        for pick in (lambda out: out["aux"], lambda out: out["out"])
    ]
    assert found == ["low", "high"]


class Switched(nn.Module):
    """Calls its layers in the order that a flag says, so that no place is missed."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Linear(3, 4)
        self.turned, self.state = False, (torch.zeros(2), torch.zeros(2))

    def forward(self, x):
        self.state = (x[0, 0].clone(), x[0, 1].clone())  # tensors are no plain attributes, and are not compared
        for layer in (self.two, self.one) if self.turned else (self.one, self.two):
            x = layer(x)
        return self.head(x.mean(dim=(2, 3)))


def test_a_flag_of_the_model_may_change_what_auto_means(images):
    model, names = Switched().eval(), []
    for model.turned in (False, True, False):
        names.append(pellucid.explain(model, images(), "grad_cam", 1).meta.layer)
    assert names == ["two", "one", "two"]


def test_a_graph_of_rules_is_that_of_the_model_as_it_is_now(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    before = pellucid.explain(model, images(), "guided_backprop", 1).values
    model[0].stride = (2, 2)
    found = pellucid.explain(model, images(), "guided_backprop", 1).values
    wanted = pellucid.explain(copy.deepcopy(model), images(), "guided_backprop", 1).values
    near(found, wanted)
    assert not torch.allclose(found, before)
