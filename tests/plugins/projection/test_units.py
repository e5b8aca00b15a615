"""M-PHATE: its kernel, walk and scaling again in a plainer way, and units that part planted."""

import math

import pytest
import torch

import pellucid
from pellucid_projection.m_phate import multislice
from pellucid_projection.potentials import diffused, entropy_knee, potentials, scaled, spectrum


def parting(frames=6, units=12, examples=30, seed=0):
    """Units that start alike and become two kinds, which answer to other examples."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(2, examples, generator=generator, dtype=torch.float64)
    noise = torch.randn(units, examples, generator=generator, dtype=torch.float64)
    start = torch.randn(examples, generator=generator, dtype=torch.float64)
    time = torch.linspace(0, 1, frames, dtype=torch.float64).view(-1, 1, 1)
    return (1 - time) * start + time * kinds[torch.arange(units) % 2] + 0.15 * noise


def test_the_multislice_kernel_joins_units_at_a_time_and_times_of_a_unit():
    states = parting(frames=3, units=5, examples=7)
    found = multislice(states, 2, 1, 5.0)
    expected = torch.zeros(15, 15, dtype=torch.float64)
    own = []
    for unit in range(5):
        for t in range(3):
            own.append(sorted(float((states[t, unit] - states[u, unit]).norm()) for u in range(3))[1])
    reach_in_time = sum(own) / len(own)
    for t in range(3):
        for i in range(5):
            reach = sorted(float((states[t, i] - states[t, k]).norm()) for k in range(5))[2]
            for u in range(3):
                for j in range(5):
                    gap = float((states[t, i] - states[u, j]).norm())
                    if t == u:
                        expected[t * 5 + i, u * 5 + j] = math.exp(-((gap / reach) ** 5))
                    elif i == j:
                        expected[t * 5 + i, u * 5 + j] = math.exp(-((gap / reach_in_time) ** 2))
    torch.testing.assert_close(found, (expected + expected.T) / 2)


def test_the_walk_is_the_power_of_the_kernel_divided_by_its_row_sums():
    kernel = multislice(parting(), 2, 3, 5.0)
    step = kernel / kernel.sum(dim=1, keepdim=True)
    walk = torch.linalg.matrix_power(step, 7)
    found = diffused(*spectrum(kernel), 7)
    torch.testing.assert_close(found, walk, rtol=0, atol=1e-10)
    logs = (walk + 1e-7).log()
    torch.testing.assert_close(
        potentials(found)[3, 20], (logs[3] - logs[20]).square().sum().sqrt(), rtol=1e-5, atol=1e-6
    )


def test_the_knee_is_where_the_fast_decay_ends():
    # Fifty eigenvalues that die within about ten steps, and three that stay.
    rates = torch.cat([torch.full((50,), 0.6), torch.tensor([1.0, 0.999, 0.999])]).double()
    assert 4 <= entropy_knee(rates) <= 16


def test_scaling_finds_places_whose_distances_are_given():
    places = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, stress = scaled(torch.cdist(places, places), 2)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(places, places), rtol=1e-4, atol=1e-4)
    assert stress < 1e-8
    bent = torch.cdist(places, places).sqrt()
    _, flat = scaled(bent, 2)
    classical = bent.square()
    classical = classical - classical.mean(0) - classical.mean(1, keepdim=True) + classical.mean()
    weights, vectors = torch.linalg.eigh(-classical / 2)
    start = vectors.flip(1)[:, :2] * weights.flip(0)[:2].sqrt()
    assert flat < float((torch.cdist(start, start) - bent).square().sum() / bent.square().sum())


def test_units_that_become_two_kinds_part_on_the_map():
    made = pellucid.project(parting(), "m_phate")
    last = torch.cdist(made.values[-1], made.values[-1]).fill_diagonal_(torch.inf).argmin(dim=1)
    assert torch.equal(last % 2, torch.arange(12) % 2)
    means = [torch.stack([frame[kind::2].mean(dim=0) for kind in (0, 1)]) for frame in made.values]
    apart = [float((pair[0] - pair[1]).norm()) for pair in means]
    assert apart[-1] > 2 * apart[0]
    assert made.checks.named("diffusion").value >= 2
    # Along each history time is in order: consecutive captures are nearer than the ends.
    paths = made.values.transpose(0, 1)
    assert bool((paths.diff(dim=1).norm(dim=-1).amax(dim=1) < (paths[:, -1] - paths[:, 0]).norm(dim=-1)).all())


def test_recorded_states_turn_into_units():
    states = pellucid.States(torch.rand(3, 10, 4), torch.tensor([0, 1, 2]), over="fc", labels=torch.arange(10))
    units = states.units()
    assert torch.equal(units.values, states.values.transpose(1, 2))
    assert units.names == ("fc[0]", "fc[1]", "fc[2]", "fc[3]")
    made = units.project("m_phate")
    assert made.values.shape == (3, 4, 2)
    assert made.values.isfinite().all()


def test_hard_units_are_placed():
    states = parting()
    states[:, 3] = 0.0  # a dead unit
    states[:, 5] = states[:, 4]
    states[2] = states[1]
    assert pellucid.project(states, "m_phate").values.isfinite().all()
    assert pellucid.project(states[:, :1], "m_phate").values.isfinite().all()
    assert pellucid.project(states[0], "m_phate", standardise=False, diffusion=3).values.shape == (12, 2)
    with pytest.raises(pellucid.ParameterError, match="at most 5000"):
        pellucid.project(torch.rand(51, 100, 2), "m_phate")
    with pytest.raises(pellucid.InputError, match="the same"):
        pellucid.project(torch.ones(9, 3), "m_phate")
