"""Deep Taylor decomposition: derived again, conservation, signs, places of the root, bad input."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import pellucid
from pellucid import Sample
from pellucid.protocol import ClassLogit


def net(bias: float = -0.1) -> nn.Sequential:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip
    for part in model:
        if getattr(part, "bias", None) is not None:
            nn.init.constant_(part.bias, bias)
            nn.init.normal_(part.weight, 0.05, 0.2)
    return model.double().eval()


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def explained(model, x, target=None, **options):
    return pellucid.explain(model, x, pellucid.create("deep_taylor", **options), target=target)


def test_it_is_what_the_paper_derives_layer_by_layer():
    model, x = net(), images(1)
    best = int(model(x).argmax())
    assert model(x)[0, best] > 0
    hidden = model[:2](x)
    pooled = model[2](hidden)
    flat = pooled.flatten()
    second = model[4:6](flat[None])[0]

    def z_plus(values, weight, relevance):
        z = values * weight.clamp(min=0)
        return (z / z.sum(1, keepdim=True) * relevance[:, None]).nan_to_num(0).sum(0)

    start = torch.zeros(3, dtype=torch.float64)
    start[best] = model(x)[0, best]
    r_second = z_plus(second, model[6].weight, start)
    r_flat = z_plus(flat, model[4].weight, r_second)
    ratio = (r_flat.reshape(pooled.shape) / pooled).nan_to_num(0)
    r_hidden = hidden * torch.repeat_interleave(torch.repeat_interleave(ratio, 2, 2), 2, 3) / 4
    dense = torch.autograd.functional.jacobian(lambda t: model[0](t[None]).flatten(), x[0]).reshape(-1, 32)
    pixels = x.flatten()
    z = pixels * dense - 0.0 * dense.clamp(min=0) - 1.0 * dense.clamp(max=0)
    expected = (z / z.sum(1, keepdim=True) * r_hidden.flatten()[:, None]).sum(0).reshape(x.shape[1:])
    found = explained(model, x, best, low=0.0, high=1.0, stabilizer=0.0).values[0]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("root", ["box", "unbounded", "positive"])
def test_a_positive_score_is_conserved_by_values_that_are_not_negative(root):
    for bias in (-0.1, 0.1):
        model, x = net(bias), images()
        scores = model(x).amax(1)
        assert (scores > 0).all()
        result = explained(model, x, root=root, low=0.0, high=1.0)
        assert (result.values >= -1e-12).all()
        torch.testing.assert_close(result.values.flatten(1).sum(1), scores.detach(), rtol=1e-6, atol=0)
        assert result.checks.passed


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_it_is_conserved_over_architectures(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).double().eval()
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.zeros_(part.bias)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    score = float(model(x)[0, 5].detach())
    result = explained(model, x, 5, stabilizer=0.0)
    assert float(result.values.sum()) == pytest.approx(score, rel=1e-6)
    assert result.checks.named("ruled").passed


def test_a_residual_sum_keeps_what_is_positive_positive():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(32, 2)

        def forward(self, x):
            return self.head(torch.relu(x + self.conv(x)).flatten(1))

    model, x = Residual().double().eval(), images()
    target = model(x).argmax(1)
    values = explained(model, x, target, root="positive").values[model(x).amax(1) > 0]
    assert len(values)
    assert (values >= -1e-12).all()
    signed = pellucid.create("lrp", composite={"weighted": "z_plus", "sum": "epsilon"})
    assert (pellucid.explain(model, x, signed, target=target).values < 0).any()


def test_the_box_is_black_to_white_where_the_normalisation_is_known():
    technique = pellucid.create("deep_taylor")
    known = Sample(images(1)[:, :1], ClassLogit(0), mean=(0.5,), std=(0.25,))
    rule = next(technique.explain(known)).rules.table["first"]
    assert (rule.low, rule.high) == ((-2.0,), (2.0,))
    unknown = Sample(images(1), ClassLogit(0))
    rule = next(technique.explain(unknown)).rules.table["first"]
    assert (rule.low, rule.high) == (None, None)
    model, x = net(), images()
    own = explained(model, x, 0).values
    for row, values in zip(x, own, strict=True):
        given = explained(model, row[None], 0, low=float(row.min()), high=float(row.max())).values[0]
        torch.testing.assert_close(values, given, rtol=1e-9, atol=1e-13)


def test_relevance_at_a_layer_sums_to_the_score_as_well():
    model, x = net(), images()
    result = explained(model, x, layer="1")
    assert result.values.shape == (3, 6, 4, 4)
    torch.testing.assert_close(result.values.flatten(1).sum(1), model(x).amax(1).detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"root": "boxed"}, "'box', 'unbounded' or 'positive'"),
        ({"low": "white"}, "low='white'"),
        ({"low": 1.0, "high": 0.0}, "above"),
        ({"stabilizer": -1e-9}, "stabilizer"),
        ({"canonizers": ("merge",)}, "batch_norm"),
    ],
)
def test_wrong_parameters_are_refused(options, told):
    with pytest.raises(pellucid.ParameterError, match=told):
        pellucid.create("deep_taylor", **options)


def test_a_bound_of_the_wrong_shape_is_refused():
    with pytest.raises(pellucid.ParameterError, match=r"high.*\(4,\).*\(2, 4, 4\)"):
        explained(net(), images(), 0, low=0.0, high=torch.ones(4))
