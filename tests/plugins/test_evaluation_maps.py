"""Evaluators of maps: by hand, against scikit-learn, and against controls."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import pellucid
from pellucid import Projection

EVERY = (
    "trustworthiness", "continuity", "neighbourhood_preservation", "boundary_preservation", "trajectory_preservation",
    "movement_correlation", "temporal_stability", "explained_stress",
)  # fmt: skip
OF_MOVES = EVERY[4:7]


def made(frames=5, n=40, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(n, d, generator=generator, dtype=torch.float64)
    speed = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    moves = torch.randn(frames - 1, n, d, generator=generator, dtype=torch.float64) * speed
    return torch.cat([start[None], start + moves.cumsum(dim=0)])


def scored(states, places, metric, labels=None, **parameters):
    result = Projection(places, labels=labels)
    metric = pellucid.create(metric, **parameters)
    return pellucid.evaluate(None, states, {"map": result}, metric, controls=False).values[0]


@pytest.mark.parametrize("metric", EVERY)
def test_a_map_that_keeps_everything_scores_one_whatever_its_size_and_turn(metric):
    states = made()
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    labels = torch.arange(40) % 2
    expected = scored(states, states, metric, labels)
    torch.testing.assert_close(scored(states, 7 * states @ turn + 3, metric, labels), expected)
    torch.testing.assert_close(expected, torch.ones_like(expected))


@pytest.mark.parametrize("metric", EVERY)
def test_controls_stand_beside_every_map_and_lose(metric):
    states = torch.cat([made(d=2), 0.01 * made(d=30, seed=5)], dim=2)
    labels = (states[0, :, 0] > 0).long()
    shuffled = Projection(made(seed=9), labels=labels)
    maps = {"pca": Projection(pellucid.project(states).values, labels=labels), "other": shuffled}
    ranking = pellucid.evaluate(None, states, maps, [metric]).ranking()[metric]
    assert ranking[0].explanation == "pca"
    assert {rank.explanation for rank in ranking if rank.control} == {"random_projection"}
    assert ranking[1].mean < ranking[0].mean


@pytest.mark.parametrize("k", [3, 7])
def test_scikit_learn_agrees_on_trustworthiness_and_continuity(k):
    from sklearn.manifold import trustworthiness

    states, places = made(frames=1, d=5)[0], made(frames=1, seed=3)[0]
    found = scored(states, places, "trustworthiness", n_neighbors=k).mean()
    assert float(found) == pytest.approx(trustworthiness(states.numpy(), places.numpy(), n_neighbors=k))
    found = scored(states, places, "continuity", n_neighbors=k).mean()
    assert float(found) == pytest.approx(trustworthiness(places.numpy(), states.numpy(), n_neighbors=k))


def test_neighbours_and_times_that_are_kept_are_counted():
    states, places = made(d=4), made(seed=2)

    def kept(one, other, k):
        shares = []
        for place in range(len(one)):
            near = [
                {int(i) for i in np.argsort([float((p[place] - q).norm()) for q in p], kind="stable") if i != place}
                for p in (one, other)
            ]
            first = [
                [int(i) for i in np.argsort([float((p[place] - q).norm()) for q in p], kind="stable") if i != place][:k]
                for p in (one, other)
            ]
            assert near[0] == near[1]
            shares.append(len(set(first[0]) & set(first[1])) / k)
        return shares

    within = np.mean([kept(states[t], places[t], 6) for t in range(5)], axis=0)
    np.testing.assert_allclose(scored(states, places, "neighbourhood_preservation", n_neighbors=6), within)
    along = [np.mean(kept(states[:, i], places[:, i], 2)) for i in range(40)]
    np.testing.assert_allclose(scored(states, places, "trajectory_preservation", n_neighbors=2), along)


def test_moves_are_correlated_by_their_ranks():
    states, places = made(d=4), made(seed=2)
    lengths = [torch.diff(points, dim=0).norm(dim=-1).flatten().numpy() for points in (states, places)]
    assert float(scored(states, places, "movement_correlation")[0]) == pytest.approx(spearmanr(*lengths)[0])
    still = places[:1].repeat(5, 1, 1)
    assert scored(states, still, "movement_correlation").isnan().all()
    assert scored(states, still, "temporal_stability").isnan().all()


def test_what_stands_still_should_be_drawn_still():
    states = made()
    states[:, :8] = states[0, :8]
    assert float(scored(states, states, "temporal_stability")[0]) == 1
    shaken = states + 0.3 * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    assert float(scored(states, shaken, "temporal_stability")[0]) < 0.8
    slow = made(seed=4)  # nothing stands quite still: a map that stops the slowest gains nothing by it
    lengths = slow.diff(dim=0).norm(dim=-1).flatten()
    least = lengths.argsort()[:16]
    stopped = slow.diff(dim=0).flatten(0, 1)
    stopped[least] = 0
    stopped = torch.cat([slow[:1], slow[:1] + stopped.view(4, 40, 2).cumsum(dim=0)])
    assert float(scored(slow, stopped, "temporal_stability")[0]) == 1
    doubled = slow.diff(dim=0).flatten(0, 1)
    doubled[least] *= 2
    drawn = doubled.norm(dim=-1)
    doubled = torch.cat([slow[:1], slow[:1] + doubled.view(4, 40, 2).cumsum(dim=0)])
    share = [1 - float(one[least].mean() / one.mean()) for one in (drawn, lengths)]
    assert float(scored(slow, doubled, "temporal_stability")[0]) == pytest.approx(share[0] / share[1])


def test_a_boundary_that_is_drawn_apart_costs():
    states = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None].repeat(1, 2)
    labels = (torch.arange(20) >= 10).long()
    torn = states + 5 * labels[:, None]
    found = scored(states, torn, "boundary_preservation", labels, n_neighbors=4)
    assert found.argmin() in (9, 10)
    assert found[0] == found[-1] == 1
    with pytest.raises(pellucid.Unsuitable, match="labels"):
        scored(states, states, "boundary_preservation")


def test_explained_stress_is_the_share_of_distances_that_are_kept():
    states, places = made(frames=1, d=4)[0], made(frames=1, seed=2)[0]
    true = [float((a - b).norm()) for i, a in enumerate(states) for b in states[:i]]
    drawn = [float((a - b).norm()) for i, a in enumerate(places) for b in places[:i]]
    fit = np.dot(true, drawn) / np.dot(drawn, drawn)
    expected = 1 - np.linalg.norm(np.array(true) - fit * np.array(drawn)) / np.linalg.norm(true)
    assert float(scored(states, places, "explained_stress")[0]) == pytest.approx(expected)


def test_times_at_which_a_run_had_diverged_are_left_out():
    states = made()
    places = states.clone()
    states[4, 3] = torch.nan
    places[4] = torch.nan
    assert float(scored(states, places, "explained_stress")[0]) == pytest.approx(1)
    with pytest.raises(pellucid.InputError, match="nothing to score"):
        scored(states * torch.nan, places, "explained_stress")


@pytest.mark.parametrize("metric", OF_MOVES)
def test_a_map_of_one_time_has_no_moves(metric):
    with pytest.raises(pellucid.Unsuitable, match="one time"):
        scored(made()[0], made()[0], metric)
    with pytest.raises(pellucid.Unsuitable, match="one time"):
        scored(made(frames=1), made(frames=1), metric)


@pytest.mark.parametrize("metric", EVERY)
def test_what_does_not_fit_is_refused(metric):
    with pytest.raises(pellucid.InputError, match="expected"):
        scored(made(frames=4), made(), metric)
    with pytest.raises(pellucid.InputError, match="expected"):
        scored(made(n=30), made(), metric)
    with pytest.raises(pellucid.ModelError, match="give the model"):
        pellucid.evaluate(None, torch.rand(4, 3), pellucid.Attribution(torch.rand(4, 3)), metric)
    if metric in EVERY[:4]:
        with pytest.raises(pellucid.InputError, match="at least 3"):
            scored(made(n=2), made(n=2), metric, torch.zeros(2, dtype=torch.long))


def test_more_neighbours_than_points_are_lowered():
    states = made(n=5)
    assert scored(states, states, "trustworthiness", n_neighbors=50).tolist() == [1.0] * 5
