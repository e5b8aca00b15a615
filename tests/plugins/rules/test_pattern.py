"""PatternNet and PatternAttribution: Kindermans' toy, estimators by hand, streaming, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import InputError, ParameterError
from pellucid_rules.patterns import Patterns


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def only(patterns: Patterns) -> torch.Tensor:
    (direction,) = patterns.directions.values()
    return direction


class Neuron(nn.Module):
    """One neuron with given weights, with a ReLU or without."""

    def __init__(self, weight, *, relu: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(len(weight), 1, bias=False)
        self.relu = relu
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([weight]))

    def forward(self, x):
        return torch.relu(self.linear(x)) if self.relu else self.linear(x)


def toy(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """x = y (1, 0) + e (1, 1), with e and -e for each y so that the two are uncorrelated in every regime."""
    signal, distractor = numbers(count), 3 * numbers(count, seed=2)
    signal, distractor = torch.cat([signal, signal]), torch.cat([distractor, -distractor])
    return torch.stack([signal + distractor, distractor], dim=1), signal


@pytest.mark.parametrize("estimator", ["linear", "two_component"])
@pytest.mark.parametrize("relu", [True, False])
def test_kindermans_toy(estimator, relu):
    """The weights (1, -1) cancel the distractor (1, 1); the signal lies along (1, 0)."""
    x, signal = toy()
    model = Neuron([1.0, -1.0], relu=relu).double()
    patterns = Patterns.fit(model, x, estimator)
    torch.testing.assert_close(only(patterns), torch.tensor([[1.0, 0.0]], dtype=torch.float64), rtol=0, atol=1e-12)

    net = pellucid.explain(model, x, pellucid.create("pattern_net", patterns=patterns), target=0).values
    score = signal.relu() if relu else signal
    torch.testing.assert_close(net, torch.stack([score, 0 * score], dim=1), rtol=0, atol=1e-11)
    shared = pellucid.explain(model, x, pellucid.create("pattern_attribution", patterns=patterns), target=0).values
    torch.testing.assert_close(shared, net, rtol=0, atol=1e-11)  # w a = (1, -1) * (1, 0)
    gradient = pellucid.explain(model, x, "input_x_gradient", target=0).values
    assert gradient[:, 1].abs().amax() > 1  # which gives the distractor credit


class Net(nn.Module):
    """A convolution with BatchNorm and ReLU, another one, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 2, groups=2)
        self.inner, self.head = nn.Linear(6 * 9, 5), nn.Linear(5, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        maps = F.relu(self.norm(self.first(x)), inplace=True)
        maps = F.relu(self.second(maps)).flatten(1)
        return self.head(F.gelu(self.inner(maps)))


def estimated(weight, bias, inputs, estimator, activated):
    """The pattern of each neuron of a dense layer (outputs, inputs) at inputs (N, inputs), from its definition."""
    directions = []
    for w, b in zip(weight, bias, strict=True):
        y = inputs @ w
        regime = (y + b > 0) if estimator == "two_component" and activated else torch.ones_like(y, dtype=torch.bool)
        covariance = (inputs * y[:, None])[regime].mean(dim=0) - inputs[regime].mean(dim=0) * y.mean()
        directions.append((covariance / (w @ covariance)).nan_to_num(0.0))  # a unit that is never active has none
    return torch.stack(directions)


@pytest.mark.parametrize("estimator", ["two_component", "linear"])
@torch.no_grad()
def test_patterns_of_every_layer_equal_their_definition(estimator):
    model, data = Net().double().eval(), numbers(40, 2, 8, 8)
    fitted = list(Patterns.fit(model, data, estimator).directions.values())[::-1]
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    weight = model.first.weight * scale[:, None, None, None]
    bias = (model.first.bias - model.norm.running_mean) * scale + model.norm.bias

    patches = F.unfold(data, 3, padding=1, stride=2).movedim(1, -1).reshape(-1, 18)
    expected = estimated(weight.flatten(1), bias, patches, estimator, True)
    torch.testing.assert_close(fitted[0].flatten(1), expected, rtol=1e-8, atol=1e-9)
    maps = F.relu(model.norm(model.first(data)))
    for group in range(2):
        patches = F.unfold(maps[:, 2 * group : 2 * group + 2], 2).movedim(1, -1).reshape(-1, 8)
        part = slice(3 * group, 3 * group + 3)
        expected = estimated(model.second.weight[part].flatten(1), model.second.bias[part], patches, estimator, True)
        torch.testing.assert_close(fitted[1][part].flatten(1), expected, rtol=1e-8, atol=1e-9)
    maps = F.relu(model.second(maps)).flatten(1)
    expected = estimated(model.inner.weight, model.inner.bias, maps, estimator, True)
    torch.testing.assert_close(fitted[2], expected, rtol=1e-8, atol=1e-9)
    expected = estimated(model.head.weight, model.head.bias, F.gelu(model.inner(maps)), estimator, False)
    torch.testing.assert_close(fitted[3], expected, rtol=1e-8, atol=1e-9)


def test_projection_and_attribution_are_gradients_along_the_patterns():
    model, data, x = Net().double().eval(), numbers(40, 2, 8, 8), numbers(3, 2, 8, 8, seed=5)
    patterns = Patterns.fit(model, data)
    head, inner, second, first = patterns.directions.values()

    def back(directions, x):
        """The gradient by hand, with other weights on the way back."""
        one = model.norm(model.first(x))
        two = model.second(F.relu(one))
        three = model.inner(F.relu(two).flatten(1)).requires_grad_()
        (slope,) = torch.autograd.grad(F.gelu(three).sum(), three)
        carried = (directions[0][1] * slope) @ directions[1]
        carried = carried.reshape(two.shape) * (two > 0)
        carried = F.conv_transpose2d(carried, directions[2], groups=2) * (one > 0)
        return F.conv_transpose2d(carried, directions[3], padding=1, stride=2, output_padding=1)

    with torch.no_grad():
        scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        weights = [
            model.head.weight,
            model.inner.weight,
            model.second.weight,
            model.first.weight * scale[:, None, None, None],
        ]
        scores = model(x)[:, 1].reshape(-1, 1, 1, 1)
    for name, directions in (
        ("pattern_net", [head, inner, second, first]),
        ("pattern_attribution", [w * a for w, a in zip(weights, (head, inner, second, first), strict=True)]),
    ):
        found = pellucid.explain(model, x, pellucid.create(name, patterns=patterns), target=1).values
        with torch.no_grad():
            inputs = x.clone()
        torch.testing.assert_close(found, back(directions, inputs).detach() * scores, rtol=1e-9, atol=1e-12)


def test_every_weighted_op_conserves_and_the_sum_is_the_score_without_biases_and_dead_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)).double()
    x = numbers(5, 6)
    technique = pellucid.create("pattern_attribution", data=numbers(50, 6, seed=3))
    found = pellucid.explain(model, x, technique, target=2).values
    torch.testing.assert_close(found.sum(dim=1), model(x)[:, 2].detach())


@pytest.mark.parametrize("name", ["pattern_net", "pattern_attribution"])
def test_data_stream_by_in_any_batches(name):
    model, data, x = Net().double().eval(), numbers(12, 2, 8, 8), numbers(2, 2, 8, 8, seed=5)
    technique = pellucid.create(name, data=data)
    whole = pellucid.explain(model, x, technique, target=1)
    for size in (1, 5):
        found = pellucid.explain(model, x, technique, target=1, batch_size=size).values
        torch.testing.assert_close(found, whole.values, rtol=1e-9, atol=1e-12)
    kept = pellucid.create(name, patterns=Patterns.fit(model, data, batch_size=7))
    torch.testing.assert_close(pellucid.explain(model, x, kept, target=1).values, whole.values, rtol=1e-9, atol=1e-12)


def test_a_pass_that_begins_anew_counts_once():
    """As after running out of memory: a batch is counted when it is done, and only then."""
    from pellucid_rules import patterns as module

    model, data = Net().double().eval(), numbers(8, 2, 8, 8)
    expected = Patterns.fit(model, data)
    statistics = module.Statistics
    failures = iter([False] * 5 + [True] + [False] * 100)

    class Failing(statistics):
        def take(self, node, sums):
            super().take(node, sums)
            if next(failures):
                raise torch.OutOfMemoryError("out of memory")

    module.Statistics = Failing
    try:
        found = Patterns.fit(model, data, batch_size=4)
    finally:
        module.Statistics = statistics
    for one, other in zip(found.directions.values(), expected.directions.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_neurons_without_data_have_no_pattern_and_are_counted():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].bias[1] = -100.0
    x = numbers(20, 3)
    found = pellucid.explain(model, x, pellucid.create("pattern_net", data=x), target=0)
    assert found.checks.named("silent").value == 2
    assert torch.isfinite(found.values).all()


def test_a_layer_that_runs_twice_has_patterns_for_each_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    patterns = Patterns.fit(Twice().double(), numbers(30, 4))
    one, other = patterns.directions.values()
    assert (one - other).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ["pattern_net", "pattern_attribution"])
def test_refusals(name):
    model, x = Net().double().eval(), numbers(3, 2, 8, 8)
    with pytest.raises(ParameterError, match="not fitted"):
        pellucid.explain(model, x, name, target=0)
    patterns = Patterns.fit(model, x)
    with pytest.raises(ParameterError, match="given twice"):
        pellucid.explain(model, x, pellucid.create(name, patterns=patterns, data=x), target=0)
    other = Net().double().eval()
    other.inner = nn.Linear(6 * 4, 5).double()
    with pytest.raises(InputError, match=r"\(2, 8, 8\); the inputs have \(2, 7, 7\)"):
        pellucid.explain(other, numbers(3, 2, 7, 7), pellucid.create(name, patterns=patterns), target=0)
    with pytest.raises(InputError, match="shape"):
        pellucid.explain(model, x, pellucid.create(name, data=numbers(5, 2, 7, 7)), target=0)
    with pytest.raises(InputError, match="at least 2"):
        pellucid.explain(model, x, pellucid.create(name, data=x[:1]), target=0)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    with pytest.raises(ParameterError, match="another model"):
        pellucid.explain(wider, x, pellucid.create(name, patterns=patterns), target=0)
    with pytest.raises(ParameterError, match="estimator"):
        pellucid.create(name, data=x, estimator="quadratic")
