"""Models that change tensors in place, and layers whose outputs are views or other layers' outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def near(one, two, tolerance=1e-5):
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()) + 1e-12)


def gradient(function, x, chosen=1):
    """The plain gradient of a class's score."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(x.clone())[:, chosen].sum(), x)
    return slope


class InPlace(nn.Module):
    """Everything that is done in place, in one network."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x.mul_(0.5)  # the input itself
        x = self.relu(self.conv1(x))
        y = self.same(x)
        x = self.conv2(x)
        x += y  # a residual
        self.relu(x)  # the result is not used, but what it changed is
        x = x * 1.5
        x[:, 0] = 0.25  # a part
        x.sub_(0.1)
        F.relu(x, inplace=True)
        return self.head(x.mean(dim=(2, 3)))

    def plainly(self, x, seen=lambda name, value: value):
        """The same with nothing in place; `seen` is told of every value and may exchange it."""
        x = seen("conv1", self.conv1(x * 0.5))
        x = seen("relu:0", F.relu(x))
        y = seen("same", x)
        x = seen("conv2", self.conv2(x)) + y
        x = seen("relu:1", F.relu(x)) * 1.5
        x = torch.cat([torch.full_like(x[:, :1], 0.25), x[:, 1:]], dim=1)
        x = seen("/relu:0", F.relu(seen("/sub:0", x - 0.1)))
        return self.head(x.mean(dim=(2, 3)))


def plain_layer(model, x, name, chosen=1):
    """A layer's value and the class's gradient by it, from the network that does nothing in place."""
    values = {}
    model.plainly(x, lambda other, value: values.setdefault(other, value))
    leaf = values[name].detach().clone().requires_grad_()
    score = model.plainly(x, lambda other, value: leaf if other == name else value)[:, chosen].sum()
    return leaf.detach(), torch.autograd.grad(score, leaf)[0]


@pytest.fixture
def in_place():
    torch.manual_seed(0)
    return InPlace().double().eval()


@pytest.mark.parametrize("name", ["conv1", "relu:0", "same", "conv2", "relu:1", "/sub:0", "/relu:0"])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_layers_of_a_model_that_works_in_place(in_place, images, t, planned, name, with_inputs):
    x = images(dtype=torch.float64)
    value, slope = plain_layer(in_place, x, name)
    gradients = [name, "input"] if with_inputs else [name]
    seen = planned(in_place, x, t.look(activations=[name], gradients=gradients), 1)
    near(seen.activations[name], value, 1e-10)
    near(seen.gradients[name], slope, 1e-10)
    if with_inputs:
        near(seen.gradients["input"], gradient(in_place.plainly, x), 1e-10)
    near(planned(in_place, x, t.activations(name), 1)[name], value, 1e-10)
    assert x.equal(images(dtype=torch.float64))


def test_many_layers_of_a_model_that_works_in_place(in_place, images, t, planned):
    x, names = images(dtype=torch.float64), ["conv1", "relu:0", "/relu:0", "/sub:0", "conv2", "relu:1"]
    seen = planned(in_place, x, t.look(activations=names, gradients=names), 1)
    for name in names:
        value, slope = plain_layer(in_place, x, name)
        near(seen.activations[name], value, 1e-10)
        near(seen.gradients[name], slope, 1e-10)


class Aliased(nn.Module):
    """A layer's output, and a view of it, that are changed in place by another name."""

    def __init__(self, view):
        super().__init__()
        self.conv, self.same, self.head = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(400, 3)
        self.view = view

    def forward(self, x):
        x = self.conv(x)
        y = self.same(x.flatten(1) if self.view else x)
        before = y * 2
        x.sigmoid_()
        return self.head(before.flatten(1) + x.flatten(1))


@pytest.mark.parametrize("view", [False, True])
def test_an_output_that_is_changed_by_another_name(images, t, planned, view):
    torch.manual_seed(0)
    model, x = Aliased(view).eval(), images()
    seen = planned(model, x, t.look(activations=["same"], gradients=["input"]), 1)
    expected = model.conv(x)
    near(seen.activations["same"], (expected.flatten(1) if view else expected).detach())
    near(seen.gradients["input"], gradient(model, x))
    near(planned(model, x, t.activations("same"), 1)["same"], seen.activations["same"])


class Views(nn.Module):
    """Layers whose outputs are views: flattened, transposed, cut, expanded."""

    def __init__(self):
        super().__init__()
        self.conv, self.flat, self.head = nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(4, 3)
        self.expand = Expand()

    def forward(self, x):
        x = self.flat(self.conv(x)).transpose(1, 2)[:, 3:]
        return self.head(self.expand(x.mean(dim=1))).mean(dim=1)


class Expand(nn.Module):
    def forward(self, x):
        return x[:, None].expand(-1, 5, -1)


def test_outputs_that_are_views(images, t, planned):
    torch.manual_seed(0)
    model, x, names = Views().eval(), images(), ["conv", "flat", "expand", "/transpose", "/getitem"]
    seen = planned(model, x, t.look(activations=names, gradients=names), 1)
    conv = model.conv(x).detach()
    near(seen.activations["flat"], conv.flatten(2))
    near(seen.activations["/getitem"], conv.flatten(2).transpose(1, 2)[:, 3:])
    near(seen.gradients["/transpose"], seen.gradients["flat"].transpose(1, 2))
    near(seen.gradients["flat"], seen.gradients["conv"].flatten(2))
    assert seen.gradients["flat"][:, :, :3].abs().max() == 0
    near(seen.gradients["expand"], (model.head.weight[1] / 5).expand(3, 5, 4).detach())
