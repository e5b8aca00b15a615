"""LIME: against scikit-learn's weighted regressions on the same coalitions, what it states, and bad input."""

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid_perturbation.lime import LIME

SIZE = 6


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.fixture
def rows():
    return torch.randn(2, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def coalitions(n, size=SIZE, seed=0):
    """The input itself and what is drawn after it."""
    generator = pellucid.Sample(torch.zeros(1), pellucid.ClassLogit(0), seed).generator("lime", size, 0)
    drawn = torch.rand(n - 1, size, generator=generator) < 0.5
    return torch.cat([torch.ones(1, size), drawn]).double().numpy()


def plain_weights(members, distance, width):
    weights = []
    for row in members:
        if distance == "l2":
            far = np.sqrt(((1 - row) ** 2).sum())
        else:
            far = 1 - row.sum() / max(np.linalg.norm(row) * np.sqrt(len(row)), 1e-12)
        weights.append(np.exp(-(far**2) / (2 * width**2)))
    return np.array(weights)


@pytest.mark.parametrize(
    ("options", "distance", "width"),
    [
        ({}, "cosine", 0.25),
        ({"alpha": 0.0, "kernel_width": 0.7}, "cosine", 0.7),
        ({"distance": "l2", "alpha": 3.0}, "l2", 0.75 * SIZE**0.5),
    ],
)
def test_the_values_are_a_weighted_ridge_regression_on_the_coalitions_drawn(net, rows, options, distance, width):
    from sklearn.linear_model import Ridge

    found = pellucid.explain(net, rows, LIME(n_samples=80, baseline=0.2, **options), target=1)
    members = coalitions(80)
    weights = plain_weights(members, distance, width)
    for example in range(2):
        shown = torch.where(torch.from_numpy(members) > 0, rows[example], 0.2)
        scores = net(shown)[:, 1].detach().numpy()
        ridge = Ridge(alpha=options.get("alpha", 1.0)).fit(members, scores, sample_weight=weights)
        torch.testing.assert_close(found.values[example], torch.from_numpy(ridge.coef_), rtol=0, atol=1e-9)
        fit = ridge.score(members, scores, sample_weight=weights)
        assert found.checks.named("local fit").each[example] == pytest.approx(1 - fit, abs=1e-9)
    assert found.meta.passes["forward"] == 80


def test_without_a_penalty_they_are_the_normal_equations(net, rows):
    found = pellucid.explain(net, rows, LIME(n_samples=60, alpha=0.0), target=2).values
    members = coalitions(60)
    weights = plain_weights(members, "cosine", 0.25)
    design = np.concatenate([np.ones((60, 1)), members], axis=1)
    for example in range(2):
        scores = net(torch.from_numpy(members) * rows[example])[:, 2].detach().numpy()
        normal = design.T @ (weights[:, None] * design)
        expected = np.linalg.solve(normal, design.T @ (weights * scores))[1:]
        torch.testing.assert_close(found[example], torch.from_numpy(expected), rtol=0, atol=1e-9)


def test_a_linear_score_is_found_exactly_and_fits(rows):
    weight = torch.arange(1.0, SIZE + 1).double()
    linear = lambda x: (x @ weight)[:, None] + 5  # noqa: E731
    found = pellucid.explain(linear, rows, LIME(n_samples=40, alpha=0.0), target=0)
    torch.testing.assert_close(found.values, rows * weight, rtol=0, atol=1e-10)
    assert found.checks.named("local fit").value < 1e-20
    assert found.error.max() < 1e-10


def test_a_score_that_is_no_sum_does_not_fit(rows):
    parity = lambda x: (1 - 2 * ((x != 0).sum(dim=1) % 2)).double()[:, None]  # noqa: E731
    assert not pellucid.explain(parity, rows, LIME(n_samples=300), target=0).checks.named("local fit").passed


def test_with_few_features_the_lasso_chooses_those_that_matter(rows):
    from sklearn.linear_model import Ridge

    def score(x):
        return (7 * x[:, 1] - 5 * x[:, 4] + 0.1 * torch.tanh(x).sum(dim=1))[:, None]

    ones = torch.ones(1, SIZE).double()
    found = pellucid.explain(score, ones, LIME(n_samples=120, n_features=2), target=0)
    assert found.values[0].nonzero().flatten().tolist() == [1, 4]
    members = coalitions(120)
    ridge = Ridge(alpha=1.0).fit(
        members[:, [1, 4]],
        score(torch.from_numpy(members))[:, 0].numpy(),
        sample_weight=plain_weights(members, "cosine", 0.25),
    )
    torch.testing.assert_close(found.values[0, [1, 4]], torch.from_numpy(ridge.coef_), rtol=0, atol=1e-9)
    every = pellucid.explain(score, rows, LIME(n_samples=120, n_features=SIZE), target=0).values
    torch.testing.assert_close(every, pellucid.explain(score, rows, LIME(n_samples=120), target=0).values)
    for count in range(1, SIZE):
        few = pellucid.explain(score, rows, LIME(n_samples=120, n_features=count), target=0).values
        assert ((few != 0).sum(dim=1) <= count).all()
        assert (few != 0).any(dim=1).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_stated_error_is_the_spread_over_seeds(net, rows, alpha):
    runs = [pellucid.explain(net, rows, LIME(n_samples=120, alpha=alpha), target=1, seed=seed) for seed in range(100)]
    spread = torch.stack([run.values for run in runs]).std(dim=0)
    stated = torch.stack([run.error for run in runs]).square().mean(dim=0).sqrt()
    assert ((stated / spread > 0.7) & (stated / spread < 1.4)).all()


def test_a_constant_score_gives_zero_and_says_nothing_against_the_fit(rows):
    for options in ({}, {"n_features": 2}):
        found = pellucid.explain(lambda x: torch.full((len(x), 2), 3.0), rows, LIME(n_samples=40, **options), target=0)
        assert (found.values.abs() < 1e-12).all()
        assert found.checks.named("local fit").passed


def test_the_segments_of_a_photo_that_matter_are_found():
    pytest.importorskip("skimage")
    photo = torch.zeros(1, 3, 32, 32)
    photo[:, 0, 8:16, 20:28], photo[:, 1, 20:28, 4:12] = 1, 1
    found = pellucid.explain(
        lambda x: torch.stack([x[:, 0].mean(dim=(1, 2)), x[:, 1].mean(dim=(1, 2))], dim=1),
        photo,
        LIME(n_samples=300, segments="slic", cells=5),
        target=1,
    )
    best = found.segments[0] == found.of_segments()[0].argmax()
    assert best[20:28, 4:12].float().mean() > 0.9


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_samples": 1}, "greater than or equal to 2"),
        ({"alpha": -1.0}, "alpha"),
        ({"kernel_width": 0.0}, "kernel_width"),
        ({"distance": "hamming"}, "distance"),
        ({"n_features": 0}, "n_features"),
        ({"n_samples": 90, "tolerance": 0.1, "max_samples": 80}, "max_samples"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(pellucid.ParameterError, match=message):
        LIME(**parameters)


def test_too_few_samples_and_bad_baselines_are_refused(net, rows):
    with pytest.raises(pellucid.ParameterError, match="too few for 6 segments; expected at least 8"):
        pellucid.explain(net, rows, LIME(n_samples=7), target=0)
    with pytest.raises(pellucid.ParameterError, match="baseline"):
        pellucid.explain(net, rows, LIME(baseline=torch.zeros(5)), target=0)
    with pytest.raises(pellucid.InputError, match="not finite"):
        pellucid.explain(net, rows / 0, LIME(), target=0)


def test_a_model_that_gives_no_number_gets_values_that_show_it(rows):
    broken = lambda x: (x.sum(dim=1) / 0)[:, None]  # noqa: E731
    for options in ({}, {"n_features": 2}):
        found = pellucid.explain(broken, rows, LIME(n_samples=40, **options), target=0)
        assert not torch.isfinite(found.values).any()
        assert not found.checks.named("finite").passed
