"""Concept vectors from inner products, against scikit-learn; and the test against random sets."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge

from pellucid import ParameterError
from pellucid_concepts.vectors import Activations, fitted, p_value


def two_sets(seed=0, first=14, second=20, d=30, apart=0.4):
    points = torch.randn(first + second, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points[:first] += apart
    return 7 * points + 3, torch.cat([torch.ones(first), -torch.ones(second)])


def direction_of(points, fit):
    return fit.weights[0] @ points


@pytest.mark.parametrize(("penalty", "d"), [(0.01, 30), (1.0, 30), (0.01, 4)])
def test_logistic_vectors_are_those_of_scikit_learn(penalty, d):
    points, labels = two_sets(d=d)
    train = torch.arange(len(points)) % 3 != 2
    fit = fitted((points @ points.T)[None], labels, torch.arange(len(points))[train], penalty, "logistic")
    inside = points[train] - points[train].mean(dim=0)
    scale = inside.square().sum(dim=1).mean().sqrt()
    # The mean loss of which both sets are half, as a sum of weighted losses.
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    share = torch.where(labels[train] > 0, 0.5 / (labels[train] > 0).sum(), 0.5 / (labels[train] < 0).sum())
    model.fit((inside / scale).numpy(), labels[train].numpy(), sample_weight=share.numpy())
    expected = model.coef_[0] / np.linalg.norm(model.coef_[0])
    assert np.allclose(direction_of(points[train], fit).numpy(), expected, atol=1e-5)
    scores = model.decision_function(((points - points[train].mean(dim=0)) / scale).numpy())
    assert np.allclose(fit.scores[0].numpy(), scores, atol=1e-4)


def test_ridge_vectors_are_those_of_scikit_learn():
    points, labels = two_sets()
    fit = fitted((points @ points.T)[None], labels, torch.arange(len(points)), 0.1, "ridge")
    inside = points - points.mean(dim=0)
    scale = inside.square().sum(dim=1).mean().sqrt()
    share = torch.where(labels > 0, 0.5 / 14, 0.5 / 20)
    model = Ridge(alpha=0.1, solver="cholesky").fit((inside / scale).numpy(), labels.numpy(), sample_weight=share)
    assert np.allclose(direction_of(points, fit).numpy(), model.coef_ / np.linalg.norm(model.coef_), atol=1e-9)


@pytest.mark.parametrize("classifier", ["logistic", "ridge"])
def test_a_vector_has_length_one_points_to_its_set_and_turns_with_it(classifier):
    points, labels = two_sets(first=20)
    gram = (points @ points.T)[None]
    fit = fitted(gram, labels, torch.arange(40), 0.01, classifier)
    vector = direction_of(points, fit)
    assert float(vector.norm()) == pytest.approx(1, abs=1e-9)
    assert float((points[:20].mean(dim=0) - points[20:].mean(dim=0)) @ vector) > 0
    back = fitted(gram, -labels, torch.arange(40), 0.01, classifier)
    assert torch.allclose(back.weights, -fit.weights, atol=1e-9)
    # Neither the unit of the activations nor their origin matters.
    moved = 1e-4 * points - 5
    again = fitted((moved @ moved.T)[None], labels, torch.arange(40), 0.01, classifier)
    assert torch.allclose(direction_of(moved - moved.mean(dim=0), again), vector, atol=1e-4)


@pytest.mark.parametrize("classifier", ["logistic", "ridge"])
def test_equal_sets_have_no_vector(classifier):
    points, _ = two_sets(first=10, second=10)
    labels = torch.cat([torch.ones(10), -torch.ones(10)])
    twice = torch.cat([points[:10], points[:10]])
    fit = fitted((twice @ twice.T)[None], labels, torch.arange(20), 0.01, classifier)
    assert float((fit.weights[0] @ twice).norm()) < 1e-6
    same = fitted(torch.zeros(1, 20, 20, dtype=torch.float64), labels, torch.arange(20), 0.01, classifier)
    assert not same.weights.any()


def test_a_penalty_too_small_for_newton_is_refused():
    points, labels = two_sets(apart=3.0)
    with pytest.raises(ParameterError, match="larger penalty"):
        fitted((points @ points.T)[None], labels, torch.arange(len(points)), 1e-300, "logistic")


def test_the_runs_of_random_sets_are_those_of_each_pair():
    generator = torch.Generator().manual_seed(3)
    random = [torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    concept = torch.randn(8, 5, generator=generator, dtype=torch.float64) + 1
    slopes = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    at = Activations([concept], random, slopes, 0.05, "logistic")
    runs, null = at.concept(0)
    labels = torch.cat([torch.ones(8), -torch.ones(8)])

    def cosines(first, second):
        points = torch.cat([first, second])
        vector = direction_of(points, fitted((points @ points.T)[None], labels, torch.arange(16), 0.05, "logistic"))
        return slopes @ vector / slopes.norm(dim=1)

    for place, other in enumerate(random):
        assert torch.allclose(runs.cosines[place], cosines(concept, other), atol=1e-9)
        others = [one for one in random if one is not other]
        for run, second in enumerate(others):
            assert torch.allclose(null.cosines[place, run], cosines(other, second), atol=1e-9)
    apart = [
        (concept.mean(dim=0) - other.mean(dim=0)) @ direction_of(points, fit)
        for other, points in ((other, torch.cat([concept, other])) for other in random)
        for fit in [fitted((points @ points.T)[None], labels, torch.arange(16), 0.05, "logistic")]
    ]
    assert torch.allclose(runs.reach, torch.stack(apart), atol=1e-9)
    assert bool((null.reach > 0).all())
    # The effect of the mean vector is the mean of the effects, so that a kept vector is tested as its concept was.
    vector = at.vector(runs)
    own, same = at.direction(vector)
    assert same is null
    assert torch.allclose(own[0] * vector.norm(), runs.effects.mean(dim=0), atol=1e-9)
    assert torch.allclose(at.direction(-5 * vector)[0], -own)


def test_small_concepts_are_held_against_sets_as_small():
    generator = torch.Generator().manual_seed(3)
    random = [torch.randn(20, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    few = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    slopes = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    runs, null = Activations([few], random, slopes, 0.01, "ridge").concept(0)
    cut = Activations([few], [one[:7] for one in random], slopes, 0.01, "ridge").concept(0)
    assert torch.allclose(runs.cosines, cut[0].cosines, atol=1e-9)
    assert torch.allclose(null.cosines, cut[1].cosines, atol=1e-9)


def test_the_p_value_is_a_t_test_for_one_more_draw():
    null = np.array([0.1, 0.4, 0.2, 0.6, 0.35])
    draws = null * 4 / 5  # what the means would spread with the run of a set against itself
    t = (0.9 - null.mean()) / (draws.std(ddof=1) * np.sqrt(1 + 1 / 5))
    assert p_value(0.9, torch.tensor(null)) == pytest.approx(2 * stats.t.sf(t, 4))
    assert p_value(0.5, torch.full((4,), 0.5)) == 1.0
    assert p_value(0.6, torch.full((4,), 0.5)) == 0.0


def test_the_test_keeps_its_level_where_one_that_takes_runs_for_draws_does_not():
    # Every set has an effect of its own, and a run is the difference of two: s(a, b) = u_a - u_b and some noise.
    generator = np.random.default_rng(0)
    ours, papers = [], []
    for _ in range(2000):
        effects = generator.normal(size=11)
        noise = 0.3 * generator.normal(size=(11, 11))
        runs = effects[:, None] - effects[None] + noise - noise.T
        concept = runs[0, 1:]
        among = runs[1:, 1:][~np.eye(10, dtype=bool)].reshape(10, 9)
        ours.append(p_value(concept.mean(), torch.tensor(among.mean(axis=1))))
        papers.append(stats.ttest_ind(concept, among.ravel()[:10]).pvalue)
    assert 0.03 < np.mean(np.array(ours) < 0.05) < 0.07
    assert np.mean(np.array(papers) < 0.05) > 0.25
