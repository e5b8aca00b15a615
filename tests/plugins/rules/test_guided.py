"""Guided backpropagation: by hand, on every activation, against the plain gradient, and against captum."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import Unit


class Net(nn.Module):
    """Two convolutions with an activation each, pooling, and a linear head."""

    def __init__(self, activation, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x):
        maps = F.max_pool2d(self.activation(self.first(x)), 2)
        return self.head(self.activation(self.second(maps)).mean(dim=(2, 3)))


def images(count: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class ByHand(torch.autograd.Function):
    """An activation whose derivative meets only what is positive."""

    @staticmethod
    def forward(ctx, x, function):
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = function(ctx.x)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, gradient):
        (given,) = torch.autograd.grad(ctx.y, ctx.x, gradient.clamp(min=0))
        return given, None


def by_hand(model: Net, x: torch.Tensor, target: int) -> torch.Tensor:
    plain = model.activation
    guided = Net(lambda value: ByHand.apply(value, plain)).double()
    guided.load_state_dict(model.state_dict(), strict=False)
    x = x.clone().requires_grad_()
    return torch.autograd.grad(guided(x)[:, target].sum(), x)[0]


ACTIVATIONS = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 1.0),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu spelled out": lambda x: x * torch.sigmoid(x),
    "silu turned round": lambda x: torch.sigmoid(x) * x,
    "gelu spelled out": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu of tanh spelled out": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3)))),
    "silu of a sum": lambda x: (y := x + x.abs().mean()) * torch.sigmoid(y),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.1, dtype=x.dtype)),
    "clamp": lambda x: x.clamp(min=0),
    "clamp to six": lambda x: x.clamp(0, 6),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_every_activation_lets_only_the_positive_through(activation):
    model, x = Net(activation).double(), images()
    guided = pellucid.explain(model, x, "guided_backprop", target=1)
    torch.testing.assert_close(guided.values, by_hand(model, x, 1), rtol=1e-10, atol=1e-14)
    plain = pellucid.explain(model, x, pellucid.create("input_x_gradient"), target=1).values / x
    assert (guided.values - plain).abs().amax() > 1e-3 * plain.abs().amax()
    assert guided.checks.named("equals_plain_gradient").passed


def test_a_network_without_activation_is_told_apart():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.Sigmoid(), nn.Linear(4, 3)).double()
    check = pellucid.explain(model, images(size=4), "guided_backprop", target=1).checks.named("equals_plain_gradient")
    assert check.passed is False
    assert "plain gradient" in check.note


def test_bounds_and_gates_that_are_no_activation_carry_the_plain_gradient():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(x * torch.sigmoid(self.gate(x)) + x.clamp(min=-0.5, max=0.5))

    model = Gated().double()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    guided = pellucid.explain(model, x, "guided_backprop", target=1)
    plain = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(plain)[:, 1].sum(), plain)
    torch.testing.assert_close(guided.values, expected, rtol=1e-12, atol=1e-14)
    assert guided.checks.named("equals_plain_gradient").passed is False


def test_one_relu_for_all_layers_and_a_unit_as_target():
    model, x = Net(nn.ReLU(inplace=True)).double(), images()
    guided = pellucid.explain(model, x, "guided_backprop", target=Unit("second", 2))
    x = x.clone().requires_grad_()
    maps = F.max_pool2d(ByHand.apply(model.first(x), F.relu), 2)
    (expected,) = torch.autograd.grad(model.second(maps)[:, 2].mean(dim=(1, 2)).sum(), x)
    torch.testing.assert_close(guided.values, expected, rtol=1e-10, atol=1e-14)


def test_agrees_with_captum_where_hooks_on_modules_see_every_relu():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    x = images()
    with pytest.warns(UserWarning, match="backward hooks"):
        expected = attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=2)
    found = pellucid.explain(model, x, "guided_backprop", target=2).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().amax()))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_32"])
def test_is_not_the_plain_gradient_on_modern_networks(name):
    import torchvision

    torch.manual_seed(0)
    size = {"vit_b_32": {"image_size": 64}}.get(name, {})
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **size).eval()
    with torch.no_grad():  # heads begin at zero and branches at a millionth: as trained, they count
        for key, parameter in model.named_parameters():
            if "layer_scale" in key or "head" in key:
                parameter.normal_(0.0, 0.3)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    results = pellucid.explain(model, x, ["guided_backprop", "saliency"], target=1)
    guided, plain = results["guided_backprop"].values, results["saliency"].values
    assert (guided.abs() - plain).abs().amax() > 1e-2 * plain.amax()
    assert results["guided_backprop"].checks.named("equals_plain_gradient").passed
