"""The original CAM: the head's own weights, its certificates, and the heads that it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid


def pooled(*head: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), *head
    ).eval()  # fmt: skip


def linear() -> nn.Sequential:
    return pooled(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(5, 4))


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 12, 14, generator=torch.Generator().manual_seed(1))


def test_it_is_the_maps_weighted_by_the_linear_layer():
    model, x = linear().double(), images().double()
    maps, head = model[:4](x).detach(), model[-1]
    classes = torch.tensor([3, 0, 3])
    expected = torch.stack([(head.weight[k, :, None, None] * m).sum(0) for k, m in zip(classes, maps, strict=True)])
    done = pellucid.explain(model, x, "cam", target=classes)
    torch.testing.assert_close(done.values, expected.detach())
    assert done.values.min() < 0
    assert done.values.dtype == torch.float64
    logits = model(x).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(done.values.mean(dim=(1, 2)) + head.bias[classes], logits)
    assert done.checks.named("constant_over_positions").value < 1e-12
    assert done.checks.named("constant_over_inputs").value < 1e-12
    kept = pellucid.explain(model, x, pellucid.create("cam", relu=True), target=classes).values
    torch.testing.assert_close(kept, expected.detach().relu())


def test_grad_cam_is_cam_over_the_number_of_positions_there():
    model, x = linear(), images()
    done = pellucid.explain(model, x, [pellucid.create("cam", relu=True), "grad_cam"], target=1)
    torch.testing.assert_close(done["cam"].values / (5 * 6), done["grad_cam"].values)


def test_a_linear_layer_over_all_positions_then_averaged_is_the_same_head():
    """A 1x1 convolution before the pooling, as in SqueezeNet, is linear in the pooled maps too."""
    model = pooled(nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    done = pellucid.explain(model, images().double(), pellucid.create("cam", layer="3"), target=2)
    expected = (model[4].weight[2, :, 0, 0, None, None] * model[:4](images().double())).sum(1)
    torch.testing.assert_close(done.values, expected.detach())


@pytest.mark.parametrize(
    "head",
    [
        # The gradient is the same at all positions, and yet the head is not linear.
        lambda: (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4)),
        # The head is linear, and yet it does not pool.
        lambda: (nn.Flatten(), nn.Linear(5 * 5 * 6, 4)),
        lambda: (nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    ],
)
def test_other_heads_are_refused(head):
    with pytest.raises(pellucid.Unsuitable, match=r"global average pooling and one linear layer.*grad_cam"):
        pellucid.explain(pooled(*head()), images(), pellucid.create("cam", layer="3"), target=0)


def test_a_layer_too_early_is_refused():
    with pytest.raises(pellucid.Unsuitable, match="layer '1'"):
        pellucid.explain(linear(), images(), pellucid.create("cam", layer="1"), target=0)
