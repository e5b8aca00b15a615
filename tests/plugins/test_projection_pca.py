"""PCA: against scikit-learn, a plain eigenproblem, and states that cannot be placed."""

import numpy as np
import pytest
import torch

import pellucid
from pellucid_projection import variance
from pellucid_projection.pca import PCA


def states(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.linspace(3, 0.1, d)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 5


@pytest.mark.parametrize(("n", "d"), [(60, 7), (7, 60), (9000, 5), (8, 8), (300, 200), (200, 300)])
def test_scikit_learn_agrees_up_to_the_axes_signs(n, d):
    from sklearn.decomposition import PCA as Reference

    points = states(n, d)
    found = pellucid.project(points, "pca", n_components=3)
    reference = Reference(3, svd_solver="full").fit(points.numpy())
    expected = torch.tensor(reference.transform(points.numpy()))
    signs = (found.values * expected).sum(dim=0).sign()
    torch.testing.assert_close(found.values, expected * signs, rtol=0, atol=1e-9 * float(expected.abs().max()))
    axes = PCA(n_components=3).fit(points)
    np.testing.assert_allclose(axes.ratio, reference.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(axes.variance, reference.explained_variance_, rtol=1e-9)
    torch.testing.assert_close(torch.as_tensor(found.explained, dtype=torch.float64), axes.ratio)


def test_the_axes_solve_the_covariances_eigenproblem():
    points = states(50, 6)
    axes = PCA(n_components=6).fit(points)
    covariance = torch.zeros(6, 6, dtype=torch.float64)
    for point in points:
        covariance += torch.outer(point - points.mean(dim=0), point - points.mean(dim=0)) / 49
    torch.testing.assert_close(covariance @ axes.components.T, axes.components.T * axes.variance)
    torch.testing.assert_close(axes.components @ axes.components.T, torch.eye(6, dtype=torch.float64))
    assert float(axes.ratio.sum()) == pytest.approx(1)
    torch.testing.assert_close(axes.restore(axes.transform(points)), points)


def test_a_read_only_memory_map_is_read_in_blocks(tmp_path, monkeypatch):
    points = states(300, 40).float()
    np.save(tmp_path / "states.npy", points.numpy())
    mapped = np.load(tmp_path / "states.npy", mmap_mode="r")
    expected = pellucid.project(points, "pca").values
    monkeypatch.setattr(variance, "BLOCK", 40 * 7)
    sizes = []
    monkeypatch.setattr(variance, "blocks", counted(variance.blocks, sizes))
    torch.testing.assert_close(pellucid.project(mapped, "pca").values, expected, rtol=1e-5, atol=1e-5)
    assert set(sizes) == {7}
    through = np.load(tmp_path / "states.npy", mmap_mode="r").reshape(3, 100, 40)
    torch.testing.assert_close(pellucid.project(through, "pca").values.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def counted(blocks, sizes):
    def watched(points):
        for rows in blocks(points):
            sizes.append(rows.stop - rows.start)
            yield rows

    return watched


@pytest.mark.parametrize(("n", "d", "dtype"), [(390, 270, torch.float64), (270, 390, torch.float32)])
@pytest.mark.parametrize("far", [0, 200])
def test_the_krylov_space_finds_the_axes_of_many_states_and_features(n, d, dtype, far, monkeypatch):
    points = (decaying(n, d) + far).to(dtype)
    found = PCA(n_components=3).project(points)
    assert found.checks.named("residual").passed
    monkeypatch.setattr(variance, "DENSE", 1000)
    exact = PCA(n_components=3).project(points)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(found.values, exact.values, rtol=0, atol=tolerance * float(exact.values.abs().max()))
    torch.testing.assert_close(found.explained, exact.explained, rtol=1e-5, atol=0)


def decaying(n, d, power=0.5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -power + 0.5


@pytest.mark.parametrize(("power", "apart"), [(0, False), (0.05, False), (0.3, True)])
def test_what_axes_miss_that_nothing_tells_apart_is_bounded(power, apart, monkeypatch):
    from sklearn.decomposition import PCA as Reference

    points = decaying(900, 600, power).float()
    found = pellucid.project(points, "pca")
    exact = Reference(2, svd_solver="full").fit(points.double().numpy()).explained_variance_ratio_.sum()
    drawn = Reference(2, svd_solver="randomized", random_state=0).fit(points.numpy()).explained_variance_ratio_.sum()
    ours = float(found.explained.sum())
    assert ours >= drawn - 1e-6
    if not apart:
        missed = found.checks.named("missed")
        assert missed.passed
        assert 0 < exact - ours <= missed.value
        assert found.checks.named("residual").passed is None
    else:
        assert found.checks.named("residual").passed
        assert ours == pytest.approx(exact, rel=1e-6)
    monkeypatch.setattr(variance, "STEPS", 3)
    sooner = pellucid.project(points, "pca").checks
    assert "residual" in [check.name for check in sooner]


def test_the_bound_of_what_is_missed_holds_over_many_draws():
    values = torch.linspace(1, 2, 300, dtype=torch.float64)
    for steps in (2, 3, 6):
        share = variance.shortfall(steps, 10, 2, 300)
        for seed in range(50):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(300, 10, generator=generator, dtype=torch.float64)
            space = torch.linalg.qr(torch.cat([values[:, None] ** power * drawn for power in range(steps)], dim=1))[0]
            ritz = torch.linalg.eigvalsh(space.T @ (values[:, None] * space)).flip(0)[:2]
            assert (ritz >= (1 - share) * values.flip(0)[:2]).all()
    shares = [variance.shortfall(steps, 10, 2, 300) for steps in (2, 4, 8, 12, 50)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.01


def test_equal_frames_are_placed_alike_whatever_their_size():
    for n, d in ((7, 300), (33, 40), (1001, 3)):
        frame = states(n, d).float()
        for dtype in (torch.float32, torch.float64):
            placed = pellucid.project(torch.stack([frame, frame * 2, frame, frame]).to(dtype), "pca").values
            assert torch.equal(placed[0], placed[2])
            assert torch.equal(placed[2], placed[3])


@pytest.mark.parametrize("d", [5, 40])
def test_signs_do_not_depend_on_the_order_of_the_states(d):
    points = states(20, d)
    axes, again = PCA().fit(points), PCA().fit(points.flip(0))
    torch.testing.assert_close(axes.components, again.components)
    for component in axes.components:
        assert component[component.abs().argmax()] > 0


def test_times_share_their_axes_and_states_that_stay_stay():
    points = states(30, 6).reshape(3, 10, 6)
    points[2] = points[1]
    found = pellucid.project(points, "pca")
    assert found.values.shape == (3, 10, 2)
    assert torch.equal(found.values[1], found.values[2])
    torch.testing.assert_close(found.values.flatten(0, 1), pellucid.project(points.flatten(0, 1), "pca").values)


def test_a_straight_line_through_time_stays_one():
    start, way = states(10, 6, seed=1), states(10, 6, seed=2)
    line = torch.stack([start + way * time for time in torch.linspace(0, 1, 5)])
    found = pellucid.project(line, "pca").values
    torch.testing.assert_close(found[2], (found[0] + found[4]) / 2)


def test_new_states_are_placed_on_known_axes():
    points = states(40, 6)
    axes = PCA().fit(points)
    torch.testing.assert_close(axes.transform(points[:3]), pellucid.project(points, "pca").values[:3])


def test_the_type_of_the_states_is_kept_and_the_large_mean_does_no_harm():
    points = states(40, 6)
    found = pellucid.project((points + 1000).float(), "pca").values
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pellucid.project(points, "pca").values.float(), rtol=0, atol=2e-3)


def test_constant_features_change_nothing():
    points = states(40, 6)
    padded = torch.cat([points, torch.full((40, 3), 2.5, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(pellucid.project(padded, "pca").values, pellucid.project(points, "pca").values)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_scale_of_many_states_changes_nothing(scale):
    points = decaying(300, 280)
    expected = PCA().fit(points)
    found = PCA().fit((points * scale).float())
    torch.testing.assert_close(found.ratio, expected.ratio, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.components, expected.components, rtol=0, atol=1e-4)


def test_many_states_in_a_plane_are_explained_by_it():
    points = (states(300, 2) @ states(2, 280, seed=1)).float()
    found = pellucid.project(points, "pca", n_components=3)
    assert found.checks.named("residual").passed
    torch.testing.assert_close(found.explained[:2].sum(), torch.tensor(1.0, dtype=torch.float64))
    assert float(found.explained[2]) < 1e-7
    axes = PCA(n_components=3).fit(points).components
    torch.testing.assert_close(axes @ axes.T, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(20, 3), (3, 20), (300, 280)])
def test_states_that_are_all_the_same_explain_nothing(shape):
    found = pellucid.project(torch.full(shape, 0.1), "pca")
    torch.testing.assert_close(found.values, torch.zeros(shape[0], 2))
    assert found.checks.named("explained variance").value == 0


def test_the_seed_changes_nothing():
    points = states(20, 4)
    assert torch.equal(pellucid.project(points, "pca").values, pellucid.project(points, "pca", seed=7).values)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.rand(5), "expected \\(n, d\\)"),
        (torch.rand(5, 4, 3, 3), "Flatten maps"),
        (torch.rand(1, 4), "at least two"),
        (torch.rand(4, 0), "with features"),
        (torch.tensor([[1.0, float("nan")], [2.0, 3.0], [float("inf"), 0.0]]), "2 of the states"),
    ],
)
def test_states_that_cannot_be_placed_are_refused(points, message):
    with pytest.raises(pellucid.InputError, match=message):
        PCA(n_components=1).project(points)


@pytest.mark.parametrize("shape", [(3, 10), (10, 3)])
def test_more_components_than_states_or_features_are_refused(shape):
    with pytest.raises(pellucid.ParameterError, match="at most 3"):
        pellucid.project(torch.rand(shape), "pca", n_components=4)


def test_no_component_is_refused():
    with pytest.raises(pellucid.ParameterError):
        PCA(n_components=0)
