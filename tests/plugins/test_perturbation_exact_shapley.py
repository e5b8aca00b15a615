"""Exact Shapley values: against plain enumeration, the axioms, published values, captum, and bad input."""

import itertools
import math

import pytest
import torch
from torch import nn

import pellucid
from pellucid_perturbation.exact_shapley import ExactShapley, shared_out


def by_orders(worth, size):
    """The mean of what each player adds over all orders, one by one; `worth` takes a set."""
    values = [0.0] * size
    for order in itertools.permutations(range(size)):
        there = frozenset()
        for player in order:
            values[player] += worth(there | {player}) - worth(there)
            there |= {player}
    return [value / math.factorial(size) for value in values]


def by_coalitions(worth, size):
    """The textbook's sum over coalitions, one by one."""
    values = []
    for player in range(size):
        others = [one for one in range(size) if one != player]
        total = 0.0
        for count in range(size):
            share = math.factorial(count) * math.factorial(size - count - 1) / math.factorial(size)
            for there in itertools.combinations(others, count):
                total += share * (worth(frozenset(there) | {player}) - worth(frozenset(there)))
        values.append(total)
    return values


def table(size, seed=0, games=1):
    return torch.randn(2**size, games, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worth_in(worths, game=0):
    return lambda members: float(worths[sum(2**one for one in members), game])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_the_values_are_the_mean_over_all_orders(size):
    worths = table(size, games=2)
    found = shared_out(worths)
    for game in range(2):
        expected = torch.tensor(by_orders(worth_in(worths, game), size), dtype=torch.float64)
        torch.testing.assert_close(found[game], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 8])
def test_the_values_are_the_textbook_sum_over_coalitions(size):
    worths = table(size)
    expected = torch.tensor(by_coalitions(worth_in(worths), size), dtype=torch.float64)
    torch.testing.assert_close(shared_out(worths)[0], expected, rtol=0, atol=1e-12)


def test_of_a_network_they_are_those_of_its_masked_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inputs, baseline = torch.randn(2, 6).double(), torch.randn(6).double()
    target = torch.tensor([2, 0])
    found = pellucid.explain(net, inputs, ExactShapley(baseline=baseline), target=target)
    for example in range(2):

        def worth(members, example=example):
            shown = baseline.clone()
            shown[list(members)] = inputs[example, list(members)]
            return float(net(shown[None]).detach()[0, target[example]])

        expected = torch.tensor(by_coalitions(worth, 6), dtype=torch.float64)
        torch.testing.assert_close(found.values[example], expected, rtol=0, atol=1e-12)
    assert found.meta.passes["forward"] == 2**6
    assert found.checks.named("completeness").passed
    assert (found.error == 0).all()


class Game(nn.Module):
    """(1, x0 x1 + 2 x2, x0 x1 + x1 x2 + x0 x2) of three features, a fourth does nothing."""

    def forward(self, x):
        x0, x1, x2, _ = x.unbind(dim=1)
        return torch.stack([torch.ones_like(x0), x0 * x1 + 2 * x2, x0 * x1 + x1 * x2 + x0 * x2], dim=1)


def test_the_axioms():
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double()
    explain = lambda target: pellucid.explain(Game(), inputs, "exact_shapley", target=target).values[0]  # noqa: E731
    assert (explain(0) == 0).all()
    # A product is shared in halves, a sum is not shared, and a dummy gets exactly nothing.
    torch.testing.assert_close(explain(1), torch.tensor([1.0, 1.0, 6.0, 0.0]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(explain(2), torch.tensor([2.5, 4.0, 4.5, 0.0]).double(), rtol=0, atol=1e-12)
    assert explain(2)[3] == 0
    both = explain(lambda output: 2 * output[:, 1] - 5 * output[:, 2])
    torch.testing.assert_close(both, 2 * explain(1) - 5 * explain(2), rtol=0, atol=1e-12)
    alike = pellucid.explain(Game(), torch.ones(1, 4).double(), "exact_shapley", target=2).values[0]
    torch.testing.assert_close(alike[:3], torch.ones(3).double(), rtol=0, atol=1e-12)


class Rectified(nn.Module):
    """captum's BasicModel_MultiLayer: 3 (s + 1) + relu(s - 10), and a constant, of the sum s of the inputs."""

    def forward(self, *inputs, scale=1.0):
        total = scale * sum(inputs).sum(dim=1, keepdim=True)
        return 3 * (total + 1) + (total - 10).relu() + torch.tensor([-1.0, 1.0]).to(total)


GOLDEN = [
    # By hand: every feature alone is over 10, so each adds 4 x, less the 10 that the first to come pays.
    ([[20.0, 50.0, 30.0]], None, 0, [[80 - 10 / 3, 200 - 10 / 3, 120 - 10 / 3]]),
    ([[20.0, 50.0, 30.0]], [[0, 0, 1]], 0, [[275.0, 275.0, 115.0]]),
    # Over a baseline of 12 in all, nothing is rectified.
    ([[20.0, 50.0, 30.0]], [[0, 0, 1]], 4, [[248.0, 248.0, 104.0]]),
    # 3 x, and of the 5 over the threshold what each adds: 10 comes to bear alone, 2 and 3 only after it.
    ([[2.0, 10.0, 3.0], [20.0, 50.0, 30.0]], None, 0, [[7.0, 32.5, 10.5], [230 / 3, 590 / 3, 350 / 3]]),
    ([[2.0, 10.0, 3.0], [20.0, 50.0, 30.0]], [[0, 0, 1], [1, 1, 0]], 0, [[39.5, 39.5, 10.5], [275.0, 275.0, 115.0]]),
]


@pytest.mark.parametrize(("inputs", "segments", "baseline", "expected"), GOLDEN)
@pytest.mark.parametrize("technique", ["exact_shapley", "kernel_shap"])
def test_the_values_that_captum_publishes(technique, inputs, segments, baseline, expected):
    segments = "auto" if segments is None else torch.tensor(segments)
    made = pellucid.create(technique, segments=segments, baseline=baseline)
    found = pellucid.explain(Rectified(), torch.tensor(inputs).double(), made, target=0)
    torch.testing.assert_close(found.values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


class ThreeInputs(Rectified):
    def forward(self, x1, x2, x3):
        return super().forward(x1, x2, x3)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (
            0,
            {
                "x1": [[1088.6666, 1088.6666, 1088.6666], [255.0, 595.0, 255.0]],
                "x2": [[76.6666, 1088.6666, 156.6666], [255.0, 595.0, 0.0]],
                "x3": [[76.6666, 1088.6666, 156.6666], [255.0, 255.0, 255.0]],
            },
        ),
        (
            {"x1": 2, "x2": 3.0, "x3": 4},
            {
                "x1": [[1040, 1040, 1040], [184, 580.0, 184]],
                "x2": [[52, 1040, 132], [184, 580.0, -12.0]],
                "x3": [[52, 1040, 132], [184, 184, 184]],
            },
        ),
    ],
)
def test_the_values_that_captum_publishes_for_segments_that_span_inputs(baseline, expected):
    inputs = {
        "x1": torch.tensor([[23.0, 100.0, 0.0], [20.0, 50.0, 30.0]]),
        "x2": torch.tensor([[20.0, 50.0, 30.0], [0.0, 100.0, 0.0]]),
        "x3": torch.tensor([[0.0, 100.0, 10.0], [2.0, 10.0, 3.0]]),
    }
    segments = {
        "x1": torch.tensor([[1, 1, 1], [0, 1, 0]]),
        "x2": torch.tensor([[0, 1, 2]]),
        "x3": torch.tensor([[0, 1, 2], [0, 0, 0]]),
    }
    found = pellucid.explain(ThreeInputs(), inputs, ExactShapley(segments=segments, baseline=baseline), target=0)
    for name, values in expected.items():
        torch.testing.assert_close(found.values[name], torch.tensor(values, dtype=torch.float32), rtol=0, atol=1e-3)
    assert found.error["x1"].shape == (2, 3)


def test_captum_agrees_on_the_segments_of_images():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    images = torch.randn(2, 3, 8, 8).double()
    segments = torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4 + 5
    found = pellucid.explain(net, images, ExactShapley(segments=segments, baseline=0.3), target=1)
    expected = captum.ShapleyValues(net).attribute(images, baselines=0.3, target=1, feature_mask=segments - 5)
    torch.testing.assert_close(found.values, expected.double(), rtol=0, atol=1e-6)  # captum adds up in single precision
    rise = net(images)[:, 1] - net(torch.full_like(images, 0.3))[:, 1]
    torch.testing.assert_close(found.of_segments().sum(dim=1), rise.detach(), rtol=0, atol=1e-10)


def test_more_than_65536_coalitions_are_refused_before_any_pass():
    def never(_):
        raise AssertionError("the model ran")

    with pytest.raises(pellucid.ParameterError, match=r"kernel_shap.*shapley_sampling.*segments="):
        pellucid.explain(never, torch.zeros(1, 17), "exact_shapley", target=0)
    with pytest.raises(pellucid.ParameterError, match="25 segments"):
        pellucid.explain(never, torch.zeros(1, 3, 10, 10), ExactShapley(cells=5), target=0)


@pytest.mark.parametrize("baseline", [torch.zeros(5), "grey", float("nan"), torch.full((4,), torch.inf)])
def test_bad_baselines_are_refused(baseline):
    with pytest.raises(pellucid.ParameterError, match="baseline"):
        pellucid.explain(Game(), torch.ones(1, 4), ExactShapley(baseline=baseline), target=1)


def test_an_input_that_is_not_finite_is_refused():
    with pytest.raises(pellucid.InputError, match="not finite"):
        pellucid.explain(Game(), torch.full((1, 4), torch.nan), "exact_shapley", target=1)
