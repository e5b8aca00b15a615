"""What maps of training must do, whatever they are: straight lines, spikes, stillness, seeds, controls."""

import copy

import pytest
import torch
from torch import nn

import pellucid

MAPS = ("pca", "in_pca", "tsne", "umap", "dynamic_tsne", "m_phate", "random_projection")


def small_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def parameters_of(net):
    return torch.cat([one.detach().flatten() for one in net.parameters()])


@pytest.mark.parametrize("between", ["parameters", "outputs"])
def test_a_linear_interpolation_between_two_networks_embeds_as_a_straight_line_under_pca(between):
    one, other = small_net(0), small_net(1)
    probe = torch.randn(20, 6, dtype=torch.float64)
    with torch.no_grad():
        ends = [parameters_of(net) if between == "parameters" else net(probe).flatten() for net in (one, other)]
    line = torch.stack([ends[0] + (ends[1] - ends[0]) * t for t in torch.linspace(0, 1, 9)]).unsqueeze(1)
    places = pellucid.project(line, "pca").values[:, 0]
    way = places[-1] - places[0]
    shares = (places - places[0]) @ way / way.square().sum()
    residual = (places - places[0] - shares.unsqueeze(1) * way).norm(dim=1).max() / way.norm()
    assert float(residual) < 1e-6
    torch.testing.assert_close(shares, torch.linspace(0, 1, 9, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("technique", ["pca", "in_pca", "dynamic_tsne", "random_projection"])
def test_a_spike_of_the_learning_rate_is_the_largest_step_drawn(technique):
    net = small_net(0)
    probe = torch.randn(24, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    classes = (probe[:, 0] > 0).long() + (probe[:, 1] > 0.5).long()
    optimiser = torch.optim.SGD(net.parameters(), 0.02)
    functions = []
    for step in range(16):
        with torch.no_grad():
            functions.append(net(probe).softmax(dim=-1))
        for group in optimiser.param_groups:
            group["lr"] = 3.0 if step == 9 else 0.02
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(probe), classes).backward()
        optimiser.step()
    states = torch.stack(functions)
    parameters = {"n_classes": 3} if technique == "in_pca" else {}
    network = pellucid.project(states.flatten(1).unsqueeze(1), technique, **parameters).values[:, 0]
    assert int(network.diff(dim=0).norm(dim=-1).argmax()) == 9
    examples = pellucid.project(states, technique, **parameters).values
    assert int(examples.diff(dim=0).norm(dim=-1).mean(dim=1).argmax()) == 9


@pytest.mark.parametrize("technique", [name for name in MAPS if name not in ("tsne", "umap")])
def test_the_same_seed_gives_the_same_bits_twice(technique):
    states = torch.rand(4, 14, 5, generator=torch.Generator().manual_seed(0))
    before = states.clone()
    made = [pellucid.project(states, technique, seed=3).values for _ in range(2)]
    assert torch.equal(*made)
    assert torch.equal(states, before)


def test_points_that_hardly_move_are_hardly_moved():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40, 6, generator=generator)
    way = torch.randn(40, 6, generator=generator)
    way[:20] *= 1e-3
    states = torch.stack([start + way * t / 4 for t in range(5)])
    moves = pellucid.project(states, "dynamic_tsne").values.diff(dim=0).norm(dim=-1).mean(dim=0)
    assert float(moves[:20].mean()) < 0.02 * float(moves[20:].mean())


def test_the_random_walk_stands_beside_a_map_of_weights():
    net = small_net(0)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    probe = torch.randn(24, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = []
    for _ in range(60):
        weights.append(parameters_of(net))
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(probe), (probe[:, 0] > 0).long()).backward()
        optimiser.step()
    states = pellucid.States(torch.stack(weights).unsqueeze(1), torch.arange(60), over="parameters")
    walk = states.random_walk(seed=1)
    steps, drawn = (one.values.diff(dim=0).norm(dim=-1) for one in (states, walk))
    torch.testing.assert_close(steps, drawn)
    ours, control = (one.project("pca", n_components=3).explained for one in (states, walk))
    assert float(ours[0]) > float(control[0]) > 0.4  # gradient descent on a convex slope goes straighter
    assert float(control.sum()) > 0.7


def test_axes_do_not_change_what_they_were_fitted_to():
    states = torch.rand(30, 4)
    axes = pellucid.create("pca").fit(states)
    again = copy.deepcopy(axes)
    axes.transform(states)
    assert torch.equal(axes.mean, again.mean)
