"""Deconvolution: by hand with switches, as a projection of units, and against captum."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import Unit


class Net(nn.Module):
    """Two convolutions and max pooling with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x):
        maps = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.head(torch.relu(self.second(maps)).flatten(1))


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unpooled(model: Net, x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Back from the first pooling to the input: switches, un-ReLU, transposed filters."""
    _, switches = F.max_pool2d(F.relu(model.first(x)), 2, return_indices=True)
    return F.conv_transpose2d(F.max_unpool2d(maps, switches, 2).relu(), model.first.weight, padding=1)


@torch.no_grad()
def test_a_class_comes_back_through_transposed_filters_and_switches():
    model, x = Net().double(), images()
    found = pellucid.explain(model, x, "deconvolution", target=2).values
    maps = model.head.weight[2].reshape(1, 6, 4, 4).expand(3, -1, -1, -1).relu()
    expected = unpooled(model, x, F.conv_transpose2d(maps, model.second.weight, padding=1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@torch.no_grad()
def test_a_single_unit_of_a_layer_is_projected():
    model, x = Net().double(), images()
    found = pellucid.explain(model, x, "deconvolution", target=Unit("second", 4, (1, 2))).values
    maps = torch.zeros(3, 6, 4, 4, dtype=torch.float64)
    maps[:, 4, 1, 2] = 1
    expected = unpooled(model, x, F.conv_transpose2d(maps, model.second.weight, padding=1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert (found[:, :, :, 0] == 0).all()  # out of the unit's sight


def test_the_forward_sign_does_not_count_and_the_carried_one_does():
    class Two(nn.Module):
        def forward(self, x):
            return torch.stack([F.relu(x).sum(dim=1), -F.relu(x).sum(dim=1)], dim=1)

    x = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    assert pellucid.explain(Two(), x, "deconvolution", target=0).values.tolist() == [[1.0, 1.0]]
    assert pellucid.explain(Two(), x, "deconvolution", target=1).values.abs().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "activation", [F.relu6, F.gelu, F.silu, F.hardswish, lambda x: x * x.sigmoid(), lambda x: x.clamp(min=0)]
)
def test_no_activation_keeps_its_derivative(activation):
    class One(nn.Module):
        def forward(self, x):
            return activation(x) @ torch.tensor([[2.0], [-3.0]], dtype=x.dtype)

    x = torch.tensor([[0.3, 0.7], [-4.0, -0.5]], dtype=torch.float64)
    assert pellucid.explain(One(), x, "deconvolution", target=0).values.tolist() == [[2.0, 0.0], [2.0, 0.0]]


def test_agrees_with_captum_where_hooks_on_modules_see_every_relu():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    x = images()
    with pytest.warns(UserWarning, match="backward hooks"):
        expected = attr.Deconvolution(model).attribute(x.clone().requires_grad_(), target=2)
    found = pellucid.explain(model, x, "deconvolution", target=2).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().amax()))


def test_a_network_without_activation_is_told_apart():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    found = pellucid.explain(model, torch.randn(2, 4), "deconvolution", target=0)
    assert found.checks.named("equals_plain_gradient").passed is False
