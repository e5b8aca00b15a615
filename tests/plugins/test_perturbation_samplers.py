"""KernelSHAP and Shapley sampling: convergence to the exact values, their stated errors, plain loops, and bad input."""

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid_perturbation.exact_shapley import shared_out
from pellucid_perturbation.kernel_shap import KernelSHAP
from pellucid_perturbation.shapley_sampling import ShapleySampling


class Games(nn.Module):
    """Several games as outputs: main effects, products of pairs and triples, and a hump over how many are in."""

    def __init__(self, size, games=4, noise=0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(size)
        numbers = torch.arange(2**size)
        self.size = size
        members = ((numbers[:, None] >> torch.arange(size)) & 1).double()
        self.worth = torch.zeros(2**size, games).double()
        for game in range(games):
            draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
            pairs, hump = draw(size, size) / size**0.5, members.mean(dim=1) * (1 - members.mean(dim=1))
            self.worth[:, game] = members @ draw(size) + ((members @ pairs) * members).sum(dim=1) + 4 * hump
            self.worth[:, game] += noise * draw(2**size) + 3
        self.exact = shared_out(self.worth)

    def forward(self, x):
        return self.worth[(x.long() << torch.arange(self.size)).sum(dim=1)]


def run(games, technique, seed, target):
    return pellucid.explain(games, torch.ones(1, games.size).double(), technique, target=target, seed=seed)


def errors(games, technique, seeds, target=0):
    """What each seed's values differ from the exact ones by, (seeds, d), and the errors that they state."""
    found = [run(games, technique, seed, target) for seed in range(seeds)]
    return (
        torch.cat([one.values for one in found]) - games.exact[target],
        torch.cat([one.error for one in found]),
    )


MAKERS = {
    "kernel_shap": lambda n: KernelSHAP(n_samples=n),
    "kernel_shap, unpaired": lambda n: KernelSHAP(n_samples=n, paired=False),
    "shapley_sampling": lambda n: ShapleySampling(n_samples=n // 16),
    "shapley_sampling, one by one": lambda n: ShapleySampling(n_samples=n // 16, antithetic=False),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_error_falls_as_the_root_of_the_samples(name):
    games = Games(11)
    budgets = [128, 256, 512, 1024]
    rms = []
    for budget in budgets:
        off = torch.cat([errors(games, MAKERS[name](budget), 12, target)[0] for target in range(4)])
        rms.append(off.square().mean().sqrt().item())
    slope = np.polyfit(np.log(budgets), np.log(rms), 1)[0]
    assert -0.6 <= slope <= -0.4, (slope, rms)


def test_complements_and_reverses_lessen_the_error_at_the_same_cost():
    games = Games(8)
    for paired, single in (
        (KernelSHAP(n_samples=120), KernelSHAP(n_samples=120, paired=False)),
        (ShapleySampling(n_samples=12), ShapleySampling(n_samples=12, antithetic=False)),
    ):
        for target in range(4):
            pairs, singles = (errors(games, one, 25, target)[0].square().mean() for one in (paired, single))
            assert pairs <= singles


@pytest.mark.parametrize(
    "technique",
    [
        KernelSHAP(n_samples=126),
        KernelSHAP(n_samples=126, paired=False),
        ShapleySampling(n_samples=16),
        ShapleySampling(n_samples=16, antithetic=False),
    ],
    ids=str,
)
def test_the_stated_error_is_the_spread_over_seeds(technique):
    games = Games(8)
    off, stated = errors(games, technique, 80)
    ratio = stated.square().mean(dim=0).sqrt() / off.square().mean(dim=0).sqrt()
    assert 0.85 < ratio.square().mean().sqrt() < 1.25
    assert ((ratio > 0.6) & (ratio < 1.6)).all()
    # No bias beyond the noise of the mean over the seeds.
    assert (off.mean(dim=0).abs() < 4.5 * off.std(dim=0) / 80**0.5).all()


@pytest.mark.parametrize("name", MAKERS)
def test_every_run_is_complete_and_reports_its_error(name):
    games = Games(8)
    found = run(games, MAKERS[name](128), 3, 2)
    rise = games.worth[-1, 2] - games.worth[0, 2]
    torch.testing.assert_close(found.values.sum(), rise, rtol=0, atol=1e-10)
    assert found.checks.named("completeness").passed
    share = found.error.max() / found.values.abs().max()
    assert found.checks.named("Monte-Carlo standard error").value == pytest.approx(share.item())


@pytest.mark.parametrize("paired", [True, False])
def test_the_regression_is_a_plain_constrained_one_of_the_coalitions_drawn(paired):
    games = Games(7)
    found = run(games, KernelSHAP(n_samples=102, paired=paired), 5, 1)
    # The same draws once more, and the constrained least squares by Lagrange's multiplier.
    generator = pellucid.Sample(torch.ones(1), pellucid.ClassLogit(0), 5).generator("kernel_shap", 7, 0)
    count = 50 if paired else 100
    share = torch.tensor([1 / (s * (7 - s)) for s in range(1, 7)], dtype=torch.float64)
    sizes = 1 + torch.multinomial(share, count, replacement=True, generator=generator)
    order = torch.rand(count, 7, generator=generator, dtype=torch.float64).argsort(dim=1)
    rows = torch.zeros(count, 7).double()
    for row in range(count):
        # The ranks of the draws are the places in their order.
        rows[row] = torch.tensor([float(order[row].tolist().index(i) < sizes[row]) for i in range(7)])
    rows = torch.cat([rows, 1 - rows]) if paired else rows
    worth = games(rows)[:, 1] - games.worth[0, 1]
    system = torch.zeros(8, 8).double()
    system[:7, :7], system[7, :7], system[:7, 7] = 2 * rows.T @ rows, 1, 1
    right = torch.cat([2 * rows.T @ worth, (games.worth[-1, 1] - games.worth[0, 1])[None]])
    expected = torch.linalg.solve(system, right)[:7]
    torch.testing.assert_close(found.values[0], expected, rtol=0, atol=1e-9)


def test_the_weighted_regression_on_all_coalitions_has_the_shapley_values():
    games, size = Games(6), 6
    numbers = torch.arange(1, 2**size - 1)
    members = ((numbers[:, None] >> torch.arange(size)) & 1).double()
    counts = members.sum(dim=1)
    choose = torch.tensor(
        [float(np.prod(range(size - int(c) + 1, size + 1)) / np.prod(range(1, int(c) + 1))) for c in counts]
    )
    weight = ((size - 1) / (choose * counts * (size - counts)))[:, None].double()
    worth = games.worth[1:-1, :1] - games.worth[0, 0]
    system = torch.zeros(7, 7).double()
    system[:6, :6], system[6, :6], system[:6, 6] = 2 * members.T @ (weight * members), 1, 1
    right = torch.cat([2 * members.T @ (weight * worth), (games.worth[-1, :1] - games.worth[0, :1])[None]])
    expected = torch.linalg.solve(system, right)[:6, 0]
    found = run(games, KernelSHAP(n_samples=64), 0, 0)
    torch.testing.assert_close(found.values[0], expected, rtol=0, atol=1e-9)
    assert found.meta.passes["forward"] == 64
    assert (found.error == 0).all()


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_values_are_the_mean_of_what_each_adds_in_the_orders_drawn(antithetic):
    games = Games(6)
    found = run(games, ShapleySampling(n_samples=8, antithetic=antithetic), 2, 3)
    generator = pellucid.Sample(torch.ones(1), pellucid.ClassLogit(0), 2).generator("shapley_sampling", 6, 0)
    orders = torch.rand(4 if antithetic else 8, 6, generator=generator, dtype=torch.float64).argsort(dim=1).tolist()
    if antithetic:
        orders = [one for order in orders for one in (order, order[::-1])]
    expected = torch.zeros(6).double()
    for order in orders:
        there = 0
        for player in order:
            expected[player] += (games.worth[there | 1 << player, 3] - games.worth[there, 3]) / 8
            there |= 1 << player
    torch.testing.assert_close(found.values[0], expected, rtol=0, atol=1e-10)
    assert found.meta.passes["forward"] == 2 + 8 * 5


@pytest.mark.parametrize("technique", [KernelSHAP(n_samples=40), ShapleySampling(n_samples=4)], ids=str)
def test_for_given_draws_the_values_are_linear_in_the_score_and_dummies_get_nothing(technique):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight[:, 3] = 0
    inputs = torch.randn(2, 8).double()
    targets = (0, 1, lambda output: 2 * output[:, 0] - 3 * output[:, 1])
    one, other, both = (pellucid.explain(net, inputs, technique, target=target).values for target in targets)
    torch.testing.assert_close(both, 2 * one - 3 * other, rtol=0, atol=1e-10)
    if isinstance(technique, ShapleySampling):
        assert (one[:, 3] == 0).all()


@pytest.mark.parametrize(
    "technique", [KernelSHAP(n_samples=100, cells=4), ShapleySampling(n_samples=6, cells=4)], ids=str
)
def test_draws_depend_on_the_seed_and_not_on_the_batch(technique):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3)).double()
    images = torch.randn(2, 3, 8, 8).double()
    shown = []
    counted = lambda x: shown.append(len(x)) or net(x)  # noqa: E731
    whole = pellucid.explain(counted, images, technique, target=1, batch_size=7).values
    assert max(shown) == 7  # never more of the masked inputs at once
    torch.testing.assert_close(whole, pellucid.explain(net, images, technique, target=1).values, rtol=0, atol=1e-10)
    other = pellucid.explain(net, images, technique, target=1, seed=1).values
    assert (whole - other).abs().max() > 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: KernelSHAP(n_samples=30, **o),
        lambda **o: ShapleySampling(n_samples=4, **o),
        lambda **o: pellucid.create("lime", n_samples=30, **o),
    ],
)
def test_rounds_go_on_until_the_error_is_below_for_each_example_by_itself(make):
    games, size = Games(10), 10
    # The games of four outputs, as four examples' own.
    inputs, target = torch.ones(4, size).double(), torch.arange(4)
    loose = pellucid.explain(games, inputs, make(), target=target)
    tight = pellucid.explain(games, inputs, make(tolerance=0.06, max_samples=3000), target=target)
    share = tight.error.amax(dim=1) / tight.values.abs().amax(dim=1)
    assert (share <= 0.06).all()
    assert tight.checks.named("Monte-Carlo standard error").passed
    assert tight.meta.passes["forward"] > 2 * loose.meta.passes["forward"]
    alone = [pellucid.explain(games, inputs[:1], make(tolerance=0.06, max_samples=3000), target=[i]) for i in range(4)]
    for row, one in enumerate(alone):
        torch.testing.assert_close(one.values, tight.values[row : row + 1], rtol=0, atol=1e-10)
    assert len({one.meta.passes["forward"] for one in alone}) > 1
    assert tight.meta.passes["forward"] == sum(one.meta.passes["forward"] for one in alone) / 4


def test_rounds_end_at_the_most_samples_and_say_so():
    games = Games(10)
    found = run(games, KernelSHAP(n_samples=30, tolerance=1e-6, max_samples=100), 0, 0)
    assert found.meta.passes["forward"] == 90
    assert not found.checks.named("Monte-Carlo standard error").passed


def test_a_constant_model_and_a_single_segment():
    constant = lambda x: torch.full((len(x), 2), 7.0)  # noqa: E731
    net = nn.Linear(3, 2)
    for technique in (KernelSHAP(n_samples=40), ShapleySampling(n_samples=4)):
        found = pellucid.explain(constant, torch.rand(2, 9), technique, target=0)
        assert found.values.abs().max() < 1e-12
        assert found.checks.named("Monte-Carlo standard error").value == pytest.approx(0, abs=1e-6)
        whole = pellucid.explain(
            net, torch.rand(2, 3), type(technique)(segments=torch.zeros(3, dtype=torch.long)), target=0
        )
        rise = net(whole.inputs)[:, 0] - net.bias[0]
        torch.testing.assert_close(whole.values, rise[:, None].expand(2, 3).detach())


def test_captum_agrees_within_the_stated_error():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    images = torch.randn(1, 3, 8, 8).double()
    segments = torch.arange(8)[:, None] // 3 * 3 + torch.arange(8) // 3
    exact = pellucid.explain(net, images, pellucid.create("exact_shapley", segments=segments), target=1).values
    for technique in (KernelSHAP(n_samples=300, segments=segments), ShapleySampling(n_samples=30, segments=segments)):
        found = pellucid.explain(net, images, technique, target=1)
        assert ((found.values - exact).abs() < 4 * found.error).all()
        assert found.error.max() < 0.1 * found.values.abs().max()
    theirs = captum.ShapleyValueSampling(net).attribute(images, target=1, feature_mask=segments, n_samples=60)
    assert ((found.values - theirs).abs() < 8 * found.error.max()).all()


@pytest.mark.parametrize("size", [13, 30])
def test_tables_of_scikit_learn(size):
    from sklearn.datasets import load_breast_cancer, load_wine
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_wine() if size == 13 else load_breast_cancer()
    mean = torch.from_numpy(data.data.mean(axis=0))
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)
    forest = RandomForestClassifier(10, max_depth=4, random_state=0).fit(data.data, data.target)
    rows = torch.from_numpy(data.data[[0, 100]])
    made = {
        "kernel_shap": KernelSHAP(n_samples=400, baseline=mean),
        "shapley_sampling": ShapleySampling(n_samples=20, baseline=mean),
    }
    if size == 13:
        made["exact_shapley"] = pellucid.create("exact_shapley", baseline=mean)
    found = (
        pellucid.explain(forest, rows, made["kernel_shap"], target=0),
        pellucid.explain(forest, rows, made["shapley_sampling"], target=0),
    )
    for one in found:
        assert one.values.shape == (2, size)
        assert one.checks.named("completeness").passed
    gap = (found[0].values - found[1].values).abs()
    assert (gap <= 5 * (found[0].error ** 2 + found[1].error ** 2).sqrt() + 1e-9).all()
    # A score that is linear in the features is known in closed form, whatever the coalitions.
    decide = lambda x: linear.decision_function(x).reshape(len(x), -1)  # noqa: E731
    weight = linear[-1].coef_[0] / linear[0].scale_
    for technique in made.values():
        values = pellucid.explain(decide, rows, technique, target=0).values
        torch.testing.assert_close(values, (rows - mean) * torch.from_numpy(weight), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("technique", "parameters", "message"),
    [
        ("kernel_shap", {"n_samples": 1}, "greater than or equal to 2"),
        ("kernel_shap", {"n_samples": 100, "tolerance": 0.1, "max_samples": 50}, "max_samples=50"),
        ("kernel_shap", {"tolerance": 0.0}, "tolerance"),
        ("kernel_shap", {"n_samples": True}, "number"),
        ("shapley_sampling", {"n_samples": 1}, "greater than or equal to 2"),
        ("shapley_sampling", {"n_samples": 5}, "even number"),
        ("shapley_sampling", {"n_samples": 2}, "at least 4"),
        ("shapley_sampling", {"cells": 0}, "cells"),
    ],
)
def test_bad_parameters_are_refused(technique, parameters, message):
    with pytest.raises(pellucid.ParameterError, match=message):
        pellucid.create(technique, **parameters)


def test_too_few_samples_for_the_segments_are_refused_before_any_pass():
    def never(_):
        raise AssertionError("the model ran")

    for technique, least in ((KernelSHAP(n_samples=60), 62), (KernelSHAP(n_samples=31, paired=False), 32)):
        with pytest.raises(pellucid.ParameterError, match=f"too few for 30 segments; expected at least {least}"):
            pellucid.explain(never, torch.zeros(1, 30), technique, target=0)


def test_draws_that_do_not_tell_the_segments_apart_are_refused():
    games = Games(10)
    messages = []
    for seed in range(20):
        try:
            run(games, KernelSHAP(n_samples=22), seed, 0)
        except pellucid.ParameterError as error:
            messages.append(str(error))
    assert messages
    assert all("tell the" in one and "n_samples" in one for one in messages)


@pytest.mark.parametrize("baseline", [torch.zeros(5), "grey", float("nan")])
@pytest.mark.parametrize("technique", [KernelSHAP, ShapleySampling])
def test_bad_baselines_are_refused(technique, baseline):
    with pytest.raises(pellucid.ParameterError, match="baseline"):
        pellucid.explain(Games(4), torch.ones(1, 4), technique(baseline=baseline), target=1)
