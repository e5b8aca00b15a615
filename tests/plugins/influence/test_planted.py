"""Planted truth that every influence must show, and seeded bugs that it must catch."""

from dataclasses import replace

import pytest
import torch
from tests.plugins.influence.small import data, net

from pellucid import Loss, Trainer, create, explain


def by(name, **options):
    def explained(model, queries, target, train):
        return explain(model, queries, create(name, train=train, **options), target=target)

    return explained


def unrolled(model, queries, target, train):
    """All examples in one step, so that the order of the training data does not count."""
    trainer = Trainer(net, *train, learning_rate=0.2, epochs=5, batch_size=len(train[0]))
    return explain(model, queries, create("unrolled", trainer=trainer), target=target)


EXPLAINED = {
    "ntk_influence": by("ntk_influence"),
    "fisher": by("influence_functions"),
    "gauss_newton": by("influence_functions", curvature="gauss_newton"),
    "cg": by("influence_functions", solver="cg"),
    "lissa": by("influence_functions", solver="lissa", batch_size=19),
    "ek_fac": by("influence_functions", solver="ek_fac"),
    "trak": by("trak"),
    "tracin": by("tracin"),
    "unrolled": unrolled,
}


def duplicates(explained):
    """A copy of the query lowers its loss, and one of another label raises the label's own loss less."""
    x, y = data(19)
    found = explained(net(), x[:6], Loss(y[:6]), (x, y)).values
    right = found[range(6), range(6)]
    assert bool((right < 0).all())
    wrong = y.clone()
    wrong[:6] = (y[:6] + 1) % 3
    opposed = explained(net(), x[:6], Loss(y[:6]), (x, wrong)).values
    assert bool((opposed[range(6), range(6)] > right).all())


def callers_order(explained):
    """The training examples in another order: the same values in that order."""
    x, y = data(19)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(3))
    found = explained(net(), x[:4], Loss(y[:4]), (x, y)).values
    shuffled = explained(net(), x[:4], Loss(y[:4]), (x[order], y[order])).values
    assert torch.allclose(shuffled, found[:, order], rtol=1e-6, atol=1e-10)


def todays_weights(explained):
    """A model whose weights have changed since is explained as a new one with these weights."""
    x, y = data(19)
    model = net()
    before = explained(model, x[:4], Loss(y[:4]), (x, y)).values
    model.load_state_dict(net(1).state_dict())
    after = explained(model, x[:4], Loss(y[:4]), (x, y)).values
    assert torch.allclose(after, explained(net(1), x[:4], Loss(y[:4]), (x, y)).values)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize("truth", [duplicates, callers_order, todays_weights], ids=lambda truth: truth.__name__)
def test_every_influence_shows_planted_truth(name, truth):
    if name == "unrolled" and truth is todays_weights:
        pytest.skip("it explains the models that it trains")
    truth(EXPLAINED[name])


def flipped(explained):
    """The other convention of signs."""

    def mutant(*given):
        found = explained(*given)
        return replace(found, values=-found.values)

    return mutant


def label_sorted(explained):
    """Columns in the order of the labels, as an implementation that goes class by class may leave them."""

    def mutant(model, queries, target, train):
        found = explained(model, queries, target, train)
        return replace(found, values=found.values[:, train[1].argsort(stable=True)])

    return mutant


def cached(explained):
    """What was computed for a model is kept, whatever becomes of its weights."""
    known = {}

    def mutant(model, *given):
        if id(model) not in known:
            known[id(model)] = model, explained(model, *given)
        return known[id(model)][1]

    return mutant


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize(("bug", "truth"), [(flipped, duplicates), (label_sorted, callers_order)])
def test_a_seeded_bug_is_caught(name, bug, truth):
    with pytest.raises(AssertionError):
        truth(bug(EXPLAINED[name]))


@pytest.mark.parametrize("name", sorted(EXPLAINED.keys() - {"unrolled"}))
def test_a_cache_of_another_checkpoint_is_caught(name):
    with pytest.raises(AssertionError):
        todays_weights(cached(EXPLAINED[name]))
