"""The trainer, leaving out, and the evaluators of influence."""

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid import Attribution, Influence, InputError, ParameterError, Trainer, create, evaluate, explain


def linear():
    return nn.Linear(4, 1, bias=False).double()


def table(n=40):
    torch.manual_seed(0)
    x = torch.randn(n, 4, dtype=torch.float64)
    return x, x @ torch.randn(4, 1, dtype=torch.float64) + 0.3 * torch.randn(n, 1, dtype=torch.float64)


def test_the_trainer_takes_the_steps_of_plain_gradient_descent():
    x, y = table()
    trainer = Trainer(linear, x, y, learning_rate=0.05, momentum=0.5, weight_decay=0.1, epochs=2, batch_size=16)
    weight, speed = trainer.model(3).weight.detach().clone(), torch.zeros(1, 4, dtype=torch.float64)
    kept = torch.arange(40) % 3 > 0
    for places in trainer.batches(3):
        places = places[kept[places]]
        gradient = 2 * (x[places] @ weight.T - y[places]).T @ x[places] / len(places) + 0.1 * weight
        speed = 0.5 * speed + gradient
        weight = weight - 0.05 * speed
    assert torch.allclose(trainer.weights(kept, seed=3)["weight"], weight)


def test_the_trainer_depends_on_its_seed_alone():
    x, y = table()
    trainer = Trainer(linear, x, y, "adam", epochs=1)
    before = torch.get_rng_state()
    one = trainer.weights(seed=1)["weight"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(trainer.weights(seed=1)["weight"], one)
    assert not torch.equal(trainer.weights(seed=2)["weight"], one)
    assert not one.requires_grad


def test_the_trainer_refuses_what_it_cannot_use():
    x, y = table()
    with pytest.raises(ParameterError, match="optimizer"):
        Trainer(linear, x, y, "newton")
    with pytest.raises(InputError, match="as many"):
        Trainer(linear, x, y[:3])
    with pytest.raises(InputError, match="bools"):
        Trainer(linear, x, y).weights(torch.zeros(40, dtype=torch.bool))


def partly_frozen():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
def test_frozen_parameters_are_not_trained(optimizer):
    x, y = table(12)
    trainer = Trainer(partly_frozen, x, y, optimizer, epochs=2)
    before, after = trainer.model(0).state_dict(), trainer.weights(seed=0)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["2.weight", "2.bias"]
    # Of a copy of the model that is being explained, all are.
    locked = Trainer(lambda: partly_frozen().requires_grad_(False), x, y, optimizer, epochs=2).weights(seed=0)
    assert not any(torch.equal(before[name], locked[name]) for name in before)


def test_frozen_parameters_have_no_part_in_an_unrolled_training():
    x, y = table(12)
    trainer = Trainer(partly_frozen, x, y, epochs=2, batch_size=5)
    model = trainer.model(0)
    model.load_state_dict(trainer.weights())
    found = explain(model, x[:2], create("unrolled", trainer=trainer), target=0)
    assert found.checks.named("distance of the trained model").passed

    class Alone(nn.Module):
        """The trained head, of what the frozen part gives."""

        def __init__(self):
            super().__init__()
            whole = partly_frozen()
            self.frozen, self.head = [whole[0]], whole[2]  # in a list, a module's parameters are not the model's

        def forward(self, x):
            return self.head(self.frozen[0](x).tanh())

    head = Trainer(Alone, x, y, epochs=2, batch_size=5)
    other = head.model(0)
    other.load_state_dict(head.weights())
    assert torch.allclose(found.values, explain(other, x[:2], create("unrolled", trainer=head), target=0).values)


def test_leaving_out_is_the_difference_of_two_trainings():
    x, y = table(12)
    trainer = Trainer(linear, x, y, epochs=2, batch_size=4)
    found = explain(linear(), x[:3], create("leave_one_out", trainer=trainer, examples=[2, 7], n_seeds=2), target=0)
    assert found.values[:, [0, 1, 3]].isnan().all()
    assert found.values[:, [2, 7]].isfinite().all()
    assert "standard error" in [check.name for check in found.checks]
    with pytest.raises(InputError, match="from 0 to 11"):
        create("leave_one_out", trainer=trainer, examples=[12])
    with pytest.raises(ParameterError, match="trainer"):
        create("leave_one_out", trainer="sgd")


def test_lds_is_the_rank_correlation_of_sums_and_retrained_scores():
    """Of converged least squares the Gauss-Newton influence is nearly right, its negative wrong, noise chance."""
    stats = pytest.importorskip("scipy.stats")
    x, y = table(60)
    trainer = Trainer(linear, x[:50], y[:50], "lbfgs", weight_decay=0.05)
    model = linear()
    model.load_state_dict(trainer.weights())
    q = x[50:]
    right = explain(
        model, q, create("influence_functions", train=trainer.train, curvature="gauss_newton", damping=0.05), target=0
    )
    wrong = Influence(-right.values)
    noise = explain(model, q, create("influence_control", train=trainer.train, kind="random"), target=0)
    metric = create("linear_datamodeling_score", trainer=trainer, n_subsets=24)
    scores = evaluate(model, q, {"right": right, "wrong": wrong, "noise": noise}, metric, target=0)
    ours, opposite, chance, *controls = scores.values.mean(dim=1).tolist()
    assert ours > 0.85
    assert opposite == pytest.approx(-ours)
    assert abs(chance) < 0.5
    assert {row.explanation for row in scores.rows if row.control} == {"random", "similarity", "loss"}
    assert [row.control for row in scores.rows] == [False] * 3 + [True] * 3
    assert max(map(abs, controls)) < 0.5

    # The same once more, in a slower way, for one query.
    looked = []

    class Spy:
        def weights(self, kept, seed):
            looked.append((kept.clone(), trainer.weights(kept, seed)["weight"]))
            return {"weight": looked[-1][1]}

        def __len__(self):
            return 50

    object.__setattr__(metric, "trainer", Spy())
    again = evaluate(model, q, {"right": right}, metric, target=0, controls=False).values[0, 0]
    truth = [float(q[0] @ weight[0]) for _, weight in looked]
    sums = [float(right.values[0][kept].sum()) for kept, _ in looked]
    assert {int(kept.sum()) for kept, _ in looked} == {25}
    assert float(again) == pytest.approx(stats.spearmanr(sums, truth).statistic)


def test_mislabel_detection_is_the_area_under_the_curve():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    own = torch.randint(0, 8, (50,), generator=generator).double()  # with ties
    wrong = torch.rand(50, generator=generator) < 0.3
    influence = Influence(torch.zeros(2, 50), self_influence=own)
    found = evaluate(
        linear(), torch.zeros(2, 4).double(), influence, create("mislabel_detection", wrong=wrong), target=0
    )
    assert float(found.values[0, 0]) == pytest.approx(metrics.roc_auc_score(wrong.numpy(), own.numpy()))
    assert [(row.explanation, row.control) for row in found.rows][1:] == [
        ("random", True)
    ]  # no training data are known


def test_an_influence_that_is_not_a_number_has_no_score():
    """Ranked with the others it would have one, of chance."""
    x, y = table(12)
    trainer = Trainer(linear, x, y, epochs=1)
    values, own = torch.randn(2, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    values[1, 3] = own[5] = torch.nan
    influence = Influence(values, self_influence=own)
    for metric, scored in (
        (create("linear_datamodeling_score", trainer=trainer, n_subsets=4), [True, False]),
        (create("leave_one_out_correlation", trainer=trainer, examples=[0, 3, 6]), [True, False]),
        (create("mislabel_detection", wrong=torch.arange(12) > 8), [False, False]),
    ):
        found = evaluate(linear(), x[:2], influence, metric, target=0, controls=False)
        assert found.values[0].isfinite().expand(2).tolist() == scored


def test_every_score_of_influences_stands_beside_controls():
    """Noise, the loss, and likeness within the class where scores are foretold; one training serves them all."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 1, 4, 4), torch.arange(30) % 3
    trained = []

    def make():
        trained.append(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    trainer = Trainer(make, x, y, epochs=2)
    model = make()
    model.load_state_dict(trainer.weights())
    found = explain(model, x[:4], create("ntk_influence", train=(x, y)))
    for metric, usual in (
        (create("linear_datamodeling_score", trainer=trainer, n_subsets=3), ["random", "similarity", "loss"]),
        (create("leave_one_out_correlation", trainer=trainer, examples=[0, 5]), ["random", "similarity", "loss"]),
        (create("mislabel_detection", wrong=torch.arange(30) > 26), ["random", "loss"]),
        (create("mislabel_detection", wrong=torch.arange(30) > 26, train=(x, y)), ["random", "loss"]),
    ):
        scores = evaluate(model, x[:4], {"ours": found}, metric)
        assert [row.explanation for row in scores.rows] == ["ours", *usual]
        assert [row.control for row in scores.rows] == [False] + [True] * len(usual)
        alone = create("influence_control", train=(x, y), kind="loss")
        named = evaluate(model, x[:4], {"loss": explain(model, x[:4], alone)}, metric, controls=False)
        torch.testing.assert_close(named.values[0], scores.values[-1])
    fitted = []
    fit = Trainer._fit

    class Counted(Trainer):
        def _fit(self, model, kept, seed):
            fitted.append(int(kept.sum()))
            fit(self, model, kept, seed)

    metric = create("linear_datamodeling_score", trainer=Counted(make, x, y, epochs=2), n_subsets=3)
    evaluate(model, x[:4], {"ours": found, "again": found}, metric)
    assert fitted == [15] * 3


def test_the_latest_training_is_not_taken_for_another():
    x, y = table(12)
    trainer = Trainer(linear, x, y, epochs=2)
    first = trainer.weights()
    first["weight"].zero_()  # what is kept is a copy
    again = trainer.weights()["weight"]
    assert again.abs().max() > 0
    assert not again.equal(trainer.weights(seed=1)["weight"])
    kept = torch.arange(12) > 3
    assert not again.equal(trainer.weights(kept)["weight"])
    x.mul_(2)
    assert not again.equal(trainer.weights()["weight"])


def test_controls_of_influence_know_nothing_of_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.arange(9) % 3
    q = x[:2]
    likeness = explain(model, q, create("influence_control", train=(x, y)))
    predicted = model(q).argmax(1)
    centred = (x - x.mean(0)).flatten(1).numpy()
    for i in range(2):
        for j in range(9):
            cosine = centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])
            sign = 1 if predicted[i] == y[j] else -1
            assert float(likeness.values[i, j]) == pytest.approx(sign * cosine)
    loss = explain(model, q, create("influence_control", train=(x, y), kind="loss"))
    assert torch.allclose(loss.self_influence, nn.functional.cross_entropy(model(x), y, reduction="none").detach())
    noise = create("influence_control", train=(x, y), kind="random")
    assert not torch.equal(explain(model, q, noise).values, explain(model, q, noise, seed=1).values)


def test_what_is_no_influence_of_these_examples_is_refused():
    x, y = table(12)
    trainer, q = Trainer(linear, x, y, epochs=1), x[:2]
    for metric in (
        create("linear_datamodeling_score", trainer=trainer, n_subsets=2),
        create("leave_one_out_correlation", trainer=trainer, examples=[0, 1]),
        create("mislabel_detection", wrong=torch.arange(12) > 8),
    ):
        with pytest.raises(InputError, match="expected an Influence"):
            evaluate(linear(), q, Attribution(torch.zeros(2, 4), over="input"), metric, target=0, controls=False)
        with pytest.raises(InputError, match="12"):
            evaluate(linear(), q, Influence(torch.zeros(2, 5)), metric, target=0)
    with pytest.raises(InputError, match="self-influence"):
        evaluate(linear(), q, Influence(torch.zeros(2, 12)), metric, target=0)
    for wrong in (torch.zeros(12), torch.zeros(12, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)):
        with pytest.raises(InputError, match="bools"):
            create("mislabel_detection", wrong=wrong)
    assert pellucid.technique("mislabel_detection").better == "higher"
