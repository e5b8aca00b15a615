"""Projectors of optional packages: PyMDE and openTSNE."""

import random

import numpy as np
import pytest
import torch

import pellucid


def clusters(n=45, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 6, generator=generator) * 5
    return centres[torch.arange(n) % 3] + torch.randn(n, 6, generator=generator)


def alike(places, others, labels):
    return (torch.cdist(places, others).argmin(dim=1) % 3 == labels % 3).double().mean()


def test_pymde_keeps_clusters_and_the_random_states():
    pytest.importorskip("pymde")
    states = clusters()
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    made = pellucid.project(states, "pymde", seed=2, n_neighbors=6)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()
    assert torch.equal(made.values, pellucid.project(states, "pymde", seed=2, n_neighbors=6).values)
    apart = torch.cdist(made.values, made.values).fill_diagonal_(torch.inf).argmin(dim=1)
    assert (apart % 3 == torch.arange(45) % 3).double().mean() > 0.9
    assert made.checks.named("distortion").value > 0


def test_pymde_embeds_into_a_fixed_map():
    pytest.importorskip("pymde")
    states = clusters()
    fitted = pellucid.create("pymde", n_neighbors=6).fit(states)
    assert torch.equal(fitted.transform(states), fitted.places)
    new = torch.cat([states[:9] + 0.05, states[:2]])
    placed = fitted.transform(new)
    assert torch.equal(placed[9:], fitted.places[:2])
    assert alike(placed[:9], fitted.places, torch.arange(9)) == 1


def test_pymde_refuses_too_few_and_says_where_neighbours_are_fewer():
    pytest.importorskip("pymde")
    with pytest.raises(pellucid.ParameterError, match="too few"):
        pellucid.project(torch.rand(4, 3), "pymde")
    assert "too few points" in pellucid.project(torch.rand(12, 3), "pymde").checks.named("n_neighbors").note


def test_opentsne_makes_the_map_of_scikit_learn_as_well_and_embeds_into_it():
    pytest.importorskip("openTSNE")
    states = clusters(90)
    ours = pellucid.project(states, "opentsne", perplexity=10, n_iterations=250)
    theirs = pellucid.project(states, "tsne", perplexity=10, n_iterations=500)
    found, expected = (made.checks.named("divergence").value for made in (ours, theirs))
    assert found == pytest.approx(expected, rel=0.15)
    assert alike(ours.values[:45], ours.values[45:], torch.arange(45)) == 1
    fitted = pellucid.create("opentsne", perplexity=10, n_iterations=50).fit(states)
    known = fitted.places.clone()
    placed, again = (fitted.transform(states[:9] + 0.05) for _ in range(2))
    assert alike(placed.double(), known, torch.arange(9)) == 1
    torch.testing.assert_close(placed, again, rtol=0, atol=0.02 * float(known.std()))
    assert torch.equal(fitted.places, known)


@pytest.mark.parametrize(("technique", "package"), [("pymde", "pymde"), ("opentsne", "openTSNE")])
def test_single_new_points_and_huge_states_are_placed(technique, package):
    pytest.importorskip(package)
    states = clusters(30) * 1e30
    made = pellucid.project(states.bfloat16(), technique)
    assert made.values.dtype == torch.float32
    assert made.values.isfinite().all()
    fitted = pellucid.create(technique).fit(states)
    assert fitted.transform(states[:1] * 1.01).shape == (1, 2)
    with pytest.raises(pellucid.InputError, match="the map's own"):
        fitted.transform(states[:, :4])
