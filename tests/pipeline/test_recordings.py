"""Pipelines over a recorded training: the examples that ship, and what can be wrong with such a description."""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid import Exemplars, Influence, PipelineError, Projection
from pellucid.pipeline import Pipeline
from pellucid.pipeline.spec import read_yaml
from pellucid.recorder import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROBE, WRONG = 60, 6


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The examples in a folder of their own, with a smaller recording of a shorter training."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("digits", "__pycache__", "pellucid-*"))
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PROBE, module.WRONG = PROBE, WRONG
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.train(folder / "examples" / "digits", steps=100)
    return folder


@pytest.fixture
def ran(digits, monkeypatch):
    monkeypatch.chdir(digits)

    def run(name):
        description = read_yaml(Path(f"examples/{name}.yaml")) | {"report": False}  # drawing takes seconds
        result = Pipeline(description, base="examples").run(digits / name, progress=False)
        assert result.ok, (result.errors, result.skipped, result.notes)
        assert not result.notes
        return result

    return run


def page_data(path):
    return json.loads(next(line for line in path.read_text().splitlines() if line.startswith("const data = "))[13:-1])


def test_prototypes_and_criticisms_are_marked_on_the_map(ran, digits):
    result = ran("digits-prototypes")
    critic, made = result["critic"], result["map"]
    assert isinstance(critic, Exemplars)
    assert isinstance(made, Projection)
    states = load(digits / "examples/digits").states("0")
    assert made.values.shape == (len(states.steps), PROBE, 2)
    assert torch.equal(made.labels, states.labels)
    for kind, step in (("prototype", "typical"), ("criticism", "atypical")):
        chosen = [place for place in critic.of(kind).flatten().tolist() if place >= 0]
        assert result.rows[step] == list(dict.fromkeys(chosen))
        assert {place for place, mark in enumerate(made.marks) if mark == kind} == set(chosen)
        probe = load(digits / "examples/digits").run().probe.inputs
        alone = pellucid.explain(result.adapter, probe[result.rows[step]], "grad_cam")
        torch.testing.assert_close(result[step].values, alone.values, rtol=1e-4, atol=1e-5)
    assert result["linear"].marks == made.marks
    assert set(result.scores.metrics) == {"kept", "along"}
    expected = pellucid.evaluate(None, states, {"map": made}, "trajectory_preservation", controls=False)
    row = next(row for row in result.scores.rows if (row.metric, row.explanation) == ("along", "map"))
    torch.testing.assert_close(result.scores.values[result.scores.rows.index(row)], expected.values[0])
    assert set(result.pages) == {"map", "linear"}
    data = page_data(digits / "digits-prototypes" / "map.html")
    assert [one["name"] for one in data["explanations"]] == ["typical", "atypical"]
    assert set(data["explanations"][0]["places"]) == set(map(str, result.rows["typical"]))
    assert data["marks"] == list(made.marks)
    loaded = pellucid.load(digits / "digits-prototypes" / "map.safetensors")
    assert loaded.marks == made.marks
    loaded.plot()
    told = json.loads((digits / "digits-prototypes" / "run.json").read_text())
    assert told["steps"]["typical"]["inputs"] == result.rows["typical"]


def test_the_most_moved_and_most_forgotten_are_handed_to_explainers(ran, digits):
    result = ran("digits-moved")
    states = load(digits / "examples/digits").states("0")
    moved = states.values.double().diff(dim=0).square().sum(dim=2).sqrt().sum(dim=0)
    assert result.rows["moved_cam"] == result.rows["moved_ig"] == moved.topk(12).indices.tolist()
    far = result["map"].values.double().diff(dim=0).norm(dim=2).sum(dim=0)
    assert result.rows["far_cam"] == far.topk(12).indices.tolist()
    right = states.predictions == states.labels
    often = (right[:-1] & ~right[1:]).sum(dim=0)
    chosen = result.rows["forgotten_lrp"]
    assert 0 < len(chosen) <= 12
    assert min(often[chosen]) >= max([1, *often[[place for place in range(PROBE) if place not in chosen]].tolist()][:1])
    assert len(result["forgotten_lrp"]) == len(chosen)
    marks = result["map"].marks
    assert all(marks[place] == "moved" for place in result.rows["moved_cam"])
    assert {marks[place] for place in chosen} <= {"moved", "forgotten"}
    data = page_data(digits / "digits-moved" / "map.html")
    assert {"moved (recording)", "forgotten (recording)", "mark"} - set(data["colours"]) == {"mark"}  # made on the page


def test_mislabel_suspects_are_coloured(ran, digits):
    result = ran("digits-mislabels")
    influence = result["influence"]
    assert isinstance(influence, Influence)
    suspects = influence.self_influence.topk(30).indices.tolist()
    assert result.rows["why"] == suspects
    assert [place for place, mark in enumerate(result["map"].marks) if mark == "self-influence"] == sorted(suspects)
    wrong = set(range(PROBE - WRONG, PROBE))
    assert len(wrong & set(suspects)) >= 2 * WRONG * 30 / PROBE  # twice as many as chance
    colours = page_data(digits / "digits-mislabels" / "map.html")["colours"]
    torch.testing.assert_close(
        torch.tensor(colours["self-influence (influence)"]["values"]), influence.self_influence, rtol=1e-4, atol=1e-6
    )


DATA = {"recording": "digits", "layer": "0"}
MAP = {"use": "pca", "of": "recording"}


@pytest.mark.parametrize(
    ("data", "steps", "message"),
    [
        ({"recording": "nowhere"}, {"map": MAP}, "field 'data.recording': there is no folder"),
        ({"recording": "digits", "layer": "7"}, {"map": MAP}, "no layer '7'"),
        ({"recording": "digits", "run": "seed=1"}, {"map": MAP}, "no run 'seed=1'.*Did you mean 'seed=0'"),
        ({"recording": "digits", "images": ["demo:cat"]}, {"map": MAP}, "expected either images, texts or a recording"),
        ({"images": ["demo:cat"], "layer": "0"}, {"map": MAP}, "'layer' and 'run' are of a recording"),
        ({"images": ["demo:cat"]}, {"map": MAP}, "no step 'recording'; it is there with data"),
        (DATA, {"map": MAP, "recording": "grad_cam"}, "no step can have its name"),
        (DATA, {"flip": {"use": "pixel_flipping", "of": "recording"}}, "a step of kind evaluator cannot take"),
        (
            DATA,
            {"map": {**MAP, "mark": "criti"}, "critic": "mmd_critic"},
            "'mark': no step 'criti'. Did you mean 'crit",
        ),
        (
            DATA,
            {"map": {**MAP, "mark": "recording"}},
            "missing 'most' and 'count'; 'recording' knows what is most 'mov",
        ),
        (DATA, {"map": {**MAP, "mark": 3}}, "expected a step's name, or a mapping such as"),
        (DATA, {"map": {**MAP, "mark": {"of": "recording", "most": "moved"}}}, "'most' and 'count' together"),
        (DATA, {"map": {**MAP, "mark": {"of": "recording", "mots": "moved"}}}, "Did you mean 'most'"),
        (DATA, {"cam": {"use": "grad_cam", "at": {"of": "recording", "most": "mvoed", "count": 3}}}, "most 'mvoed'"),
        (
            DATA,
            {"cam": {"use": "grad_cam", "at": {"of": "ig", "most": "x", "count": 1}}, "ig": "saliency"},
            "no inputs",
        ),
        (DATA, {"cam": {"use": "grad_cam", "mark": "cam"}}, "only projectors mark points"),
        (DATA, {"map": {**MAP, "at": "map"}}, "only explainers explain some of the inputs"),
        (
            DATA,
            {"map": MAP, "cam": "grad_cam", "kept": {"use": "trustworthiness", "of": "cam"}},
            "takes projector steps",
        ),
        (DATA, {"map": MAP, "flip": {"use": "pixel_flipping", "of": "map"}}, "takes explainer steps"),
        (DATA, {"critic": {"use": "mmd_critic", "labels": "$lables"}}, "'\\$lables' stands for nothing; expected"),
        ({"images": ["demo:cat"]}, {"critic": {"use": "mmd_critic", "labels": "$labels"}}, "of a recording"),
        (
            DATA,
            {
                "cam": {"use": "grad_cam", "at": {"of": "recording", "most": "moved", "count": 3}},
                "flip": {"use": "pixel_flipping", "of": "cam"},
            },
            "explains some of the inputs only; score",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(digits, data, steps, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline({"data": data, "steps": steps}, model=torch.nn.Linear(2, 2), base=digits / "examples")


def test_a_choice_of_nothing_fails_its_step_alone(digits, monkeypatch):
    monkeypatch.chdir(digits)
    steps = {
        "none": {"use": "mmd_critic", "n_prototypes": 2, "n_criticisms": 0},
        "cam": {"use": "saliency", "at": {"of": "none", "kind": "criticism"}},
        "map": {**MAP, "mark": [{"of": "none", "kind": "criticism"}, {"of": "map", "most": "moved", "count": 2}]},
        "same": {"use": "mmd_critic", "n_prototypes": 2000},
        "after": {"use": "saliency", "at": "same"},
    }
    description = {"data": DATA, "steps": steps}
    model = "python:examples/digits.py:network"
    result = Pipeline(description, model=model, base=digits / "examples").run(progress=False)
    assert set(result) == {"none", "map"}
    assert "criticism" in str(result.errors["cam"])
    assert "2000 prototypes" in str(result.errors["same"])
    assert "'same', which failed" in result.skipped["after"]
    assert "'map' is without marks of 'none'" in result.notes[0]
    assert sum(mark == "moved" for mark in result["map"].marks) == 2


def test_the_report_leads_to_the_maps_and_does_not_list_every_example(digits, monkeypatch, tmp_path):
    monkeypatch.chdir(digits)
    description = {"data": DATA, "steps": {"map": MAP}, "title": "A training"}
    model = "python:examples/digits.py:network"
    result = Pipeline(description, model=model, base=digits / "examples").run(tmp_path, progress=False)
    report = result.report.read_text()
    assert "map.html shows the map" in report
    assert "What the model says" not in report
    assert result.predictions.shape == (PROBE, 10)
    assert result.names[7] == "digit 7"
    assert result["map"].names == tuple(result.names)


def test_choices_need_no_recording(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
    steps = {
        "critic": {"use": "mmd_critic", "n_prototypes": 2, "n_criticisms": 1},
        "why": {"use": "saliency", "at": "critic"},
        "map": {"use": "pca", "of": "features", "mark": "critic"},
        "features": {"use": "activations", "layer": "1"},
    }
    inputs = torch.rand(9, 3, 4, 4)
    result = Pipeline({"steps": steps, "target": [0, 1, 2] * 3, "report": False}, model=net, inputs=inputs).run(
        tmp_path, progress=False
    )
    assert result.ok, (result.errors, result.skipped)
    rows = result.rows["why"]
    assert len(rows) == 3
    assert result["why"].target.classes.tolist() == [row % 3 for row in rows]
    torch.testing.assert_close(
        result["why"].values, pellucid.explain(net, inputs[rows], "saliency", [row % 3 for row in rows]).values
    )
    assert {place for place, mark in enumerate(result["map"].marks) if mark} == set(rows)
    assert not result.pages
