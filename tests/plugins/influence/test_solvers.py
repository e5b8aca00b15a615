"""The solvers of influence functions against matrices that are written out in a plainer way."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import ParameterError, Unsuitable, create, explain
from pellucid_influence import curvature as room
from pellucid_influence import ek_fac as ek_fac_room
from pellucid_influence import training as shared


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)).double()


def images(n=23, q=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n + q, 1, 6, 6, generator=generator, dtype=torch.float64)
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


def matrix(kind, model, x, y):
    """The curvature of the mean loss."""
    if kind == "fisher":
        train = of_losses(model, x, y)
        return train.T @ train / len(x)
    total = 0
    for i in range(len(x)):
        jacobian = torch.cat([rows(model, x[i : i + 1], lambda out, _, c=c: out[0, c]) for c in range(3)])
        p = model(x[i : i + 1]).softmax(1)[0].detach()
        total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(x)
    return total


def expected(kind, damping, c=1):
    x, y, q = images()
    model = net()
    train, curved = of_losses(model, x, y), matrix(kind, model, x, y)
    inner = torch.linalg.inv(curved + damping * torch.eye(len(curved), dtype=torch.float64))
    queries = rows(model, q, lambda out, i: out[0, c])
    return -queries @ inner @ train.T / len(x), (train @ inner * train).sum(dim=1) / len(x)


def check(found, name):
    return next(one for one in found.checks if one.name == name)


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton"])
@pytest.mark.parametrize("kept", [True, False])
def test_conjugate_gradients_solve_the_system(kind, kept, monkeypatch):
    if not kept:  # rows are then looked at anew in every step, in blocks
        monkeypatch.setattr(room, "PANEL_BYTES", 0)
        monkeypatch.setattr(room, "BLOCK_BYTES", 20_000)
    x, y, q = images()
    technique = create("influence_functions", train=(x, y), curvature=kind, solver="cg", damping=0.02)
    found = explain(net(), q, technique, target=1)
    assert torch.allclose(found.values, expected(kind, 0.02)[0], rtol=1e-6, atol=1e-10)
    assert found.self_influence is None
    assert check(found, "residual").value < 1e-7
    assert check(found, "damping").value == pytest.approx(0.02)


def test_conjugate_gradients_that_are_stopped_say_so():
    x, y, q = images()
    technique = create("influence_functions", train=(x, y), solver="cg", damping=1e-3, n_steps=1)
    assert check(explain(net(), q, technique, target=1), "residual").passed is False


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton"])
def test_lissa_of_all_examples_tends_to_the_solution(kind):
    x, y, q = images()
    errors = []
    for n_steps in (20, 80, 1500):
        technique = create(
            "influence_functions", train=(x, y), curvature=kind, solver="lissa", damping=0.1, n_steps=n_steps,
            batch_size=23,
        )  # fmt: skip
        found = explain(net(), q, technique, target=1)
        exact = expected(kind, 0.1)[0]
        errors.append(float((found.values - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8
    assert check(found, "residual").passed


def test_lissa_of_batches_is_near_the_solution_and_depends_on_the_seed(monkeypatch):
    x, y, q = images()
    technique = create(
        "influence_functions", train=(x, y), solver="lissa", damping=0.5, n_steps=300, batch_size=8
    )  # fmt: skip
    found = [explain(net(), q, technique, target=1, seed=seed).values for seed in (0, 1, 0)]
    exact = expected("fisher", 0.5)[0]
    for one in found:
        assert float((one - exact).norm() / exact.norm()) < 0.1
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    monkeypatch.setattr(room, "PANEL_BYTES", 0)
    again = explain(net(), q, create("influence_functions", train=(x, y), solver="lissa", damping=0.5, n_steps=300,
                                     batch_size=8), target=1)  # fmt: skip
    assert torch.allclose(again.values, found[0])


def blocks(kind):
    """EK-FAC in a plainer way: for each parameter group a matrix of all examples' gradients."""
    x, y, q = images()
    model = net()
    conv, head = model[0], model[4]
    train, queries = of_losses(model, x, y), rows(model, q, lambda out, i: out[0, 1])
    if kind == "fisher":
        curved = train
    else:
        curved = []
        for i in range(len(x)):
            jacobian = torch.cat([rows(model, x[i : i + 1], lambda out, _, c=c: out[0, c]) for c in range(3)])
            p = model(x[i : i + 1]).softmax(1)[0].detach()
            values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
            curved.append((vectors * values.clamp_min(0).sqrt()).T @ jacobian)
        curved = torch.cat(curved)

    def split(vectors):
        weight, bias, upper, last = vectors.split([p.numel() for p in (*conv.parameters(), *head.parameters())], dim=1)
        whole = torch.cat([upper.reshape(-1, 3, 12), last[..., None]], dim=2)
        return [weight.reshape(-1, 3, 9), bias[:, None], whole]

    return split(train), split(queries), split(curved), len(x)


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton"])
@pytest.mark.parametrize("kept", [True, False])
def test_ek_fac_layer_by_layer(kind, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(room, "PANEL_BYTES", 0)
        monkeypatch.setattr(room, "BLOCK_BYTES", 20_000)
    values, own = 0, 0
    for train, queries, curved, n in zip(*blocks(kind)[:3], [23] * 3, strict=True):
        left = torch.linalg.eigh(torch.einsum("nij,nkj->ik", curved, curved))[1]
        right = torch.linalg.eigh(torch.einsum("nij,nik->jk", curved, curved))[1]
        basis = torch.kron(left, right)  # (q p, q p)
        eigenvalues = (curved.flatten(1) @ basis).square().sum(dim=0) / n
        inner = basis @ torch.diag(1 / (eigenvalues + 0.02)) @ basis.T
        values = values - queries.flatten(1) @ inner @ train.flatten(1).T / n
        own = own + (train.flatten(1) @ inner * train.flatten(1)).sum(dim=1) / n
    x, y, q = images()
    technique = create("influence_functions", train=(x, y), curvature=kind, solver="ek_fac", damping=0.02)
    found = explain(net(), q, technique, target=1)
    assert torch.allclose(found.values, values, rtol=1e-8, atol=1e-12)
    assert torch.allclose(found.self_influence, own, rtol=1e-8, atol=1e-12)
    exact = expected(kind, 0.02)[0]
    assert torch.corrcoef(torch.stack([found.values.flatten(), exact.flatten()]))[0, 1] > 0.7
    assert 0 < check(found, "effective parameters").value < 69


@pytest.mark.parametrize("curvature", ["fisher", "gauss_newton"])
def test_ek_fac_is_exact_for_a_layer_of_one_output(curvature):
    """Least squares: the bases diagonalise the whole matrix, inputs and residuals being dependent or not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = x[:, :1] ** 2
    torch.manual_seed(0)
    model = nn.Linear(5, 1).double()
    options = {"train": (x[:15], y[:15]), "damping": 0.01, "curvature": curvature}
    found, exact = (
        explain(model, x[15:], create("influence_functions", solver=solver, **options), target=0)
        for solver in ("ek_fac", "explicit")
    )
    assert torch.allclose(found.values, exact.values, rtol=1e-8)
    assert torch.allclose(found.self_influence, exact.self_influence, rtol=1e-8)


def test_ek_fac_without_bases_of_wide_sides(monkeypatch):
    """What is too wide for a basis keeps its axes; with none at all the curvature is its diagonal."""
    monkeypatch.setattr(ek_fac_room, "WIDEST", 0)
    x, y, q = images()
    found = explain(
        net(), q, create("influence_functions", train=(x, y), solver="ek_fac", damping=0.02), target=1
    )  # fmt: skip
    train, queries = of_losses(net(), x, y), rows(net(), q, lambda out, i: out[0, 1])
    diagonal = train.square().mean(dim=0) + 0.02
    assert torch.allclose(found.values, -queries / diagonal @ train.T / len(x), rtol=1e-8)


def test_singular_and_too_large_systems(monkeypatch):
    x, y, q = images()
    with pytest.raises(ParameterError, match="greater damping"):
        explain(net(), q, create("influence_functions", train=(x[:2], y[:2]), solver="ek_fac", damping=0.0))
    from pellucid_influence import influence_functions

    monkeypatch.setattr(influence_functions, "LARGEST", 10)
    with pytest.raises(Unsuitable, match="ek_fac"):
        explain(net(), q, create("influence_functions", train=(x, y), curvature="gauss_newton", damping=0.1))
    for options in ({"solver": "newton"}, {"n_steps": 0}, {"batch_size": 0}, {"damping": -1.0}):
        with pytest.raises(ParameterError):
            create("influence_functions", train=(x, y), **options)


def test_solvers_agree_in_single_precision():
    x, y, q = images()
    found = {
        solver: explain(
            net().float(), q.float(), create("influence_functions", train=(x.float(), y), solver=solver, damping=0.05)
        ).values
        for solver in ("explicit", "cg")
    }
    assert found["cg"].dtype == torch.float32
    assert torch.allclose(found["cg"], found["explicit"], rtol=1e-3, atol=1e-6)
    assert pellucid.technique("influence_functions").uses == {"factors"}


def test_a_low_rank_of_all_directions_is_the_matrix_written_out():
    x, y, q = images()
    for rank in (69, 1000):  # three outputs of 23 examples
        technique = create("influence_functions", train=(x, y), curvature="gauss_newton", rank=rank, damping=0.02)
        found = explain(net(), q, technique, target=1)
        values, selves = expected("gauss_newton", 0.02)
        assert torch.allclose(found.values, values, rtol=1e-8, atol=1e-12)
        assert torch.allclose(found.self_influence, selves, rtol=1e-8)
        assert check(found, "curvature kept").value == pytest.approx(1)
        curved = matrix("gauss_newton", net(), x, y)
        trace = (curved @ torch.linalg.inv(curved + 0.02 * torch.eye(len(curved)))).trace()
        assert check(found, "effective parameters").value == pytest.approx(float(trace))


def test_a_low_rank_keeps_the_directions_in_which_the_loss_curves_most():
    x, y, q = images()
    model = net()
    technique = create("influence_functions", train=(x, y), curvature="gauss_newton", rank=9, damping=0.02)
    found = explain(model, q, technique, target=1)
    candidates = []
    for i in range(len(x)):
        p = model(x[i : i + 1]).softmax(1)[0].detach()
        values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
        for value, vector in zip(values, vectors.T, strict=True):
            candidates.append((float(value), i, vector))
    greatest = sorted(candidates, key=lambda one: -one[0])[:9]
    curved = 0
    for value, i, vector in greatest:
        row = rows(model, x[i : i + 1], lambda out, _, v=vector: (out[0] * v).sum())
        curved = curved + value * row.T @ row / len(x)
    inner = torch.linalg.inv(curved + 0.02 * torch.eye(len(curved), dtype=torch.float64))
    train = of_losses(model, x, y)
    asked = -rows(model, q, lambda out, i: out[0, 1]) @ inner @ train.T / len(x)
    assert torch.allclose(found.values, asked, rtol=1e-8, atol=1e-12)
    kept = sum(one[0] for one in greatest) / sum(one[0] for one in candidates)
    assert check(found, "curvature kept").value == pytest.approx(kept)


def test_a_low_rank_is_of_the_gauss_newton_matrix_of_a_classifier():
    x, y, q = images()
    for options in ({}, {"curvature": "gauss_newton", "solver": "cg"}):
        with pytest.raises(ParameterError, match="Gauss-Newton"):
            create("influence_functions", train=(x, y), rank=3, **options)
    with pytest.raises(ParameterError, match="damping"):
        create("influence_functions", train=(x, y), curvature="gauss_newton", rank=3, damping=0.0)
    technique = create("influence_functions", train=(x, torch.zeros(23, 3).double()), curvature="gauss_newton", rank=3)
    with pytest.raises(Unsuitable, match="rank=None"):
        explain(net(), q, technique, target=1)


SOFTENED = {
    "fisher": {},
    "gauss_newton": {"curvature": "gauss_newton"},
    "gauss_newton, all directions": {"curvature": "gauss_newton", "rank": 69},
    "fisher, cg": {"solver": "cg"},
    "gauss_newton, cg": {"curvature": "gauss_newton", "solver": "cg"},
}


@pytest.mark.parametrize("name", SOFTENED)
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_temperature_divides_the_outputs_in_the_loss_and_its_curvature(name, temperature):
    x, y, q = images()
    model = net()

    def loss(out, label):
        return F.cross_entropy(out / temperature, label)

    train = rows(model, x, lambda out, i: loss(out, y[i : i + 1]))
    curved = train.T @ train / len(x)
    if name.startswith("gauss_newton"):
        curved = 0
        for i in range(len(x)):
            jacobian = torch.cat([rows(model, x[i : i + 1], lambda out, _, c=c: out[0, c]) for c in range(3)])
            out = model(x[i : i + 1]).detach()
            hessian = torch.autograd.functional.hessian(lambda z, i=i: loss(z, y[i : i + 1]), out)[0, :, 0]
            curved = curved + jacobian.T @ hessian @ jacobian / len(x)
    inner = torch.linalg.inv(curved + 0.02 * torch.eye(len(curved), dtype=torch.float64))
    technique = create("influence_functions", train=(x, y), damping=0.02, temperature=temperature, **SOFTENED[name])
    found = explain(model, q, technique, target=1)
    queries = rows(model, q, lambda out, i: out[0, 1])
    assert torch.allclose(found.values, -queries @ inner @ train.T / len(x), rtol=1e-6, atol=1e-10)
    if found.self_influence is not None:
        assert torch.allclose(found.self_influence, (train @ inner * train).sum(dim=1) / len(x))


def test_a_temperature_is_above_zero_and_of_classes():
    x, y, q = images()
    with pytest.raises(ParameterError, match="temperature"):
        create("influence_functions", train=(x, y), temperature=0.0)
    for options in ({}, {"curvature": "gauss_newton"}, {"solver": "ek_fac"}):
        technique = create("influence_functions", train=(x, torch.zeros(23, 3).double()), temperature=2.0, **options)
        with pytest.raises(ParameterError, match="class indices"):
            explain(net(), q, technique, target=1)


def test_a_low_rank_looks_at_each_row_once_also_where_not_all_fit_in_memory(monkeypatch):
    x, y, q = images()
    technique = create("influence_functions", train=(x, y), curvature="gauss_newton", rank=17, damping=0.02)
    model, counted = net(), []
    model.register_forward_hook(lambda module, given, out: counted.append(len(out)))
    whole = explain(model, q, technique, target=1)
    assert sum(counted) <= 23 + (23 + 17 + 4) + 2  # outputs, gradients, and the guard's rows
    monkeypatch.setattr(shared, "block_rows", lambda factors: 5)
    monkeypatch.setattr(shared, "LOOK", 5)
    monkeypatch.setattr(shared, "PANEL_BYTES", 5_000)  # fewer than the seventeen rows
    counted.clear()
    found = explain(model, q, technique, target=1)
    assert sum(counted) > 23 + (23 + 17 + 4) + 2
    assert torch.allclose(found.values, whole.values, rtol=1e-9, atol=1e-14)
    assert torch.allclose(found.self_influence, whole.self_influence)
    assert [one.value for one in found.checks] == pytest.approx([one.value for one in whole.checks])
