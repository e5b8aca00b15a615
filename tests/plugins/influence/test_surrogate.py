"""The tangent kernel's surrogate against a plainer derivation, and what is certified of it."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pellucid import Loss, TargetError, Trainer, create, explain


def mlp():
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 3)).double()


@pytest.fixture(scope="module")
def trained():
    """A network on three of the digits, its training data, and others."""
    data = load_digits(n_class=3)
    x, y = torch.tensor(data.data / 16).double(), torch.tensor(data.target)
    trainer = Trainer(mlp, x[:60], y[:60], learning_rate=0.5, epochs=20, batch_size=20)
    model = mlp()
    model.load_state_dict(trainer.weights())
    return model, trainer.train, x[60:140], y[60:140]


def jacobian(model, x):
    """(n, outputs, parameters), one example and output after the other."""
    found = []
    for one in x:
        logits = model(one[None])[0]
        rows = [torch.autograd.grad(logit, list(model.parameters()), retain_graph=True) for logit in logits]
        found.append(torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]))
    return torch.stack(found)


def kernel(one, other):
    return torch.einsum("icp,jcp->ij", one, other)


def check(found, name):
    return next(one for one in found.checks if one.name == name)


def fitted(own, logits, ridge):
    """Weights and bias by least squares with a ridge."""
    bias = logits.mean(dim=0)
    added = ridge * own.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)
    return torch.linalg.solve(own + added, logits - bias), bias


def centred(logits):
    return (logits - logits.mean(dim=1, keepdim=True)).detach()


def test_values_are_what_each_example_adds_to_the_surrogates_logit(trained):
    model, (x, y), q, _ = trained
    target = torch.tensor([0, 2, 1, 1])
    found = explain(model, q[:4], create("ntk_influence", train=(x, y), surrogate=True, ridge=1e-3), target=target)
    of_train, of_queries = jacobian(model, x), jacobian(model, q[:4])
    weights, bias = fitted(kernel(of_train, of_train), centred(model(x)), 1e-3)
    between = kernel(of_queries, of_train)
    assert torch.allclose(found.values, between * weights.T[target], rtol=1e-6, atol=1e-10)
    logits = found.values.sum(dim=1) + bias[target]
    assert torch.allclose(logits, (between @ weights + bias)[range(4), target])
    assert torch.allclose(logits, centred(model(q[:4]))[range(4), target], atol=0.5)
    assert found.self_influence is None
    assert check(found, "training loss").passed


def odds(logits, classes):
    return torch.stack(
        [(row[c] - row[torch.arange(3) != c].logsumexp(0)) for row, c in zip(logits, classes, strict=True)]
    )


def test_its_fidelity_is_told(trained):
    stats = pytest.importorskip("scipy.stats")
    model, (x, y), q, labels = trained
    found = explain(model, q, create("ntk_influence", train=(x, y), surrogate=True), target=labels)
    tau, agreed = check(found, "surrogate's Kendall tau"), check(found, "surrogate's agreement")
    of_train = jacobian(model, x)
    weights, bias = fitted(kernel(of_train, of_train), centred(model(x)), 1e-3)
    logits = kernel(jacobian(model, q), of_train) @ weights + bias
    expected = stats.kendalltau(odds(logits, labels), odds(model(q), labels).detach()).statistic
    assert tau.value == pytest.approx(expected, abs=1e-6)
    assert tau.value > 0.85
    assert agreed.value == float((logits.argmax(1) == model(q).argmax(1)).double().mean()) > 0.95
    assert "80 queries" in tau.note


def test_with_few_queries_its_fidelity_is_that_at_examples_left_out(trained):
    stats = pytest.importorskip("scipy.stats")
    model, (x, y), q, _ = trained
    tau = check(explain(model, q[:3], create("ntk_influence", train=(x, y), surrogate=True)), "surrogate's Kendall tau")
    of_train, wanted = jacobian(model, x), centred(model(x))
    own, bias = kernel(of_train, of_train), wanted.mean(dim=0)
    added = 1e-3 * own.diagonal().mean() * torch.eye(59, dtype=torch.float64)
    without = []
    for i in range(60):
        kept = torch.arange(60) != i
        weights = torch.linalg.solve(own[kept][:, kept] + added, wanted[kept] - bias)
        without.append(own[i, kept] @ weights + bias)
    classes = wanted.argmax(dim=1)
    expected = stats.kendalltau(odds(torch.stack(without), classes), odds(wanted, classes)).statistic
    assert tau.value == pytest.approx(expected, abs=1e-6)
    assert "60 training examples, each left out in turn" in tau.note


def test_a_surrogate_of_what_is_no_class_is_refused(trained):
    model, train, q, labels = trained
    with pytest.raises(TargetError, match="classes"):
        explain(model, q, create("ntk_influence", train=train, surrogate=True), target=Loss(labels))
