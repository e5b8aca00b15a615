"""The influence techniques against plainer derivations, closed forms, retraining and captum."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import InputError, Loss, ParameterError, TargetError, Trainer, Unit, create, explain

TECHNIQUES = ("ntk_influence", "influence_functions", "trak", "tracin")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
    ).double()


def images(n=23, q=4):
    torch.manual_seed(1)
    x = torch.randn(n + q, 1, 8, 8, dtype=torch.float64)
    return x[:n], torch.arange(n) % 3, x[n:]


def rows(model, x, score):
    """The gradient of each example's score by all parameters, one after the other."""
    found = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(score(model(x[i : i + 1]), i), list(model.parameters()))
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(found)


def of_losses(model, x, y):
    return rows(model, x, lambda out, i: F.cross_entropy(out, y[i : i + 1]))


def digits():
    data = load_digits()
    x = torch.tensor(data.data / 16).double()
    return x, torch.tensor(data.target)


@pytest.fixture(scope="module")
def softmax():
    """Converged softmax regression on digits with weight decay, and its training data."""
    x, y = digits()
    trainer = Trainer(lambda: nn.Linear(64, 10).double(), x[:300], y[:300], "lbfgs", weight_decay=1e-2)
    model = nn.Linear(64, 10).double()
    model.load_state_dict(trainer.weights())
    return trainer, model, x[300:320], y[300:320]


def test_ntk_influence_is_what_a_step_changes():
    x, y, q = images()
    model = net()
    target = torch.tensor([0, 2, 1, 1])
    found = explain(model, q, create("ntk_influence", train=(x, y), learning_rate=1e-6), target=target)
    before = model(q).gather(1, target[:, None])[:, 0].detach()
    for i in range(0, len(x), 5):
        moved = net()
        F.cross_entropy(moved(x[i : i + 1]), y[i : i + 1]).backward()
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter -= 1e-6 * parameter.grad
        change = moved(q).gather(1, target[:, None])[:, 0].detach() - before
        assert torch.allclose(found.values[:, i], change, rtol=1e-3, atol=1e-11)
    norms = of_losses(model, x, y).square().sum(dim=1)
    assert torch.allclose(found.self_influence, 1e-6 * norms)
    assert found.train_labels.tolist() == y.tolist()
    assert found.train.shape == x.shape


def test_ntk_influence_in_small_blocks(monkeypatch):
    """The memory of blocks and panels changes how often is looked, never the values."""
    from pellucid_influence import training

    x, y, q = images()
    whole = explain(net(), q, create("influence_functions", train=(x, y), damping=0.1), target=0)
    for name, size in (("BLOCK_BYTES", 5_000), ("PANEL_BYTES", 10_000), ("LOOK", 3)):
        monkeypatch.setattr(training, name, size)
        parts = explain(net(), q, create("influence_functions", train=(x, y), damping=0.1), target=0)
        assert torch.allclose(parts.values, whole.values)
        assert torch.allclose(parts.self_influence, whole.self_influence)
    assert parts.meta.passes["forward"] > whole.meta.passes["forward"]


def test_a_duplicate_of_the_query_with_its_label_helps_most():
    x, y, _ = images()
    found = explain(net(), x[5:6], create("ntk_influence", train=(x, y)), target=int(y[5]))
    assert int(found.top(0, 1).places if hasattr(found.top(0, 1), "places") else found.top(0, 1)[1]) == 5
    wrong = y.clone()
    wrong[5] = (y[5] + 1) % 3
    opposed = explain(net(), x[5:6], create("ntk_influence", train=(x, wrong)), target=int(y[5]))
    assert opposed.values[0, 5] < 0 < found.values[0, 5]


def test_tracin_sums_over_checkpoints_and_agrees_with_captum():
    captum = pytest.importorskip("captum.influence")
    x, y, q = images()
    states = [net(seed).state_dict() for seed in (0, 1, 2)]
    rates = [0.3, 0.2, 0.1]
    found = explain(
        net(), q, create("tracin", train=(x, y), checkpoints=states, learning_rates=rates), target=Loss(y[:4])
    )
    plain, own = 0, 0
    for seed, rate in zip((0, 1, 2), rates, strict=True):
        train = of_losses(net(seed), x, y)
        plain = plain + rate * of_losses(net(seed), q, y[:4]) @ train.T
        own = own + rate * train.square().sum(dim=1)
    assert torch.allclose(found.values, -plain)
    assert torch.allclose(found.self_influence, own)

    def load(model, path):
        model.load_state_dict(states[path])
        return rates[path]

    peer = captum.TracInCP(
        net(),
        torch.utils.data.TensorDataset(x, y),
        [0, 1, 2],
        load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=8,
    )
    assert torch.allclose(found.values, -peer.influence((q, y[:4])))


@pytest.mark.parametrize("damping", [0.05, "auto"])
def test_the_fisher_matrix_through_the_kernel_is_the_one_written_out(damping):
    x, y, q = images()
    model = net()
    found = explain(model, q, create("influence_functions", train=(x, y), damping=damping), target=1)
    train, n = of_losses(model, x, y), len(x)
    fisher = train.T @ train / n
    added = fisher.trace() / n if damping == "auto" else damping
    inner = torch.linalg.inv(fisher + added * torch.eye(len(fisher), dtype=torch.float64))
    expected = -rows(model, q, lambda out, i: out[0, 1]) @ inner @ train.T / n
    assert torch.allclose(found.values, expected, rtol=1e-7)
    assert torch.allclose(found.self_influence, (train @ inner * train).sum(dim=1) / n, rtol=1e-7)


def test_the_gauss_newton_matrix_of_softmax_regression_is_the_hessian(softmax):
    trainer, model, q, _ = softmax
    x, y = trainer.train
    found = explain(
        model, q, create("influence_functions", train=(x, y), curvature="gauss_newton", damping=1e-2), target=3
    )

    def loss(weight, bias):
        return F.cross_entropy(x @ weight.T + bias, y)

    blocks = torch.autograd.functional.hessian(loss, (model.weight, model.bias))
    hessian = torch.cat(
        [
            torch.cat([b.reshape(p.numel(), -1) for b in row], 1)
            for p, row in zip(model.parameters(), blocks, strict=True)
        ]
    )
    inner = torch.linalg.inv(hessian + 1e-2 * torch.eye(650, dtype=torch.float64))
    expected = -rows(model, q, lambda out, i: out[0, 3]) @ inner @ of_losses(model, x, y).T / len(x)
    assert torch.allclose(found.values, expected, rtol=1e-6, atol=1e-12)


def test_influence_foretells_leaving_out_of_converged_softmax_regression(softmax):
    trainer, model, q, y = softmax
    left = list(range(0, 300, 12))
    found = explain(
        model, q, create("influence_functions", train=trainer.train, curvature="gauss_newton", damping=1e-2), target=y
    )
    score = create("leave_one_out_correlation", trainer=trainer, examples=left)
    control = explain(model, q, create("influence_control", train=trainer.train), target=y)
    table = pellucid.evaluate(model, q, {"ours": found, "likeness": control}, score, target=y)
    ours, likeness = (table.values[i] for i in (0, 1))
    assert ours.min() > 0.995
    assert likeness.mean() < 0.9


def test_ridge_regression_has_leaving_out_in_closed_form():
    """Signs and scale: the derivative, and by it and the leverage the truth."""
    torch.manual_seed(0)
    n, decay = 30, 0.1
    x = torch.randn(n + 5, 4, dtype=torch.float64)
    y = x @ torch.randn(4, 1, dtype=torch.float64) + 0.3 * torch.randn(n + 5, 1, dtype=torch.float64)
    trainer = Trainer(lambda: nn.Linear(4, 1, bias=False).double(), x[:n], y[:n], "lbfgs", weight_decay=decay)
    model = nn.Linear(4, 1, bias=False).double()
    hessian = 2 * x[:n].T @ x[:n] / n + decay * torch.eye(4, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(hessian, 2 * x[:n].T @ y[:n] / n).T)
    technique = create("influence_functions", train=trainer.train, curvature="gauss_newton", damping=decay)
    found = explain(model, x[n:], technique, target=0).values
    residual = (y[:n] - x[:n] @ model.weight.T)[:, 0]
    moved = 2 / n * torch.linalg.solve(hessian, x[:n].T)
    assert torch.allclose(found, x[n:] @ moved * residual, rtol=1e-9)
    # Without example i, and with the mean still over n, the weights solve a system of one row less.
    leverage = (x[:n] * moved.T).sum(dim=1)
    exact = found / (1 - leverage)
    for i in (0, 7, 29):
        kept = torch.arange(n) != i
        rest = 2 * x[:n][kept].T @ x[:n][kept] / n + decay * torch.eye(4, dtype=torch.float64)
        without = torch.linalg.solve(rest, 2 * x[:n][kept].T @ y[:n][kept] / n)
        assert torch.allclose(exact[:, i], (x[n:] @ (model.weight.T - without))[:, 0].detach(), rtol=1e-8)
    # Trained anew, the mean is over n - 1: the weight decay counts less, by a factor of (n - 1) / n.
    truth = explain(model, x[n:], create("leave_one_out", trainer=trainer, examples=[7]), target=0).values[:, 7]
    kept = torch.arange(n) != 7
    rest = 2 * x[:n][kept].T @ x[:n][kept] / (n - 1) + decay * torch.eye(4, dtype=torch.float64)
    without = torch.linalg.solve(rest, 2 * x[:n][kept].T @ y[:n][kept] / (n - 1))
    assert torch.allclose(truth, (x[n:] @ (model.weight.T - without))[:, 0].detach(), atol=1e-6)


def test_trak_is_the_kernel_machine_of_margins():
    x, y, q = images()
    models = [net(0), net(1)]
    technique = create("trak", train=(x, y), models=[m.state_dict() for m in models], ridge=0.5)
    found = explain(models[0], q, technique, target=2)
    parts, shares = 0, 0
    for model in models:
        features = rows(model, x, lambda out, i: out[0, y[i]] - out[0, torch.arange(3) != y[i]].logsumexp(0))
        queries = rows(model, q, lambda out, i: out[0, 2])
        ridge = 0.5 * torch.eye(features.shape[1], dtype=torch.float64)
        parts = parts + queries @ torch.linalg.inv(features.T @ features + ridge) @ features.T / 2
        shares = shares + (1 - model(x).softmax(1).gather(1, y[:, None])[:, 0]) / 2
    assert torch.allclose(found.values, (parts * shares).detach(), rtol=1e-7)


def test_projected_trak_tends_to_the_exact_one():
    x, y, q = images()
    exact = explain(net(), q, create("trak", train=(x, y), ridge=0.5), target=2).values
    errors = []
    for size in (8, 64, 512, 4096):
        found = explain(net(), q, create("trak", train=(x, y), ridge=0.5, projection=size), target=2).values
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


def test_self_influence_finds_wrong_labels(softmax):
    x, y = digits()
    x, y = x[:600], y[:600]
    generator = torch.Generator().manual_seed(0)
    wrong = torch.zeros(600, dtype=torch.bool)
    wrong[torch.randperm(600, generator=generator)[:60]] = True
    flipped = torch.where(wrong, (y + torch.randint(1, 10, (600,), generator=generator)) % 10, y)
    trainer = Trainer(lambda: nn.Linear(64, 10).double(), x, flipped, "lbfgs", weight_decay=1e-2)
    model = nn.Linear(64, 10).double()
    model.load_state_dict(trainer.weights())
    score = create("mislabel_detection", wrong=wrong)
    explanations = {
        "ntk": explain(model, x[:2], create("ntk_influence", train=trainer.train)),
        "functions": explain(
            model, x[:2], create("influence_functions", train=trainer.train, curvature="gauss_newton", damping=1e-2)
        ),
        "loss": explain(model, x[:2], create("influence_control", train=trainer.train, kind="loss")),
        "random": explain(model, x[:2], create("influence_control", train=trainer.train, kind="random")),
    }
    table = pellucid.evaluate(model, x[:2], explanations, score)
    by_name = {row.explanation: float(value) for row, value in zip(table.rows, table.values[:, 0], strict=True)}
    assert by_name["ntk"] > 0.97
    assert by_name["functions"] > 0.97
    assert by_name["loss"] > 0.97
    assert 0.3 < by_name["random"] < 0.7


@pytest.mark.parametrize("name", TECHNIQUES)
def test_bad_training_data(name):
    x, y, q = images()
    with pytest.raises(InputError, match="shape"):
        explain(net(), q, create(name, train=(x[..., :6], y)))
    with pytest.raises(TargetError, match=r"7.*3 classes"):
        explain(net(), q, create(name, train=(x, y.clone().fill_(7))))
    with pytest.raises(InputError, match="-1"):
        explain(net(), q, create(name, train=(x, y - 1)))
    with pytest.raises(InputError, match="finite"):
        explain(net(), q, create(name, train=(x * torch.nan, y)))
    for train in ((x, y[:3]), x, "train", (x[:0], y[:0]), None):
        with pytest.raises((InputError, ParameterError), match=r"train|shape"):
            create(name, train=train)


def test_an_untrained_model_is_told(softmax):
    trainer, model, q, _ = softmax
    x, y, _ = images()
    loss = next(
        c for c in explain(net(), x[:2], create("ntk_influence", train=(x, y))).checks if c.name == "training loss"
    )
    assert loss.passed is False
    assert "untrained" in loss.note
    assert "norm" in loss.note
    loss = next(
        c for c in explain(model, q, create("ntk_influence", train=trainer.train)).checks if c.name == "training loss"
    )
    assert loss.passed


def test_classes_without_examples_are_named():
    x, y, q = images()
    for name in TECHNIQUES:
        lacking = explain(net(), q, create(name, train=(x, y.clamp_max(1)))).checks
        check = next(one for one in lacking if one.name == "classes without examples")
        assert check.value == 1
        assert check.passed is False
        assert "2" in check.note
        whole = explain(net(), q, create(name, train=(x, y))).checks
        assert next(one for one in whole if one.name == "classes without examples").passed


def test_a_singular_system_asks_for_damping():
    x, y, q = images()
    for options in ({"curvature": "gauss_newton"}, {}):
        twice = (torch.cat([x, x]), torch.cat([y, y]))
        with pytest.raises(ParameterError, match="greater damping"):
            explain(net(), q, create("influence_functions", train=twice, damping=0.0, **options))


def test_what_is_left_out_is_named():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory, self.head = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.memory(x[:, 0])[0][:, -1])

    x, y, q = images()
    torch.manual_seed(0)
    found = explain(Recurrent().double(), q, create("ntk_influence", train=(x, y)))
    check = next(c for c in found.checks if c.name == "uncovered parameters")
    assert check.passed is False
    assert check.value == pytest.approx(225 / 243)
    assert "memory.weight_ih_l0" in check.note


def test_trak_and_tracin_refuse_empty_lists():
    x, y, _ = images()
    with pytest.raises(ParameterError, match="empty"):
        create("tracin", train=(x, y), checkpoints=[])
    with pytest.raises(ParameterError, match="learning rates"):
        create("tracin", train=(x, y), learning_rates=[0.1, 0.2])
    with pytest.raises(ParameterError, match="empty"):
        create("trak", train=(x, y), models=[])
    with pytest.raises(ParameterError, match="class indices"):
        create("trak", train=(x, y.double()))


@pytest.mark.parametrize("scale", [1e-7, 1e6])
@pytest.mark.parametrize(("name", "word", "size"), [("influence_functions", "damping", 1.0), ("trak", "ridge", 1e3)])
def test_influences_of_a_model_of_half_precision_are_not_rounded_to_it(name, word, size, scale):
    """They would overflow, or vanish."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 9).half().float(), torch.arange(8) % 3
    model = nn.Linear(9, 3).half()
    technique = create(name, train=(x, y), **{word: size / scale})
    found = explain(model, x[:2], technique, target=0)
    expected = explain(model.float(), x[:2], technique, target=0)
    assert found.values.dtype == torch.float32
    assert bool(found.values.isfinite().all())
    assert (found.values - expected.values).abs().max() <= 0.02 * expected.values.abs().max()


@pytest.mark.parametrize("in_turn", [False, True])
def test_one_query_is_held_against_many_examples_whatever_the_layout(in_turn):
    """Where the examples are not first, one alone leaves nothing to guess; several do, and both must be held alike."""

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.inner, self.head = nn.Embedding(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = x + self.places(torch.arange(4))
            if in_turn:
                return self.head(torch.stack([self.inner(one).tanh().mean(0) for one in x]))
            return self.head(self.inner(x.transpose(0, 1)).tanh().mean(0))

    torch.manual_seed(0)
    model, x, y = Second().double(), torch.randn(13, 4, 5, dtype=torch.float64), torch.arange(13) % 3
    for n in (1, 4):
        found = explain(model, x[:n], create("ntk_influence", train=(x, y)), target=[1] * n)
        head = [model.head.weight, model.head.bias]

        def of(score, head=head):
            return torch.cat([part.flatten() for part in torch.autograd.grad(score, head)])

        queries = torch.stack([of(model(x[i : i + 1])[0, 1]) for i in range(n)])
        losses = torch.stack([of(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])) for i in range(13)])
        assert torch.allclose(found.values, -queries @ losses.T)
        assert "places.weight" in found.checks.named("uncovered parameters").note


def test_the_influence_on_a_unit():
    """Later layers have no part in the unit's activation."""
    torch.manual_seed(0)
    model, (x, y, q) = net(), images()
    found = explain(model, q, create("ntk_influence", train=(x, y)), target=Unit("3", 2))
    queries = []
    for one in q:
        score = model[:4](one[None])[0, 2].mean()
        parts = torch.autograd.grad(score, list(model.parameters()), allow_unused=True, materialize_grads=True)
        queries.append(torch.cat([part.flatten() for part in parts]))
    unit = explain(model, q, create("tracin", train=(x, y)), target=Unit("3", 2))
    assert torch.allclose(found.values, unit.values)
    share = found.values / -(torch.stack(queries) @ of_losses(model, x, y).T)
    assert torch.allclose(share, share[0, 0].expand_as(share))


def test_an_optimised_copy_is_left_aside():
    """Folding BatchNorm changes what the parameters are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    x, y, q = images()
    technique = create("ntk_influence", train=(x, y))
    found = explain(pellucid.adapt(model, optimize=True), q, technique, target=0)
    assert torch.equal(found.values, explain(model, q, technique, target=0).values)
    assert any("left aside" in note for note in found.meta.notes)
