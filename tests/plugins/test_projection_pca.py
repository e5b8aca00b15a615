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


@pytest.mark.parametrize(("n", "d"), [(60, 7), (7, 60), (9000, 5), (8, 8)])
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


@pytest.mark.parametrize(("n", "d", "dtype"), [(90, 70, torch.float64), (70, 90, torch.float32)])
def test_the_krylov_space_finds_the_axes_of_many_states_and_features(n, d, dtype, monkeypatch):
    points = states(n, d).to(dtype)
    exact = PCA(n_components=3).project(points)
    monkeypatch.setattr(variance, "DENSE", 8)
    found = PCA(n_components=3).project(points)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(found.values, exact.values, rtol=0, atol=tolerance * float(exact.values.abs().max()))
    assert found.checks.named("residual").passed
    flat = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))  # whose axes nothing tells apart
    monkeypatch.setattr(variance, "STEPS", 2)
    assert not PCA().project(flat).checks.named("residual").passed


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


@pytest.mark.parametrize("shape", [(20, 3), (3, 20)])
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
