"""Occlusion: against plain loops, captum, and bad parameters."""

import math

import pytest
import torch
from torch import nn

import pellucid
from pellucid_perturbation.occlusion import Occlusion


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 13, 5)).double().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


TARGET = torch.tensor([0, 3, 1])


def plainly(model, inputs, target, window, stride, baseline):
    """One window after the other, one example after the other."""
    shape = inputs.shape[1:]
    values = torch.zeros_like(inputs)
    for example in range(len(inputs)):
        covered = torch.zeros(shape, dtype=inputs.dtype)
        full = model(inputs[example : example + 1])[0, target[example]]
        places = [
            range(0, math.ceil((size - w) / s) * s + 1, s) for size, w, s in zip(shape, window, stride, strict=True)
        ]
        for start in torch.cartesian_prod(*(torch.tensor(list(place)) for place in places)).reshape(-1, len(shape)):
            hidden = inputs[example : example + 1].clone()
            where = tuple(slice(int(a), int(a) + w) for a, w in zip(start, window, strict=True))
            hidden[0][where] = baseline[example][where]
            values[example][where] += full - model(hidden)[0, target[example]]
            covered[where] += 1
        values[example] /= covered
    return values.detach()


def test_the_mean_drop_over_the_covering_windows_is_that_of_a_plain_loop(net, images):
    found = pellucid.explain(net, images, Occlusion(window=(4, 5), stride=(3, 2), baseline="mean"), target=TARGET)
    baseline = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    expected = plainly(net, images, TARGET, (3, 4, 5), (3, 3, 2), baseline)
    assert found.values.dtype == torch.float64
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("window", "stride"), [((3, 5), (2, 3)), (4, 3), (4, 4), ((1, 3, 5), (1, 2, 5)), ((2, 4, 4), (1, 4, 2))]
)
def test_captum_agrees(net, images, window, stride):
    captum = pytest.importorskip("captum.attr")
    found = pellucid.explain(net, images, Occlusion(window, stride, baseline=0.3), target=TARGET).values
    windows, strides = ((size if isinstance(size, tuple) else (size,) * 2) for size in (window, stride))
    windows, strides = ((size if len(size) == 3 else (3, *size)) for size in (windows, strides))
    expected = captum.Occlusion(net).attribute(images, windows, strides, baselines=0.3, target=TARGET)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_single_features_of_a_table_and_windows_of_a_signal():
    torch.manual_seed(0)
    table, signal = torch.randn(4, 6).double(), torch.randn(2, 2, 20).double()
    linear = nn.Linear(6, 3).double()
    found = pellucid.explain(linear, table, Occlusion(), target=1)
    torch.testing.assert_close(found.values, (linear.weight[1] * table).detach())
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(54, 2)).double()
    found = pellucid.explain(net, signal, Occlusion(window=6, stride=4), target=0)
    expected = plainly(net, signal, [0, 0], (2, 6), (2, 4), torch.zeros_like(signal))
    torch.testing.assert_close(found.values, expected)


def test_by_default_an_imagenet_photo_is_seen_through_13_by_13_windows():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = pellucid.explain(net, torch.rand(1, 3, 224, 224), "occlusion", target=0)
    assert found.meta.passes["forward"] == 1 + 13 * 13
    assert found.values.shape == (1, 3, 224, 224)


class Two(nn.Module):
    """Scores two inputs of different shapes."""

    def forward(self, image, table):
        return image.square().sum(dim=(1, 2, 3))[:, None] + table @ torch.arange(8.0).reshape(4, 2).double()


def test_several_inputs_are_hidden_one_at_a_time():
    torch.manual_seed(0)
    image, table = torch.randn(3, 1, 6, 6).double(), torch.randn(3, 4).double()
    found = pellucid.explain(Two(), {"image": image, "table": table}, Occlusion(window=1, stride=1), target=1)
    torch.testing.assert_close(found.values["image"], image.square())
    torch.testing.assert_close(found.values["table"], table * torch.arange(8.0).reshape(4, 2)[:, 1])


def test_an_example_is_explained_the_same_in_any_company(net, images):
    technique = Occlusion(window=5, stride=3)
    together = pellucid.explain(net, images, technique, target=TARGET).values
    alone = pellucid.explain(net, images[1:2], technique, target=TARGET[1:2], batch_size=1).values
    torch.testing.assert_close(together[1:2], alone)


def test_a_constant_model_gives_zero():
    found = pellucid.explain(lambda inputs: torch.full((len(inputs), 2), 7.0), torch.rand(2, 3, 14, 14), Occlusion())
    assert not found.values.any()
    assert found.checks.named("not constant").passed is False


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 13}, "larger than the input"),
        ({"window": 4, "stride": 5}, "never be hidden"),
        ({"window": (3, 3, 3, 3)}, "one for each"),
        ({"window": 0}, "greater than or equal to 1"),
        ({"stride": -1}, "greater than or equal to 1"),
        ({"baseline": "grey"}, "unknown"),
        ({"baseline": torch.zeros(7)}, "does not broadcast"),
        ({"baseline": float("nan")}, "finite"),
    ],
)
def test_bad_parameters_are_refused_with_the_reason(net, images, parameters, message):
    with pytest.raises(pellucid.ParameterError, match=message):
        pellucid.explain(net, images, Occlusion(**parameters), target=TARGET)
