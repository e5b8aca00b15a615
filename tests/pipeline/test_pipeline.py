"""Pipelines: what is checked before anything runs, what runs, and what is left when a step fails."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Attribution, Explainer, Look, PipelineError, Projection, SavedFileError, Scores, load
from pellucid.pipeline import Pipeline
from pellucid.pipeline.spec import read_yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Net(nn.Module):
    """A small network that counts the rows it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 4)
        self.rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        return self.head(self.conv(x).relu().mean(dim=(2, 3)))


@dataclass(frozen=True, eq=False)
class Breaks(Explainer):
    """Fails after a look at the model."""

    def explain(self, sample: Any) -> Any:
        yield Look(at=sample, outputs=True)
        raise RuntimeError("the technique broke")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


STEPS: dict[str, Any] = {
    "flip": {"use": "pixel_flipping", "of": ["cam", "ig", "smooth"], "regions": 4, "controls": ["random", "constant"]},
    "cam": {"use": "grad_cam", "layer": "conv"},
    "ig": {"use": "integrated_gradients", "n_steps": 4},
    "smooth": {"use": "smoothgrad", "of": "ig", "n_samples": 2},
    "features": {"use": "activations", "layer": "conv"},
    "map": {"use": "pca", "of": "features"},
}


def test_steps_feed_each_other_and_everything_is_written(net, inputs, tmp_path):
    result = Pipeline({"steps": STEPS, "title": "A title"}, model=net, inputs=inputs).run(tmp_path / "out")
    assert result.ok, (result.errors, result.skipped)
    assert list(result) == list(STEPS)
    assert isinstance(result["smooth"], Attribution)
    assert isinstance(result["map"], Projection)
    assert len(result["map"]) == 3
    assert result["map"].names == ("input 1", "input 2", "input 3")
    scores = result["flip"]
    assert isinstance(scores, Scores)
    assert set(scores.explanations) == {"cam", "ig", "smooth", "random", "constant"}
    assert {row.explanation for row in scores.rows if row.control} == {"random", "constant"}
    assert set(scores.metrics) == {"flip"}
    torch.testing.assert_close(result.predictions, net(inputs).double().softmax(1), rtol=1e-5, atol=1e-6)

    for step in STEPS:
        found = load(tmp_path / "out" / f"{step}.safetensors")
        assert type(found) is type(result[step])
    torch.testing.assert_close(load(tmp_path / "out" / "cam.safetensors").values, result["cam"].values)
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 5 * 3
    ranked = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(ranked["flip"]["ranking"]) == 5
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["ok"] is True
    assert told["steps"]["ig"]["parameters"]["n_steps"] == 4
    assert told["pipeline"]["steps"]["smooth"]["of"] == "ig"
    assert told["pellucid"] == pellucid.__version__
    assert result.report == tmp_path / "out" / "report.html"
    assert "A title" in result.report.read_text(encoding="utf-8")


def test_a_pipeline_gives_what_the_functions_give(net, inputs):
    steps = {name: STEPS[name] for name in ("cam", "ig", "smooth")}
    result = Pipeline({"steps": steps, "target": 2, "seed": 5}, model=net, inputs=inputs).run()
    ig = pellucid.create("integrated_gradients", n_steps=4)
    smooth = pellucid.create("smoothgrad", of=ig, n_samples=2)
    torch.testing.assert_close(result["ig"].values, pellucid.explain(net, inputs, ig, 2, seed=5).values)
    torch.testing.assert_close(result["smooth"].values, pellucid.explain(net, inputs, smooth, 2, seed=5).values)
    assert result["cam"].target.classes.tolist() == [2, 2, 2]
    assert result.folder is None
    assert result.report is None


def test_explainers_share_their_passes(net, inputs):
    steps = {"a": {"use": "saliency"}, "b": {"use": "input_x_gradient"}, "c": {"use": "grad_cam", "layer": "conv"}}
    result = Pipeline({"steps": steps, "target": 1}, model=net, inputs=inputs).run()
    alone = sum(one.meta.passes["backward"] for one in result.values())
    assert alone == 3
    assert result.cost.backward == len(inputs)  # one gradient an example serves all three


def test_nothing_is_written_without_a_folder(net, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Pipeline({"steps": {"a": "saliency"}}, model=net, inputs=inputs).run()
    assert not list(tmp_path.iterdir())


def test_no_report_where_none_is_wanted(net, inputs, tmp_path):
    result = Pipeline({"steps": {"a": "saliency"}, "report": False}, model=net, inputs=inputs).run(tmp_path)
    assert result.report is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "run.json"]


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"a": {"use": "grad_cm"}}, ["step 'a'", "field 'use'", "Did you mean 'grad_cam'"]),
    ({"a": {"use": 3}}, ["step 'a'", "field 'use'", "of type int"]),
    ({"a": {"of": "b"}, "b": "saliency"}, ["step 'a'", "'use'", "missing"]),
    ({"a": 3}, ["step 'a'", "mapping"]),
    ({"a b": "saliency"}, ["step 'a b'", "expected a name"]),
    ({"../a": "saliency"}, ["step '../a'", "expected a name"]),
    ({}, ["field 'steps'", "empty"]),
    (
        {"cam": "grad_cam", "flip": {"use": "pixel_flipping", "of": "cma"}},
        ["step 'flip'", "field 'of'", "no step 'cma'", "'cam'"],
    ),
    ({"flip": {"use": "pixel_flipping"}}, ["step 'flip'", "field 'of'", "missing"]),
    ({"p": {"use": "pca"}}, ["step 'p'", "field 'of'", "missing"]),
    (
        {"a": {"use": "smoothgrad", "of": "b"}, "b": {"use": "smoothgrad", "of": "a"}},
        ["field 'of'", "circle", "'a' -> 'b' -> 'a'"],
    ),
    ({"a": {"use": "smoothgrad", "of": "a"}}, ["step 'a'", "field 'of'", "circle"]),
    ({"a": {"use": "smoothgrad", "n_sample": 3}}, ["step 'a'", "field 'n_sample'", "Did you mean 'n_samples'"]),
    ({"a": {"use": "integrated_gradients", "n_steps": 0}}, ["step 'a'", "n_steps"]),
    ({"a": {"use": "grad_cam", "of": "b"}, "b": "saliency"}, ["step 'a'", "field 'of'", "leave it out"]),
    (
        {"a": "saliency", "p": {"use": "pca", "of": "a"}, "flip": {"use": "pixel_flipping", "of": "p"}},
        ["step 'flip'", "field 'of'", "'p' is of kind projector"],
    ),
    ({"a": "saliency", "p": {"use": "pca", "of": ["a", "a"]}}, ["step 'p'", "field 'of'", "twice"]),
    ({"a": {"use": "saliency", "controls": False}}, ["step 'a'", "field 'controls'"]),
    (
        {"a": "saliency", "flip": {"use": "pixel_flipping", "of": "a", "controls": ["randm"]}},
        ["step 'flip'", "field 'controls'", "random"],
    ),
]


@pytest.mark.parametrize(("steps", "said"), WRONG, ids=[str(place) for place in range(len(WRONG))])
def test_what_is_wrong_names_step_and_field_before_anything_runs(net, inputs, steps, said):
    with pytest.raises(PipelineError) as error:
        Pipeline({"steps": steps}, model=net, inputs=inputs)
    for part in said:
        assert part in str(error.value)
    assert net.rows == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batchsize": 3}, ["batchsize", "Did you mean 'batch_size'"]),
        ({"batch_size": 0}, ["field 'batch_size'"]),
        ({"seed": -1}, ["field 'seed'"]),
        ({"seed": "x"}, ["field 'seed'"]),
        ({"data": {"images": []}}, ["data.images"]),
        ({"data": {"image": ["a.png"]}}, ["data.image", "'images'"]),
        ({"data": "photos"}, ["field 'data': expected a mapping such as {images:"]),
        ({"data": {"images": ["a"], "texts": ["b"]}}, ["field 'data': expected either images, texts or a recording"]),
        ({"report": 3}, ["field 'report': input"]),
        ({"steps": ["saliency"]}, ["field 'steps': a list; expected a mapping"]),
        ({"model": "resnet50"}, ["field 'model'", "torchvision:resnet50"]),
    ],
)
def test_what_is_wrong_with_the_settings_names_the_field(inputs, given, said):
    with pytest.raises(PipelineError) as error:
        Pipeline({"model": "torchvision:resnet18", "steps": {"a": "saliency"}, **given}, inputs=inputs)
    for part in said:
        assert part in str(error.value)


def test_everything_that_is_wrong_is_said_at_once():
    steps = {
        "a": {"use": "grad_cm"},
        "b": {"use": "smoothgrad", "n_sample": 3},
        "c": {"use": "pixel_flipping", "of": "nowhere"},
    }
    with pytest.raises(PipelineError) as error:
        Pipeline({"steps": steps, "seed": -1})
    for part in ("step 'a'", "step 'b'", "step 'c'", "field 'seed'", "field 'model'", "field 'data'"):
        assert part in str(error.value)


def test_a_failing_step_does_not_lose_the_others(net, inputs, tmp_path):
    steps = {
        "bad": Breaks(),
        "good": {"use": "saliency"},
        "map": {"use": "pca", "of": "bad"},
        "lost": {"use": "pixel_flipping", "of": "bad", "regions": 4},
        "flip": {"use": "pixel_flipping", "of": ["bad", "good"], "regions": 4, "controls": False},
    }
    steps["bad"] = {"use": steps["bad"]}
    result = Pipeline({"steps": steps}, model=net, inputs=inputs).run(tmp_path)
    assert not result.ok
    assert list(result) == ["good", "flip"]
    assert list(result.errors) == ["bad"]
    assert "the technique broke" in str(result.errors["bad"])
    assert set(result.skipped) == {"map", "lost"}
    assert "'bad'" in result.skipped["map"]
    assert any("'bad'" in note for note in result.notes)
    with pytest.raises(KeyError, match=r"failed.*the technique broke"):
        result["bad"]
    with pytest.raises(KeyError, match="skipped"):
        result["map"]
    told = json.loads((tmp_path / "run.json").read_text())["steps"]
    assert {name: step["status"] for name, step in told.items()} == {
        "good": "done",
        "flip": "done",
        "bad": "failed",
        "map": "skipped",
        "lost": "skipped",
    }
    assert "the technique broke" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_run_keeps_what_had_finished(net, inputs, tmp_path):
    def stop(what: str, done: int, known: int) -> None:
        if what == "flip":
            raise KeyboardInterrupt

    steps = {"a": {"use": "saliency"}, "flip": {"use": "pixel_flipping", "of": "a", "regions": 4}}
    with pytest.raises(pellucid.Interrupted) as stopped:
        Pipeline({"steps": steps}, model=net, inputs=inputs).run(tmp_path, progress=stop)
    assert list(stopped.value.results) == ["a"]
    assert load(tmp_path / "a.safetensors").values.shape[0] == 3
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["interrupted"] is True
    assert told["steps"]["flip"]["status"] == "skipped"


def test_an_unwritable_folder_is_told_before_anything_runs(net, inputs, tmp_path):
    (tmp_path / "file").write_text("")
    pipeline = Pipeline({"steps": {"a": "saliency"}}, model=net, inputs=inputs)
    with pytest.raises(SavedFileError, match="cannot write to the folder"):
        pipeline.run(tmp_path / "file" / "out")
    assert net.rows == 0


def test_a_pipeline_is_read_from_yaml(net, inputs, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: 1\nsteps:\n  ig: {use: integrated_gradients, n_steps: 4}\n  s: {use: saliency}\n")
    result = Pipeline.from_yaml(path, model=net, inputs=inputs).run()
    assert list(result) == ["ig", "s"]
    assert result["ig"].meta.parameters["n_steps"] == 4


def test_relative_pictures_start_from_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: torchvision:resnet18\ndata: {images: [a.png, demo:cat]}\nsteps: {a: saliency}\n")
    assert Pipeline.from_yaml(path).images == [tmp_path / "a.png", "demo:cat"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: {a: [", "is no YAML: .* at line 1"),
        ("", "is empty"),
        ("- a\n- b\n", r"holds no mapping \(list\)"),
        ("steps:\n  a: {use: saliency}\n  a: {use: rise}\n", "'a' is given twice"),
        ("steps: !!python/object/apply:os.system ['true']\n", "is no YAML"),
    ],
)
def test_a_malformed_file_is_one_clear_error(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError, match=said):
        Pipeline.from_yaml(path)


def test_a_missing_or_binary_file_is_one_clear_error(tmp_path):
    with pytest.raises(PipelineError, match="cannot be read"):
        Pipeline.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PipelineError, match=r"cannot be read|is no YAML"):
        Pipeline.from_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path):
    if "recording:" in path.read_text():  # those that run on a recording do so in test_recordings.py
        with pytest.raises(PipelineError, match=r"cannot run: field 'data\.recording': there is no folder"):
            Pipeline({**read_yaml(path), "data": {"recording": "nowhere"}})
        return
    pipeline = Pipeline.from_yaml(path)
    assert pipeline.plan.steps
    assert pipeline.images


def test_there_is_the_example_of_the_readme():
    plan = Pipeline.from_yaml(EXAMPLES / "photos.yaml").plan
    assert plan.steps["flip"].of == ("cam", "ig", "smooth")
    assert type(plan.steps["smooth"].technique.of) is type(plan.steps["ig"].technique)
