"""Unrolled influence against finite differences of the example weights, torch's optimizers and retraining."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import InputError, ParameterError, Trainer, Unsuitable, create, evaluate, explain

RECIPES = {
    "sgd": {},
    "momentum": {"momentum": 0.7, "weight_decay": 0.1},
    "adam": {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.05},
}


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)).double()


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()


def data(shape=(6,), n=26):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def trained(trainer, weights, seed):
    """The trainer's run with an example's weight in each batch's mean, by torch's own optimizers."""
    model = trainer.model(seed).train()
    if trainer.optimizer == "adam":
        stepper = torch.optim.Adam(model.parameters(), lr=trainer.learning_rate)
    else:
        stepper = torch.optim.SGD(model.parameters(), lr=trainer.learning_rate, momentum=trainer.momentum)
    torch.manual_seed(seed)
    for places in trainer.batches(seed):
        losses = trainer.losses(model(trainer.inputs[places]), trainer.labels[places])
        loss = (weights[places] * losses).sum() / weights[places].sum()
        loss = loss + 0.5 * trainer.weight_decay * sum(one.square().sum() for one in model.parameters())
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    return model.eval()


@pytest.mark.parametrize(("make", "shape"), [(mlp, (6,)), (conv, (1, 6, 6))])
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_unrolled_is_the_derivative_by_the_examples_weights(recipe, make, shape):
    x, y = data(shape)
    trainer = Trainer(make, x[:20], y[:20], epochs=3, batch_size=6, **RECIPES[recipe])
    model = trained(trainer, torch.ones(20, dtype=torch.float64), seed=5)
    found = explain(model, x[20:], create("unrolled", trainer=trainer, seeds=(5,)), target=1)
    assert found.checks[0].passed
    far = 1e-5
    for i in (0, 7, 19):
        scores = []
        for sign in (1, -1):
            weights = torch.ones(20, dtype=torch.float64)
            weights[i] += sign * far
            scores.append(trained(trainer, weights, seed=5)(x[20:])[:, 1].detach())
        expected = (scores[0] - scores[1]) / (2 * far)
        assert expected.abs().max() > 1e-4
        assert torch.allclose(found.values[:, i], expected, rtol=1e-5, atol=1e-8)


def test_unrolled_of_values():
    """Squared error, and queries more than are carried back together."""
    x, _ = data()
    y = x @ torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    trainer = Trainer(lambda: nn.Linear(6, 1).double(), x[:20], y[:20], learning_rate=0.05, epochs=4, batch_size=8)
    queries = torch.randn(70, 6, dtype=torch.float64)
    found = explain(nn.Linear(6, 1).double(), queries, create("unrolled", trainer=trainer, seeds=(1, 2)), target=0)
    assert found.checks[0].passed is False  # the model is not the recipe's
    expected = 0
    for seed in (1, 2):
        for sign in (1, -1):
            weights = torch.ones(20, dtype=torch.float64)
            weights[4] += sign * 1e-5
            expected = expected + sign * trained(trainer, weights, seed)(queries)[:, 0].detach() / 4e-5
    assert torch.allclose(found.values[:, 4], expected, rtol=1e-5, atol=1e-9)


def test_the_steps_that_are_kept_change_nothing(monkeypatch):
    from pellucid_influence import recorded

    x, y = data()
    trainer = Trainer(mlp, x[:20], y[:20], "adam", epochs=4, batch_size=5, learning_rate=0.01)
    whole = explain(mlp(), x[20:], create("unrolled", trainer=trainer), target=0).values
    monkeypatch.setattr(recorded.math, "isqrt", lambda _: 5)
    monkeypatch.setattr(recorded, "CHUNK", 4)
    again = explain(mlp(), x[20:], create("unrolled", trainer=trainer), target=0).values
    assert torch.allclose(again, whole, rtol=1e-10, atol=1e-14)


def test_unrolled_foretells_training_on_parts():
    """At the seed of the explained model, as the paper measures it."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
    trainer = Trainer(
        lambda: nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)), x[:200], y[:200], momentum=0.9,
        learning_rate=0.05, epochs=10, batch_size=50,
    )  # fmt: skip
    model = trainer.model(0)
    model.load_state_dict(trainer.weights())
    q, target = x[200:230], y[200:230]
    found = explain(model, q, create("unrolled", trainer=trainer), target=target)
    before = explain(model, q, create("ntk_influence", train=trainer.train), target=target)
    metric = create("linear_datamodeling_score", trainer=trainer, n_subsets=32, seeds=(0,), share=0.9)
    table = evaluate(model, q, {"unrolled": found, "ntk": before}, metric, target=target, controls=False)
    ours, ntk = table.values.mean(dim=1).tolist()
    assert ours > 0.97
    assert ntk < ours - 0.2


def test_what_cannot_be_unrolled_is_refused():
    x, y = data()
    with pytest.raises(ParameterError, match="lbfgs"):
        create("unrolled", trainer=Trainer(mlp, x, y, "lbfgs"))
    with pytest.raises(ParameterError, match="trainer"):
        create("unrolled", trainer=(x, y))

    def batch_norm():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()

    with pytest.raises(Unsuitable, match="BatchNorm"):
        explain(batch_norm(), x[:2], create("unrolled", trainer=Trainer(batch_norm, x, y, epochs=1)), target=0)
    with pytest.raises(InputError, match="shape"):
        explain(conv(), torch.randn(2, 1, 6, 6).double(), create("unrolled", trainer=Trainer(mlp, x, y)), target=0)
    other = nn.Sequential(nn.Linear(6, 3)).double()
    with pytest.raises(pellucid.PellucidError, match="are unknown"):
        explain(other, x[:2], create("unrolled", trainer=Trainer(mlp, x, y, epochs=1)), target=0)


def test_an_idle_parameter_does_not_hurt():
    """Units that are dead in every step have averages of zero, whose root has no derivative."""
    x, y = data()

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.lower, self.upper = nn.Linear(6, 4).double(), nn.Linear(4, 3).double()
            with torch.no_grad():
                self.lower.bias[:2] = -100

        def forward(self, x):
            return self.upper(F.relu(self.lower(x)))

    trainer = Trainer(Half, x[:20], y[:20], "adam", epochs=2, batch_size=10)
    found = explain(Half(), x[20:], create("unrolled", trainer=trainer), target=0)
    assert found.values.isfinite().all()
    assert found.values.abs().max() > 1e-6
