"""What every influence says of training data, models and systems that are no good."""

import pytest
import torch
from tests.plugins.influence.small import data, net
from torch import nn

from pellucid import InputError, ModelError, ParameterError, PellucidError, SavedFileError, Trainer, create, explain


def by(name, **options):
    def explained(train, model=None, **more):
        technique = create(name, train=train, **options, **more)
        return explain(net() if model is None else model, data(18)[0][:2], technique, target=1)

    return explained


def by_training(name):
    def explained(train, **more):
        # All examples in one step, so that their order does not count.
        trainer = Trainer(net, *train, learning_rate=1e-3, epochs=2, batch_size=len(train[0]))
        return explain(net(), data(18)[0][:2], create(name, trainer=trainer, **more), target=1)

    return explained


EXPLAINED = {
    "ntk_influence": by("ntk_influence"),
    "surrogate": by("ntk_influence", surrogate=True),
    "influence_functions": by("influence_functions"),
    "gauss_newton": by("influence_functions", curvature="gauss_newton"),
    "low rank": by("influence_functions", curvature="gauss_newton", rank=20),
    "cg": by("influence_functions", solver="cg"),
    "lissa": by("influence_functions", solver="lissa", batch_size=100),
    "ek_fac": by("influence_functions", solver="ek_fac"),
    "trak": by("trak"),
    "trak, projected": by("trak", projection=16),
    "tracin": by("tracin"),
    "leave_one_out": by_training("leave_one_out"),
    "unrolled": by_training("unrolled"),
}
CONTROLS = {kind: by("influence_control", kind=kind) for kind in ("similarity", "loss", "random")}


@pytest.mark.parametrize("name", [*EXPLAINED, *CONTROLS])
def test_training_data_that_do_not_fit_are_refused(name):
    explained = {**EXPLAINED, **CONTROLS}[name]
    x, y = data(18)
    for train, told in (
        ((x[:, :4], y), "shape"),
        ((x, y - 1), "-1"),
        ((x, y + 5), r"[57].*3 classes"),
        ((x * torch.nan, y), "finite"),
        ((x, y[:3]), "labels"),
        ((x[:0], y[:0]), r"labels|at least"),
    ):
        with pytest.raises(PellucidError, match=told):
            explained(train)


@pytest.mark.parametrize("name", EXPLAINED)
def test_an_untrained_model_and_lacking_classes_are_told(name):
    x, y = data(18)
    checks = {check.name: check for check in EXPLAINED[name]((x, y.clamp_max(1))).checks}
    assert checks["training loss"].passed is False
    assert "untrained" in checks["training loss"].note
    assert "gradient norms are" in checks["training loss"].note
    assert checks["classes without examples"].value == 1
    assert "classes 2" in checks["classes without examples"].note


@pytest.mark.parametrize("name", EXPLAINED)
def test_duplicates_have_the_same_influence(name):
    x, y = data(18)
    found = EXPLAINED[name]((torch.cat([x, x]), torch.cat([y, y])))
    assert found.values.isfinite().all()
    assert torch.allclose(found.values[:, :18], found.values[:, 18:], rtol=1e-6, atol=1e-9)
    if found.self_influence is not None:
        assert torch.allclose(found.self_influence[:18], found.self_influence[18:], rtol=1e-6, atol=1e-9)


def test_the_duplicates_are_seen_by_training_anew():
    """What leaving out one copy changes is what its weight does, to first order."""
    x, y = data(18)
    twice = torch.cat([x, x]), torch.cat([y, y])
    found, expected = (EXPLAINED[name](twice).values for name in ("leave_one_out", "unrolled"))
    assert torch.allclose(found, expected, rtol=0.1, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("influence_functions", {"damping": 0.0}, "damping"),
        ("gauss_newton", {"damping": 0.0}, "damping"),
        ("low rank", {"damping": 1e-30}, "damping"),
        ("ek_fac", {"damping": 0.0}, "damping"),
        ("trak", {"ridge": 0.0}, "ridge"),
        ("trak, projected", {"ridge": 0.0, "projection": 400}, "ridge"),
        ("surrogate", {"ridge": 1e-20}, "ridge"),
    ],
)
def test_a_singular_system_names_what_to_raise(name, options, word):
    x, y = data(18)
    explained = by("trak") if name == "trak, projected" else EXPLAINED[name]
    with pytest.raises(ParameterError, match=f"singular.* {word} of .*greater {word}"):
        explained((torch.cat([x, x]), torch.cat([y, y])), **options)


@pytest.mark.parametrize("name", ["cg", "lissa"])
def test_a_system_that_is_not_solved_asks_for_damping(name):
    x, y = data(18)
    checks = EXPLAINED[name]((torch.cat([x, x]), torch.cat([y, y])), damping=0.0).checks
    residual = next(check for check in checks if check.name == "residual")
    assert residual.passed is False
    assert "greater damping" in residual.note


@pytest.mark.parametrize("name", ["influence_functions", "trak", "trak, projected", "ek_fac", "cg", "low rank"])
def test_weights_that_are_no_numbers_are_no_matter_of_damping(name):
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="finite"):
        EXPLAINED[name](data(18), model=model)


@pytest.mark.parametrize("name", [name for name in EXPLAINED if name != "leave_one_out"])
def test_a_folder_that_is_none(name, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SavedFileError, match="cannot write"):
        EXPLAINED[name](data(18), folder=tmp_path / "file")
    with pytest.raises(ParameterError, match="folder"):
        EXPLAINED[name](data(18), folder=7)


def test_a_trainers_labels_are_classes_of_its_models():
    x, y = data(18)
    with pytest.raises(InputError, match="label is 7; the model has 3 classes"):
        Trainer(net, x, y + 5, epochs=1).weights()


@pytest.mark.parametrize("examples", [[True] * 9, [1.5], [9], [-1], [], [[0, 1]]])
def test_examples_that_are_left_out_are_places(examples):
    trainer = Trainer(lambda: nn.Linear(4, 3), torch.zeros(9, 4), torch.arange(9) % 3)
    with pytest.raises(InputError, match="places from 0 to 8"):
        create("leave_one_out", trainer=trainer, examples=examples)
