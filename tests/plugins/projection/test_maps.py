"""Maps: the mathematics again in a plainer way, scikit-learn as the peer, and states that are hard to place."""

import math

import numpy as np
import pytest
import torch

import pellucid
from pellucid_projection.affinities import affinities
from pellucid_projection.dynamic_tsne import DynamicTSNE, _Descent
from pellucid_projection.in_pca import InPCA
from pellucid_projection.points import Unit, distinct
from pellucid_projection.trajectories import Trajectories

NON_LINEAR = ("tsne", "umap", "dynamic_tsne")


def drifting(frames=4, n=36, d=6, seed=0):
    """Three clusters that drift apart; the last tenth of the points stands still."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, d, generator=generator, dtype=torch.float64) * 4
    start = torch.randn(n, d, generator=generator, dtype=torch.float64)
    moved = start.new_ones(n, 1)
    moved[-n // 10 :] = 0
    return torch.stack([start + moved * t / frames * centres[torch.arange(n) % 3] for t in range(frames)])


@pytest.mark.parametrize("technique", [*NON_LINEAR, "in_pca"])
def test_equal_states_have_equal_places_at_all_times(technique):
    states = drifting()
    states[2] = states[1]
    states = states.softmax(dim=-1) if technique == "in_pca" else states
    made = pellucid.project(states, technique).values
    assert torch.equal(made[1], made[2])
    assert torch.equal(made[0, -3:], made[3, -3:])
    assert not torch.equal(made[0, :10], made[3, :10])


@pytest.mark.parametrize("technique", [*NON_LINEAR, "pca", "random_projection"])
def test_hard_states_are_placed(technique):
    few = drifting(frames=1, n=8)[0]
    assert pellucid.project(few, technique).values.isfinite().all()
    assert pellucid.project(few[:, :2] * 1e-12, technique).values.isfinite().all()
    assert pellucid.project(few * 1e12, technique).values.isfinite().all()
    same = few.repeat(3, 1)
    assert torch.equal(*pellucid.project(same, technique).values.view(3, 8, 2)[:2]) or technique == "pca"


@pytest.mark.parametrize("technique", ["tsne", "dynamic_tsne"])
def test_states_of_one_feature_get_a_second_axis(technique):
    made = pellucid.project(drifting(frames=1)[0][:, :1], technique)
    assert made.values.shape == (36, 2)
    assert made.values.isfinite().all()


def test_fewer_points_than_neighbours_are_told():
    few = drifting(frames=1, n=10)[0]
    for technique, name, left in (
        ("tsne", "perplexity", 3),
        ("dynamic_tsne", "perplexity", 3),
        ("umap", "n_neighbors", 9),
    ):
        (check,) = [check for check in pellucid.project(few, technique).checks if check.name == name]
        assert check.value == pytest.approx(left)
        assert "too few points" in check.note


def test_states_that_are_all_the_same_are_refused():
    for technique in NON_LINEAR:
        with pytest.raises(pellucid.InputError, match="the same"):
            pellucid.project(torch.ones(9, 3), technique)
    with pytest.raises(pellucid.ParameterError, match="too few"):
        pellucid.project(torch.rand(4, 3), "umap")


def test_distinct_keeps_the_order():
    points = torch.tensor([[3.0, 1], [0.0, 2], [3.0, 1], [-0.0, 2], [1.0, 1]])
    unique, which = distinct(points)
    assert unique.tolist() == [[3.0, 1], [0.0, 2], [1.0, 1]]
    assert which.tolist() == [0, 1, 0, 1, 2]


def test_affinities_meet_the_perplexity():
    points = drifting(frames=1)[0]
    given = affinities(points, 7.0).double()
    assert float(given.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(given, given.T)
    squares = torch.cdist(points, points).square()
    joint = np.zeros((36, 36))
    for place in range(36):
        others = np.array([other for other in range(36) if other != place])
        away = squares[place, others].numpy()
        low, high = 0.0, 1e3
        for _ in range(100):
            rate = (low + high) / 2
            p = np.exp(-rate * (away - away.min()))
            p = p / p.sum()
            wide = -np.sum(p[p > 0] * np.log(p[p > 0])) > math.log(7)
            low, high = (rate, high) if wide else (low, rate)
        joint[place, others] = p / 72
    np.testing.assert_allclose(given.numpy(), joint + joint.T, atol=1e-7)
    sklearn = pytest.importorskip("sklearn.manifold._t_sne")
    peer = sklearn._joint_probabilities(squares.float().numpy(), 7.0, 0)
    from scipy.spatial.distance import squareform

    np.testing.assert_allclose(given.numpy(), squareform(peer), atol=2e-6)


def test_the_descents_slope_is_that_of_what_it_says_it_minimises():
    states = drifting(frames=3, n=12)
    _, equal = distinct(states.flatten(0, 1))
    descent = _Descent(states, equal, 4.0, 0.7, 2)
    places = torch.randn(3, 12, 2, generator=torch.Generator().manual_seed(1)).double()
    places[:, -1] = places[0, -1]  # as the states of the points that stand still
    places[:, -2] = places[0, -2]
    found, curvature = descent.slope(places.float())
    places.requires_grad_()
    divergence = places.new_zeros(())
    for near, frame in zip(descent.neighbours[0][1].double(), places, strict=True):
        q = 1 / (1 + torch.stack([torch.stack([(a - b).square().sum() for b in frame]) for a in frame]))
        q = q * (1 - torch.eye(12))
        q = q / q.sum()
        divergence = (
            divergence + torch.where(near > 0, near * (near.clamp_min(1e-30) / q.clamp_min(1e-30)).log(), 0).sum()
        )
    spread = [
        sum((point - frame.mean(dim=0)).norm() for frame in frames for point in frame)
        for frames in (places.detach(), states)
    ]
    scale = spread[0] / spread[1]
    errors = []
    for point in range(12):
        for one in range(3):
            for other in range(one):
                distance = scale * float((states[one, point] - states[other, point]).norm())
                if distance > 0:
                    drawn = (places[one, point] - places[other, point]).norm()
                    errors.append(((drawn - distance) / distance) ** 2)
    stress = torch.stack(errors).mean()
    (expected,) = torch.autograd.grad(divergence + 0.7 * 3 * stress, places)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-5)
    assert descent.divergence(places.detach().float()) == pytest.approx(float(divergence.detach()) / 3, rel=1e-4)
    assert descent.trajectories.stress(places.detach().float()) == pytest.approx(float(stress.detach()), rel=1e-4)
    assert curvature > 0


def test_a_step_is_damped_by_the_laplacian_of_its_trajectory():
    states = drifting(frames=4, n=10)
    trajectories = Trajectories(states)
    slope = torch.randn(4, 10, 2, generator=torch.Generator().manual_seed(2))
    found = trajectories.damped(slope, 0.3)
    for point in range(9):  # the last stands still
        weights = torch.zeros(4, 4, dtype=torch.float64)
        for a in range(4):
            for b in range(4):
                if a != b:
                    weights[a, b] = 1 / (states[a, point] - states[b, point]).square().sum()
        system = torch.eye(4) + 0.3 * (torch.diag(weights.sum(dim=1)) - weights)
        expected = torch.linalg.solve(system, slope[:, point].double())
        torch.testing.assert_close(found[:, point].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_dynamic_map_keeps_trajectories_where_a_map_by_frame_does_not():
    states = drifting(frames=6, n=45)
    scores = {}
    for weight in (0.0, 1.0):
        made = pellucid.project(states, DynamicTSNE(perplexity=8, trajectory=weight))
        found = pellucid.evaluate(None, states, {"map": made}, ["trajectory_preservation", "movement_correlation"])
        scores[weight] = [rank[0].mean for rank in found.ranking().values()]
    assert scores[1.0][0] > 0.8
    assert scores[1.0][1] > scores[0.0][1]


def test_landmarks_carry_the_others():
    states = drifting(frames=3, n=60)
    states[2] = states[1]
    made = pellucid.project(states, DynamicTSNE(perplexity=8, n_landmarks=30))
    assert torch.equal(made.values[1], made.values[2])
    (check,) = [check for check in made.checks if check.name == "landmarks"]
    assert check.value == 30
    last = torch.cdist(made.values[2], made.values[2]).fill_diagonal_(torch.inf).argmin(dim=1)
    moving = torch.arange(60) < 54
    assert ((last % 3) == (torch.arange(60) % 3))[moving].double().mean() > 0.9


def test_trajectories_of_single_networks_are_placed_by_their_stress():
    path = torch.stack([torch.tensor([math.cos(a), math.sin(a), 0.0]) for a in torch.linspace(0, 3, 9)]).unsqueeze(1)
    made = pellucid.project(path, "dynamic_tsne").values[:, 0]
    ratio = torch.pdist(made) / torch.pdist(path[:, 0])
    assert ratio.std() / ratio.mean() < 0.02


@pytest.mark.parametrize("count", [1, 5])
def test_few_points_through_many_times_are_placed_by_their_stress(count):
    generator = torch.Generator().manual_seed(0)
    start, speed, turn = (torch.randn(count, 10, generator=generator) for _ in range(3))
    time = torch.linspace(0, 1, 60).view(60, 1, 1)
    states = start + 3 * time * speed + (3 * time).sin() * turn
    short, long = (pellucid.project(states, "dynamic_tsne", n_iterations=steps) for steps in (750, 2000))
    found = [{check.name: check.value for check in made.checks}["trajectory stress"] for made in (short, long)]
    assert found[0] < 0.03
    assert found[0] == pytest.approx(found[1], rel=0.02, abs=1e-4)


def test_umap_places_new_points_near_their_like():
    states = drifting(frames=4, n=60)[-1]
    umap = pellucid.create("umap", n_neighbors=8)
    fitted = umap.fit(states, seed=1)
    known = umap.project(states, seed=1).values
    placed = fitted.transform(states + 1e-4)
    nearest = torch.cdist(placed, known).argmin(dim=1)
    assert ((nearest % 3) == (torch.arange(60) % 3))[:54].double().mean() > 0.9


def test_random_directions_place_new_points_as_they_placed_the_others():
    states = drifting(frames=2)
    control = pellucid.create("random_projection")
    axes = control.fit(states, seed=3)
    torch.testing.assert_close(axes.transform(states[1]), control.project(states, seed=3).values[1])
    many = pellucid.create("random_projection", n_components=4000).project(states[0], seed=0).values
    torch.testing.assert_close(torch.pdist(many), torch.pdist(states[0]), rtol=0.1, atol=0)


def test_intensive_pca_is_classical_scaling_of_the_bhattacharyya_distances():
    p = torch.rand(7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).view(7, 2, 4)
    p = p / p.sum(dim=-1, keepdim=True)
    n = 7
    squared = torch.zeros(n, n, dtype=torch.float64)
    for a in range(n):
        for b in range(n):
            if a != b:
                squared[a, b] = -sum(float((p[a, row] * p[b, row]).sqrt().sum().log()) for row in range(2)) / 2
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    gram = -centring @ squared @ centring / 2
    made = pellucid.project(p.flatten(1), InPCA(n_components=n, n_classes=4))
    weights = torch.linalg.eigvalsh(gram)
    signs = weights[weights.abs().argsort(descending=True)].sign()
    restored = (made.values * signs) @ made.values.T
    torch.testing.assert_close(restored, gram, rtol=0, atol=1e-10)
    assert made.checks[0].value == pytest.approx(1)
    two = pellucid.project(p.flatten(1), InPCA(n_classes=4))
    kept = weights.square().sort(descending=True).values
    assert two.checks[0].value == pytest.approx(1 - float((kept[2:].sum() / kept.sum()).sqrt()))


def test_intensive_pca_refuses_what_are_no_distributions(monkeypatch):
    with pytest.raises(pellucid.InputError, match="logits=True"):
        pellucid.project(torch.randn(5, 4), "in_pca")
    with pytest.raises(pellucid.ParameterError, match="divide"):
        pellucid.project(torch.rand(5, 4), "in_pca", n_classes=3)
    with pytest.raises(pellucid.ParameterError, match="at most 3"):
        pellucid.project(torch.rand(3, 4), "in_pca", n_components=4)
    monkeypatch.setattr("pellucid_projection.in_pca.MOST", 11)
    with pytest.raises(pellucid.ParameterError, match="12 states"):
        pellucid.project(torch.rand(3, 4, 4), "in_pca")


@pytest.mark.parametrize("technique", [*NON_LINEAR, "random_projection", "in_pca"])
def test_states_that_are_no_points_are_refused(technique):
    for states in (torch.rand(5), torch.full((5, 2), torch.nan), torch.rand(1, 2), torch.rand(5, 0)):
        with pytest.raises(pellucid.InputError):
            pellucid.project(states, technique)


@pytest.mark.parametrize("noise", [0.0, 1e-15, 1e-11])
def test_a_network_that_stands_still_is_mapped(noise):
    start = drifting(frames=1, n=12)
    states = start + noise * torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = pellucid.project(states, "dynamic_tsne", n_iterations=200).values
    assert made.isfinite().all()
    assert (made - made[:1]).abs().max() <= (0 if noise == 0 else 0.05 * float(made.std()))


@pytest.mark.parametrize("technique", ["pca", "random_projection", "tsne", "dynamic_tsne", "m_phate"])
def test_half_precision_is_mapped_in_single(technique):
    half = drifting(frames=2, n=20).bfloat16()
    made = pellucid.project(half, technique).values
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, pellucid.project(half.float(), technique).values, rtol=0, atol=1e-4)


def test_states_beyond_the_range_of_the_libraries_are_brought_to_their_unit():
    points = drifting(frames=1)[0]
    expected = Unit.of(points)(points)
    assert float(expected.square().sum(dim=1).mean()) == pytest.approx(1)
    for scale in (1e-170, 1e-30, 1e30, 1e130):
        torch.testing.assert_close(Unit.of(points * scale)(points * scale), expected)
    assert Unit.of(points[:1])(points[:1]).tolist() == [[0.0] * 6]
    assert pellucid.project((points * 1e30).float(), "umap").values.isfinite().all()
    with pytest.raises(pellucid.InputError, match="leave double precision"):
        pellucid.project(points * 1e200, "pca")


@pytest.mark.parametrize("technique", ["pca", "random_projection", "umap"])
def test_a_single_new_point_is_placed_and_one_of_other_features_is_not(technique):
    states = drifting(frames=1)[0]
    fitted = pellucid.create(technique).fit(states)
    for new in (states[:1] + 0.01, states[:1].expand(3, 6), states[:1].numpy()):
        assert fitted.transform(new).shape == (len(new), 2)
    with pytest.raises(pellucid.InputError, match=r"expected \(\.\.\., 6\)"):
        fitted.transform(states[:, :4])
