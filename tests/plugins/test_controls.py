"""The controls: they know the input at most, and never the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import ClassLogit, Sample

CONTROLS = ["random", "constant", "input_magnitude", "edge_filter"]


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_does_not_know_model_class_or_batch(name):
    x = images()
    values = pellucid.explain(model(), x, name, target=0).values
    assert values.shape == x.shape
    assert torch.equal(values, pellucid.explain(model(1), x, name, target=2).values)
    assert torch.equal(values[1:2], pellucid.explain(model(), x[1:2], name).values)
    assert pellucid.explain(model().double(), x.double(), name).values.dtype == torch.float64


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_needs_nothing_of_a_model_and_is_tagged(name):
    record = pellucid.technique(name)
    assert not record.uses
    assert {"control", "class_agnostic"} <= record.tags


def test_random_is_uniform_the_same_for_all_examples_and_decided_by_the_seed():
    sample = Sample(torch.zeros(2, 3, 40, 40), ClassLogit(0))
    values = pellucid.create("random").explain(sample).values
    assert torch.equal(values[0], values[1])
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert values.var() == pytest.approx(1 / 12, abs=0.005)
    other = pellucid.create("random").explain(Sample(sample.inputs, ClassLogit(0), seed=1)).values
    assert not torch.equal(values, other)


def test_input_magnitude_is_the_distance_from_the_baseline():
    x = images()
    assert torch.equal(pellucid.explain(model(), x, "input_magnitude").values, x.abs())
    from_mean = pellucid.create("input_magnitude", baselines="mean")
    expected = (x - x.mean(dim=(2, 3), keepdim=True)).abs()
    torch.testing.assert_close(pellucid.explain(model(), x, from_mean).values, expected)


def test_edges_equal_sobel_by_hand():
    x = images(1).double()
    sample = Sample(x, ClassLogit(0), mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
    values = pellucid.create("edge_filter").explain(sample).values
    bright = 0.299 * 0.2 * x[0, 0] + 0.587 * 0.3 * x[0, 1] + 0.114 * 0.4 * x[0, 2]

    def at(row: int, column: int) -> float:
        return bright[min(max(row, 0), 8), min(max(column, 0), 10)].item()

    for i, j in ((0, 0), (4, 5), (8, 10), (3, 0)):
        across = sum(w * (at(i + k, j + 1) - at(i + k, j - 1)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
        down = sum(w * (at(i + 1, j + k) - at(i - 1, j + k)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
        assert values[0, :, i, j].tolist() == pytest.approx([(across**2 + down**2) ** 0.5] * 3)


def test_a_ramp_has_the_slope_of_the_ramp_and_its_border_is_no_edge():
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    values = pellucid.create("edge_filter").explain(Sample(ramp, ClassLogit(0))).values
    torch.testing.assert_close(values[..., 1:-1], torch.ones(1, 1, 6, 6))
    flat = pellucid.create("edge_filter").explain(Sample(torch.full((1, 3, 5, 5), 7.0), ClassLogit(0))).values
    assert flat.abs().max() == 0


def test_several_inputs():
    class Two(nn.Module):
        def forward(self, left, right):
            return torch.stack([left.sum(1), right.sum((1, 2))], dim=1)

    inputs = {"left": torch.randn(2, 3), "right": torch.randn(2, 2, 2)}
    done = pellucid.explain(Two(), inputs, ["random", "constant", "input_magnitude"])
    for name, leaf in inputs.items():
        assert torch.equal(done["input_magnitude"].values[name], leaf.abs())
        assert torch.equal(done["constant"].values[name], torch.ones_like(leaf))
        assert done["random"].values[name].shape == leaf.shape
    drawn = done["random"].values
    assert not torch.equal(drawn["left"][0, :2], drawn["right"][0, 0])
    with pytest.raises(pellucid.Unsuitable, match="edge_filter needs one image"):
        pellucid.explain(Two(), inputs, "edge_filter")


def test_edges_of_no_image_are_refused():
    with pytest.raises(pellucid.Unsuitable, match="image"):
        pellucid.explain(nn.Linear(4, 2), torch.randn(2, 4), "edge_filter")
