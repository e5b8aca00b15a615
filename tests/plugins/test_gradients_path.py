"""Integrated and interior gradients: quadrature, axioms, certificates, adaptive steps, captum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pellucid


class Smooth(nn.Module):
    """A net with one hidden layer, curved along every path."""

    def __init__(self, seed: int = 0, inputs: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hidden = nn.Linear(inputs, 8)
        self.bend = nn.Tanh()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.bend(self.hidden(x)))


def points(count: int = 4, inputs: int = 6) -> torch.Tensor:
    return 2 * torch.randn(count, inputs, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def mean_gradient(model, x, start, wanted, places, weights, layer=None):
    """The path's mean gradient, one point at a time."""
    total = 0
    for place, weight in zip(places, weights, strict=True):
        here = (start + place * (x - start)).clone().requires_grad_(True)
        kept = []
        hook = (
            layer.register_forward_hook(lambda *event, kept=kept: kept.append(event[2])) if layer is not None else None
        )
        score = model(here)[:, wanted].sum()
        total = total + weight * torch.autograd.grad(score, kept[0] if kept else here)[0]
        if hook is not None:
            hook.remove()
    return total


@pytest.mark.parametrize("quadrature", ["gausslegendre", "trapezoid", "midpoint"])
@pytest.mark.parametrize("n", [2, 7, 20])
def test_integrated_gradients_equal_a_plain_loop(quadrature, n):
    model, x = Smooth().double(), points()
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    if quadrature == "midpoint":
        places, weights = [(k + 0.5) / n for k in range(n)], [1 / n] * n
    elif quadrature == "trapezoid":
        places = [k / (n - 1) for k in range(n)]
        weights = [(0.5 if k in (0, n - 1) else 1) / (n - 1) for k in range(n)]
    else:
        import numpy as np

        places, weights = np.polynomial.legendre.leggauss(n)
        places, weights = ((places + 1) / 2).tolist(), (weights / 2).tolist()
    assert math.isclose(sum(weights), 1)
    expected = (x - start) * mean_gradient(model, x, start, 1, places, weights)
    technique = pellucid.create("integrated_gradients", baselines=start, n_steps=n, quadrature=quadrature)
    done = pellucid.explain(model, x, technique, target=1)
    assert done.values.dtype == torch.float64
    torch.testing.assert_close(done.values, expected, rtol=0, atol=1e-12)
    gain = (model(x) - model(start)[None])[:, 1].detach()
    error = (expected.sum(1) - gain).abs() / gain.abs()
    torch.testing.assert_close(
        torch.tensor(done.checks.named("completeness").each), error.float(), atol=1e-6, rtol=1e-4
    )


def test_gauss_legendre_is_complete_where_the_path_is_smooth():
    model, x = Smooth().double(), points()
    done = pellucid.explain(model, x, pellucid.create("integrated_gradients", n_steps=30), target=0)
    gain = (model(x) - model(torch.zeros_like(x)))[:, 0].detach()
    torch.testing.assert_close(done.values.sum(1), gain, rtol=0, atol=1e-8)
    assert done.checks.named("completeness").passed


def test_saturation_hides_the_cause_from_the_gradient_and_not_from_integrated_gradients():
    class Saturated(nn.Module):
        def forward(self, x):
            return torch.relu(1 - torch.relu(1 - x)).sum(dim=1, keepdim=True)

    x = torch.tensor([[2.0]])
    done = pellucid.explain(Saturated(), x, ["saliency", "integrated_gradients", "interior_gradients"], target=0)
    assert done["saliency"].values.item() == 0
    assert done["integrated_gradients"].values.item() == pytest.approx(1, abs=0.03)
    assert done["interior_gradients"].values.item() == pytest.approx(0.5, abs=0.015)
    exact = pellucid.create("integrated_gradients", n_steps=50, quadrature="midpoint")
    assert pellucid.explain(Saturated(), x, exact, target=0).values.item() == pytest.approx(1, abs=1e-6)


def test_too_few_steps_are_told():
    model, x = Smooth().double(), 20 * points()
    coarse = pellucid.create("integrated_gradients", n_steps=2)
    check = pellucid.explain(model, x, coarse, target=0).checks.named("completeness")
    assert check.passed is False
    assert check.value == max(check.each) > 0.05


def test_adaptive_steps_reach_the_tolerance_each_example_on_its_own():
    model = Smooth().double()
    x = points() * torch.tensor([[0.01], [1.0], [10.0], [30.0]], dtype=torch.float64)
    start = torch.linspace(-0.5, 0.5, 24, dtype=torch.float64).reshape(4, 6)
    adaptive = {"n_steps": 2, "tolerance": 1e-3, "max_steps": 4000}
    done = pellucid.explain(model, x, pellucid.create("integrated_gradients", baselines=start, **adaptive), target=2)
    assert done.checks.named("completeness").passed
    assert done.checks.named("completeness").tolerance == 1e-3
    steps = done.checks.named("n_steps").each
    assert all(math.log2(step / 2).is_integer() for step in steps)
    assert len(set(steps)) > 1
    for k in range(4):
        alone = pellucid.create("integrated_gradients", baselines=start[k : k + 1], n_steps=int(steps[k]))
        values = pellucid.explain(model, x[k : k + 1], alone, target=2).values
        torch.testing.assert_close(done.values[k : k + 1], values, rtol=0, atol=1e-12)


def test_adaptive_steps_stop_at_the_most():
    model, x = Smooth().double(), 30 * points()
    technique = pellucid.create("integrated_gradients", n_steps=2, tolerance=1e-12, max_steps=8)
    done = pellucid.explain(model, x, technique, target=0)
    assert max(done.checks.named("n_steps").each) <= 8
    assert done.checks.named("completeness").passed is False


def test_integrated_gradients_are_linear_symmetric_and_blind_to_the_implementation():
    x = points()
    one, other = Smooth(0).double(), Smooth(9).double()

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = one, other

        def forward(self, x):
            return 0.5 * self.one(x) + 4 * self.other(x)

    def of(model, inputs=x):
        return pellucid.explain(model, inputs, "integrated_gradients", target=1).values

    torch.testing.assert_close(of(Sum()), 0.5 * of(one) + 4 * of(other))

    class Alike(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0], torch.tanh(x[:, 0] * x[:, 1]) + (x[:, 0] + x[:, 1]).exp() * x[:, 2]], dim=1)

    pair = torch.tensor([[0.7, 0.7, -0.4]], dtype=torch.float64)
    values = of(Alike(), pair)
    torch.testing.assert_close(values[:, 0], values[:, 1])

    class Rewritten(nn.Module):
        """The same function with the hidden units in another order, one by one, tanh as exponentials."""

        def __init__(self):
            super().__init__()
            self.model = one

        def forward(self, x):
            out = self.model.head.bias
            for k in reversed(range(8)):
                hidden = x @ self.model.hidden.weight[k] + self.model.hidden.bias[k]
                bent = 1 - 2 / ((2 * hidden).exp() + 1)
                out = out + bent[:, None] * self.model.head.weight[:, k]
            return out

    torch.testing.assert_close(of(Rewritten()), of(one))


def test_a_dummy_input_gets_nothing_and_the_only_cause_everything():
    class First(nn.Module):
        def forward(self, x):
            return x[:, :1] ** 3

    values = pellucid.explain(First(), points(), "integrated_gradients", target=0).values
    torch.testing.assert_close(values[:, 0], points()[:, 0] ** 3)
    assert values[:, 1:].abs().max() == 0


def test_integrated_gradients_agree_with_captum():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    peer = attr.IntegratedGradients(model)
    for ours, theirs, factor in (
        ("gausslegendre", "gausslegendre", 1),
        ("midpoint", "riemann_middle", 1),
        # captum divides by n where n points bound n - 1 intervals, so that its weights do not sum to one.
        ("trapezoid", "riemann_trapezoid", 20 / 19),
    ):
        expected = factor * peer.attribute(x, baselines=0.3, target=4, n_steps=20, method=theirs).detach()
        technique = pellucid.create("integrated_gradients", baselines=0.3, n_steps=20, quadrature=ours)
        values = pellucid.explain(model, x, technique, target=4).values
        assert (values - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_interior_gradients_are_the_integrand_of_integrated_gradients():
    model, x = Smooth().double(), points()
    done = pellucid.explain(
        model,
        x,
        [pellucid.create(name, baselines=0.25) for name in ("integrated_gradients", "interior_gradients")],
        target=0,
    )
    torch.testing.assert_close((x - 0.25) * done["interior_gradients"].values, done["integrated_gradients"].values)
    ours, theirs = done["interior_gradients"].checks, done["integrated_gradients"].checks
    assert ours.named("quadrature").each == pytest.approx(theirs.named("completeness").each, abs=1e-12)


def test_interior_gradients_of_a_layer_equal_a_plain_loop_and_captum():
    model, x = Smooth().double(), points()
    places, weights = [(k + 0.5) / 9 for k in range(9)], [1 / 9] * 9
    expected = mean_gradient(model, x, torch.zeros_like(x), 2, places, weights, layer=model.hidden)
    technique = pellucid.create("interior_gradients", layer="hidden", n_steps=9, quadrature="midpoint")
    done = pellucid.explain(model, x, technique, target=2)
    assert done.over == "hidden"
    torch.testing.assert_close(done.values, expected, rtol=0, atol=1e-12)
    attr = pytest.importorskip("captum.attr")
    peer = attr.InternalInfluence(model, model.hidden)
    theirs = peer.attribute(x, target=2, n_steps=9, method="riemann_middle").detach()
    assert (done.values - theirs).abs().max() <= 1e-5 * theirs.abs().max()


class TwoInputs(nn.Module):
    def forward(self, left, right):
        return torch.stack([(left.sum(1) * right.sum((1, 2))).tanh(), left.sum(1)], dim=1)


def test_several_inputs_share_one_sum():
    inputs = {"left": torch.rand(3, 2, dtype=torch.float64), "right": torch.rand(3, 2, 2, dtype=torch.float64)}
    for parameters in ({}, {"n_steps": 1, "tolerance": 1e-6}):
        done = pellucid.explain(TwoInputs(), inputs, pellucid.create("integrated_gradients", **parameters), target=0)
        gain = TwoInputs()(**inputs)[:, 0]
        sums = done.values["left"].sum(1) + done.values["right"].sum((1, 2))
        torch.testing.assert_close(sums, gain, rtol=1e-5, atol=0)


def test_baselines_of_several_inputs_go_by_name():
    inputs = {"left": torch.rand(3, 2, dtype=torch.float64), "right": torch.rand(3, 2, 2, dtype=torch.float64)}
    start = pellucid.Leaves({"left": torch.full((3, 2), 0.1), "right": torch.full((1, 1, 1), -0.2)})
    technique = pellucid.create("integrated_gradients", baselines=start)
    done = pellucid.explain(TwoInputs(), inputs, technique, target=0)
    there = {"left": torch.full((3, 2), 0.1), "right": torch.full((3, 2, 2), -0.2)}
    gain = (TwoInputs()(**inputs) - TwoInputs()(**there))[:, 0]
    sums = done.values["left"].sum(1) + done.values["right"].sum((1, 2))
    torch.testing.assert_close(sums, gain, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 2.5}, "n_steps"),
        ({"quadrature": "simpson"}, "quadrature"),
        ({"tolerance": 0}, "tolerance"),
        ({"max_steps": -1}, "max_steps"),
        ({"baselines": {}}, "baselines"),
    ],
)
def test_bad_parameters_are_named(parameters, word):
    with pytest.raises(pellucid.ParameterError, match=word):
        pellucid.create("integrated_gradients", **parameters)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"baselines": "grey"}, "'grey' is unknown"),
        ({"baselines": torch.zeros(5)}, "broadcast"),
        ({"baselines": torch.full((6,), torch.nan)}, "not finite"),
        ({"n_steps": 1, "quadrature": "trapezoid"}, "2 or more"),
    ],
)
def test_what_does_not_fit_the_inputs_is_told(parameters, words):
    with pytest.raises(pellucid.ParameterError, match=words):
        pellucid.explain(Smooth().double(), points(), pellucid.create("integrated_gradients", **parameters))
