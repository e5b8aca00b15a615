"""DeepLIFT and DeepSHAP: derived again on pairs of values, known examples, completeness, captum, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import InputError, ParameterError


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().amax()))


# Derived again: mathematics on pairs (x, x') whose backward pass carries multipliers.


class Multiplied(torch.autograd.Function):
    """A function of (here, ..., there, ...) with multipliers given beforehand, one function for each argument."""

    @staticmethod
    def forward(ctx, value, multipliers, *arguments):
        ctx.multipliers = multipliers
        return value.clone()

    @staticmethod
    def backward(ctx, carried):
        return None, None, *(multiplier(carried) for multiplier in ctx.multipliers)


def pointwise(function, pair):
    here, there = pair[0].detach(), pair[1]
    slope = (function(here) - function(there)) / (here - there)
    return Multiplied.apply(function(here), [lambda carried: carried * slope], pair[0]), function(there)


def product(function, one, other):
    middles = [((here + there) / 2).detach().requires_grad_() for here, there in (one, other)]
    made = function(*middles)

    def share(place):
        return lambda carried: torch.autograd.grad(made, middles[place], carried, retain_graph=True)[0]

    value = function(one[0].detach(), other[0].detach())
    return Multiplied.apply(value, [share(0), share(1)], one[0], other[0]), function(one[1], other[1])


def linear(function, *pairs):
    return function(*(pair[0] for pair in pairs)), function(*(pair[1] for pair in pairs))


def softmax(pair):
    powers = pointwise(torch.exp, pair)
    whole = linear(lambda value: value.sum(dim=-1, keepdim=True), powers)
    return product(torch.mul, powers, pointwise(torch.reciprocal, whole))


def layer_norm(norm, pair):
    centred = linear(lambda value: value - value.mean(dim=-1, keepdim=True), pair)
    spread = linear(lambda value: value.mean(dim=-1, keepdim=True) + norm.eps, pointwise(torch.square, centred))
    scaled = product(torch.mul, centred, pointwise(torch.rsqrt, spread))
    return linear(lambda value: value * norm.weight + norm.bias, scaled)


class Attention(nn.Module):
    """One head of attention with a gated GELU layer: products, softmax, and normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.gate, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2) / 6**0.5).softmax(dim=-1) @ v)
        x = x + self.down(F.gelu(self.up(x)) * torch.sigmoid(self.gate(x)))
        return self.head(x.mean(dim=1))

    def on_pairs(self, pair):
        q, k, v = (
            linear(lambda x, n=n: self.qkv(x).chunk(3, dim=-1)[n], layer_norm(self.norm, pair)) for n in range(3)
        )
        logits = linear(lambda x: x / 6**0.5, product(lambda a, b: a @ b.transpose(1, 2), q, k))
        pair = linear(lambda x, more: x + self.out(more), pair, product(torch.matmul, softmax(logits), v))
        gate = pointwise(torch.sigmoid, linear(self.gate, pair))
        gated = product(torch.mul, pointwise(F.gelu, linear(self.up, pair)), gate)
        pair = linear(lambda x, more: x + self.down(more), pair, gated)
        return linear(lambda x: self.head(x.mean(dim=1)), pair)


def test_attention_norms_and_gates_equal_the_mathematics_on_pairs():
    model, x, start = Attention().double(), numbers(3, 4, 6), numbers(4, 6, seed=2)
    found = pellucid.explain(model, x, pellucid.create("deeplift", baselines=start), target=1)
    here = x.clone().requires_grad_()
    with torch.no_grad():
        there = start.expand_as(x)
    outputs, _ = model.on_pairs((here, there))
    (multipliers,) = torch.autograd.grad(outputs[:, 1].sum(), here)
    close(found.values, (x - start) * multipliers)
    assert found.checks.passed
    assert found.checks.named("completeness").value < 1e-12


# Known examples.


class Saturating(nn.Module):
    """relu(1 - relu(1 - x)) of the sum of the features: flat from one on."""

    def forward(self, x):
        return torch.relu(1 - torch.relu(1 - x.sum(dim=1, keepdim=True)))


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_a_saturated_score_is_shared_out_although_its_gradient_is_zero(rule):
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    found = pellucid.explain(Saturating(), x, pellucid.create("deeplift", rule=rule), target=0)
    torch.testing.assert_close(found.values, torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64))
    gradient = pellucid.explain(Saturating(), x, "input_x_gradient", target=0)
    assert (gradient.values == 0).all()


class Least(nn.Module):
    """min(x1, x2) as x1 - relu(x1 - x2), by a weighted layer or by a difference."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.difference = nn.Linear(2, 1, bias=False)
        self.weighted = weighted
        with torch.no_grad():
            self.difference.weight.copy_(torch.tensor([[1.0, -1.0]]))

    def forward(self, x):
        apart = self.difference(x) if self.weighted else x[:, :1] - x[:, 1:]
        return x[:, :1] - torch.relu(apart)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("x", [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (5.0, 4.0)])
def test_the_lesser_of_two_is_shared_between_both(weighted, x):
    model = Least(weighted).double()
    least = min(x)
    found = {
        rule: pellucid.explain(
            model, torch.tensor([x], dtype=torch.float64), pellucid.create("deeplift", rule=rule), target=0
        )
        .values[0]
        .tolist()
        for rule in ("rescale", "reveal_cancel")
    }
    assert found["reveal_cancel"] == pytest.approx([least / 2, least / 2], abs=1e-12)
    one_gets_all = [least, 0.0] if x[0] < x[1] else [0.0, least]
    if x[0] != x[1]:
        assert found["rescale"] == pytest.approx(one_gets_all, abs=1e-12)


class Maximum(nn.Module):
    """The largest of three windows, as max pooling has it."""

    def forward(self, x):
        return F.max_pool1d(x[:, None], 3).flatten(1)


def test_max_pooling_is_shared_out_in_full():
    x, start = numbers(5, 6), numbers(6, seed=3)
    found = pellucid.explain(Maximum(), x, pellucid.create("deeplift", baselines=start), target=1).values
    assert (found[:, :3] == 0).all()
    rise = x[:, 3:].amax(dim=1) - start[3:].amax()
    close(found.sum(dim=1), rise)


# Reveal-cancel.


@pytest.mark.parametrize("activation", [F.relu, torch.tanh, F.gelu, F.silu, F.leaky_relu])
@pytest.mark.parametrize("tokens", [(), (4,)])
def test_reveal_cancel_is_the_shapley_value_of_the_positive_and_the_negative_terms(activation, tokens):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.head(activation(self.inner(x))).reshape(len(x), -1, 3).mean(dim=1)

    model, x, start = Net().double(), numbers(2, *tokens, 5), numbers(5, seed=2)
    found = pellucid.explain(model, x, pellucid.create("deeplift", rule="reveal_cancel", baselines=start), target=1)
    expected = torch.zeros_like(x)
    before = (model.inner.weight @ start + model.inner.bias).tolist()
    for place in itertools.product(*map(range, x.shape[:-1])):
        for unit in range(7):
            terms = model.inner.weight[unit] * (x[place] - start)
            up, down = terms.clamp(min=0).sum(), terms.clamp(max=0).sum()
            f = {s: activation(before[unit] + s[0] * up + s[1] * down) for s in itertools.product((0, 1), (0, 1))}
            plus = (f[1, 0] - f[0, 0] + f[1, 1] - f[0, 1]) / 2
            minus = (f[0, 1] - f[0, 0] + f[1, 1] - f[1, 0]) / 2
            share = torch.where(terms > 0, plus * terms / up, minus * terms / down)
            expected[place] += model.head.weight[1, unit] * share / max(1, len(tokens) * 4)
    close(found.values, expected.detach())


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_networks_with_everything_stay_complete(rule):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.second = nn.Conv2d(6, 6, 3, padding=1, groups=3)
            self.gate, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 3)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

        def forward(self, x):
            maps = F.max_pool2d(F.relu6(self.norm(self.first(x))), 3, 2, 1)
            maps = F.relu(F.silu(self.second(maps)) + maps, inplace=True)
            maps = maps * torch.sigmoid(self.gate(maps.mean(dim=(2, 3), keepdim=True)))
            return self.head(F.normalize(maps.amax(dim=(2, 3)), dim=1))

    found = pellucid.explain(Net().double(), numbers(2, 3, 8, 8), pellucid.create("deeplift", rule=rule), target=1)
    assert found.checks.named("completeness").value < 1e-11
    assert found.checks.passed, found.checks


# Exact relations and peers.


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 8),
        nn.Sigmoid(), nn.Linear(8, 3)
    ).double()  # fmt: skip


def test_without_biases_it_is_input_times_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(45, 3, bias=False)
    ).double()
    x = numbers(3, 2, 8, 8)
    both = pellucid.explain(model, x, ["deeplift", "input_x_gradient"], target=1)
    close(both["deeplift"].values, both["input_x_gradient"].values)


def test_agrees_with_captum_on_a_plain_network():
    attr = pytest.importorskip("captum.attr")
    model, x, start = plain_net(), numbers(3, 2, 8, 8), numbers(1, 2, 8, 8, seed=2)
    with pytest.warns(UserWarning, match="hooks"):
        expected = attr.DeepLift(model).attribute(x.clone().requires_grad_(), start.requires_grad_(), target=2)
    found = pellucid.explain(model, x, pellucid.create("deeplift", baselines=start.detach()), target=2)
    close(found.values, expected.detach(), 1e-5)


def test_deep_shap_agrees_with_captum_and_with_the_mean_over_single_baselines():
    attr = pytest.importorskip("captum.attr")
    model, x, starts = plain_net(), numbers(2, 2, 8, 8), numbers(4, 2, 8, 8, seed=2)
    found = pellucid.explain(model, x, pellucid.create("deep_shap", baselines=starts), target=2)
    with pytest.warns(UserWarning, match="hooks"):
        expected = attr.DeepLiftShap(model).attribute(x, starts, target=2)
    close(found.values, expected.detach(), 1e-5)
    single = [pellucid.explain(model, x, pellucid.create("deeplift", baselines=one), target=2).values for one in starts]
    close(found.values, torch.stack(single).mean(dim=0))
    assert found.checks.named("completeness").value < 1e-11


def test_deep_shap_takes_the_other_examples_as_baselines_by_default():
    model, x = plain_net(), numbers(3, 2, 8, 8)
    found = pellucid.explain(model, x, "deep_shap", target=2).values
    for row in range(3):
        others = x[[other for other in range(3) if other != row]]
        expected = pellucid.explain(model, x[[row]], pellucid.create("deep_shap", baselines=others), target=2).values
        close(found[[row]], expected)


def test_deep_shap_of_a_linear_model_is_its_shapley_values():
    model, x, starts = nn.Linear(4, 2).double(), numbers(3, 4), numbers(5, 4, seed=2)
    found = pellucid.explain(model, x, pellucid.create("deep_shap", baselines=starts), target=1).values
    close(found, (model.weight[1] * (x - starts.mean(dim=0))).detach())


# Completeness on architectures; the benchmark has some twenty-five.


@pytest.mark.parametrize("name", ["vgg11_bn", "googlenet", "efficientnet_b0", "shufflenet_v2_x0_5", "swin_t"])
def test_values_sum_to_the_scores_rise_on_any_architecture(name):
    import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **options).eval().double()
    found = pellucid.explain(model, numbers(1, 3, 64, 64), "deeplift", target=1)
    assert found.checks.named("completeness").value < 1e-9
    assert found.checks.passed, found.checks


def test_inputs_equal_to_the_baseline_in_part_or_in_full_get_finite_values():
    model, x = Attention().double(), numbers(2, 4, 6)
    start = x[0].clone()
    start[:2] += 1
    found = pellucid.explain(model, x, pellucid.create("deeplift", baselines=start), target=1)
    assert (found.values[0, 2:] == 0).all()
    assert found.checks.named("completeness").value < 1e-11
    same = pellucid.explain(model, x, pellucid.create("deeplift", baselines=x), target=1)
    assert (same.values == 0).all()


def test_several_inputs():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, left, right):
            return torch.relu(self.left(left)) * torch.tanh(self.right(right))

    x = {"left": numbers(2, 3), "right": numbers(2, 2, seed=2)}
    found = pellucid.explain(Both().double(), x, "deeplift", target=1)
    assert {name: tuple(leaf.shape) for name, leaf in found.values.items()} == {"left": (2, 3), "right": (2, 2)}
    assert found.checks.named("completeness").value < 1e-11


def test_a_target_that_is_not_linear_in_the_outputs_fails_the_certificate():
    x = numbers(2, 2, 8, 8)
    found = pellucid.explain(plain_net(), x, "deeplift", target=pellucid.ClassLogit(1, probability=True))
    assert found.checks.named("completeness").passed is False


# Bad input.


@pytest.mark.parametrize("technique", ["deeplift", "deep_shap"])
def test_bad_parameters_are_refused(technique):
    model, x = plain_net(), numbers(2, 2, 8, 8)
    with pytest.raises(ParameterError, match="rule"):
        pellucid.create(technique, rule="rescaled")
    with pytest.raises(ParameterError, match=r"baselines? ha(s|ve) shape \(3, 7, 7\)"):
        pellucid.explain(model, x, pellucid.create(technique, baselines=torch.zeros(3, 7, 7)), target=0)
    with pytest.raises(ParameterError, match="not finite"):
        pellucid.explain(model, x, pellucid.create(technique, baselines=torch.full((1, 2, 8, 8), torch.nan)), target=0)
    with pytest.raises(ParameterError, match="unknown"):
        pellucid.explain(model, x, pellucid.create(technique, baselines="grey"), target=0)


def test_deep_shap_needs_something_to_compare_to():
    with pytest.raises(InputError, match="one example and no baselines"):
        pellucid.explain(plain_net(), numbers(1, 2, 8, 8), "deep_shap", target=0)
