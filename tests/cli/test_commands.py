"""`pellucid explain`, `run`, `doctor`, `bench` and `demo`: what they write and print, and their exit codes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid import Look, cli, load, technique

MODEL = "python:net_of_commands:make"

SOURCE = """
import torch
from torch import nn
from torchvision.transforms import functional as F

import pellucid


def make():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    adapter = pellucid.adapt(net.eval(), categories=["ant", "bee", "cow", "dog"])
    adapter.mean, adapter.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    adapter.transform = lambda photo: F.to_tensor(photo.resize((32, 32)))
    return adapter
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder: a model's source, a picture, and a folder with a good and a damaged one."""
    (tmp_path / "net_of_commands.py").write_text(SOURCE)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "one.png")
    picture.save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "torn.png").write_bytes((tmp_path / "one.png").read_bytes()[:200])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PELLUCID_DEBUG", raising=False)
    yield tmp_path
    sys.modules.pop("net_of_commands", None)


@pytest.fixture
def call(capsys):
    """Runs the command: its exit code, what it printed, and what it said on stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        return stop.value.code, *capsys.readouterr()

    return run


def is_one_line_of(error: str) -> bool:
    return error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error


def test_explain_writes_a_picture_and_a_result_for_each_technique(place, call):
    arguments = ("--model", MODEL, "--technique", "saliency,grad_cam", "--target", "cow", "--layer", "0")
    code, out, err = call("explain", "one.png", *arguments, "--out", "seen", "--report")
    assert code == 0, err
    written = {path.name for path in (place / "seen").iterdir()}
    assert written == {
        "saliency.png",
        "saliency.safetensors",
        "grad_cam.png",
        "grad_cam.safetensors",
        "report.html",
        "run.json",
    }
    with Image.open(place / "seen" / "grad_cam.png") as drawn:
        assert drawn.format == "PNG"
    found = load(place / "seen" / "grad_cam.safetensors")
    assert found.meta.layer == "0"
    assert found.target.classes.tolist() == [2]
    assert "seen/grad_cam.png" in out.replace("\\", "/")


def test_explain_prints_json(place, call):
    code, out, err = call("explain", "one.png", "--model", MODEL, "--technique", "saliency", "--out", "seen", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["steps"]["saliency"]["status"] == "done"
    [guess] = told["predictions"]
    assert guess["name"] in ("ant", "bee", "cow", "dog")
    assert 0 < guess["probability"] < 1
    assert all(Path(path).is_file() for path in told["pictures"])


def test_a_damaged_picture_in_a_folder_is_skipped_and_reported(place, call):
    code, out, err = call("explain", "photos", "--model", MODEL, "--technique", "saliency", "--out", "seen", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert len(told["inputs"]) == 1
    assert [one["name"] for one in told["unread"]] == ["torn.png"]
    assert "skipped picture torn.png" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("one.png", "--technique", "grad_cm"), "grad_cam"),
        (("one.png", "--technique", ","), "--technique"),
        (("one.png", "--technique", "pca"), "projector"),
        (("one.png", "--technique", "saliency", "--layer", "0"), "--layer"),
        (("one.png", "--technique", "grad_cam,hires_cam", "--layer", "relu"), "no layer 'relu'"),
        (("none.png",), "none.png"),
        (("photos/torn.png",), "torn.png"),
        (("demo:nothing",), "nothing"),
        (("one.png", "--technique", "saliency", "--target", "cat"), "cat"),
        (("one.png", "--technique", "saliency", "--target", "99"), "99"),
        (("one.png", "--model", "resnet50"), "torchvision:resnet50"),
        (("one.png", "--model", "python:no_such_module:make"), "no_such_module"),
        (("one.png", "--out", "one.png/below"), "cannot write"),
        (("one.png", "--seed", "x"), "--seed"),
        ((), "IMAGE"),
    ],
)
def test_mistakes_of_explain_exit_with_2_and_one_line(place, call, arguments, said):
    model = () if "--model" in arguments else ("--model", MODEL)
    code, out, err = call("explain", *model, "--out", "seen", *arguments)
    assert (code, out) == (2, ""), err
    assert is_one_line_of(err), err
    assert said in err


PIPELINE = f"""
model: {MODEL}
data: {{images: [one.png]}}
steps:
  s: saliency
  flip: {{use: pixel_flipping, of: s, regions: 4, controls: [random]}}
"""


def test_run_writes_to_a_folder_named_as_the_file(place, call):
    (place / "mine.yaml").write_text(PIPELINE)
    code, out, err = call("run", "mine.yaml")
    assert code == 0, err
    assert {path.name for path in (place / "mine").iterdir()} == {
        "s.safetensors",
        "flip.safetensors",
        "scores.csv",
        "scores.json",
        "report.html",
        "run.json",
    }
    assert "random (control)" in out
    assert "report.html" in out


def test_run_prints_json(place, call):
    (place / "mine.yaml").write_text(PIPELINE)
    code, out, err = call("run", "mine.yaml", "--out", "results", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert {(one["explanation"], one["control"]) for one in told["scores"]} == {("s", False), ("random", True)}
    assert Path(told["report"]) == Path("results/report.html")


@pytest.mark.parametrize(
    ("stopped", "method", "said"),
    [
        ("pixel_flipping", "evaluate", "interrupted. s had finished; see 'mine'\n"),
        ("saliency", "explain", "interrupted. nothing had finished\n"),
    ],
)
def test_ctrl_c_tells_what_had_finished_and_where_it_is(place, call, monkeypatch, stopped, method, said):
    def stops(self, sample, *of):
        yield Look(at=sample)
        raise KeyboardInterrupt

    monkeypatch.setattr(technique(stopped).load(), method, stops)
    (place / "mine.yaml").write_text(PIPELINE)
    assert call("run", "mine.yaml") == (130, "", said)
    assert (place / "mine" / "s.safetensors").is_file() == (stopped != "saliency")
    assert json.loads((place / "mine" / "run.json").read_text())["interrupted"]


@pytest.mark.parametrize(("layer", "expected"), [("nowhere", 2), ("auto", 1)])
def test_a_step_that_fails_gives_the_others_results_and_1_or_2_for_a_mistake(place, call, monkeypatch, layer, expected):
    def breaks(self, sample):
        yield Look(at=sample)
        raise ZeroDivisionError("the technique broke")

    if expected == 1:
        monkeypatch.setattr(technique("grad_cam").load(), "explain", breaks)
    (place / "mine.yaml").write_text(PIPELINE + f"  cam: {{use: grad_cam, layer: {layer}}}\n")
    code, out, err = call("run", "mine.yaml", "--json")
    assert code == expected
    assert "step 'cam' failed" in err
    told = json.loads(out)
    assert {name: step["status"] for name, step in told["steps"].items()} == {
        "s": "done",
        "flip": "done",
        "cam": "failed",
    }


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (None, (), "mine.yaml"),
        ("steps: [", (), "no YAML"),
        (PIPELINE.replace("saliency", "salience"), (), "Did you mean 'saliency'"),
        (PIPELINE.replace("regions", "region"), (), "Did you mean 'regions'"),
        (PIPELINE.replace("one.png", "none.png"), (), "none.png"),
        (PIPELINE, ("--out", "one.png"), "cannot write"),
    ],
)
def test_mistakes_of_run_exit_with_2_and_one_line(place, call, text, arguments, said):
    if text is not None:
        (place / "mine.yaml").write_text(text)
    code, out, err = call("run", "mine.yaml", *arguments)
    assert (code, out) == (2, ""), err
    assert is_one_line_of(err), err
    assert said in err


def test_doctor_tells_of_the_environment(call):
    code, out, err = call("doctor", "--json")
    told = json.loads(out)
    assert (code, err) == (1 if told["problems"] else 0, "")
    assert told["environment"]["torch"]
    assert told["techniques"] > 20


def test_doctor_examines_a_model(place, call):
    code, out, err = call("doctor", MODEL, "--shape", "3,32,32", "--json")
    assert code == 0, err
    model = json.loads(out)["model"]
    assert [layer["name"] for layer in model["layers"] if layer["auto"]] == ["1"]
    works = {one["name"]: one for one in model["techniques"]}
    for name in ("saliency", "grad_cam", "expected_gradients", "pixel_flipping", "insertion", "deletion", "pca"):
        assert works[name]["works"], works[name]
    for name in ("tcav", "tracin", "pattern_net", "mislabel_detection", "smallest_sufficient_concepts", "continuity"):
        assert works[name]["works"] is None, works[name]  # they need more than a model
        assert works[name]["why"]
    assert [name for name, one in works.items() if one["works"] is False] == []


BREAKS = """
from dataclasses import dataclass

from pellucid import Explainer, Look, Technique, hookimpl


@dataclass(frozen=True, eq=False)
class Breaks(Explainer):
    def explain(self, sample):
        return Look(at=sample, gradients=["input"]).gradients["input"]


@hookimpl
def pellucid_techniques():
    yield Technique("breaks", "explainer", "Breaks.", "breaks_one:Breaks", uses={"outputs", "gradients"})
"""


def test_doctor_survives_a_technique_that_breaks(place, call, site):
    site.add("breaks-dist", {"breaks": "breaks_one"}, breaks_one=BREAKS)
    code, out, err = call("doctor", MODEL, "--shape", "3,32,32", "--json")
    assert code == 0, err
    works = {one["name"]: one for one in json.loads(out)["model"]["techniques"]}
    assert works["breaks"]["works"] is False
    assert works["breaks"]["why"].startswith("TypeError: list indices")
    assert works["saliency"]["works"]


DETECTOR = """
import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        scores = self.head(torch.relu(self.backbone(x)).mean(dim=(2, 3))).sigmoid()
        boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 16.0, 16.0]])
        return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": row} for row in scores]


def make():
    torch.manual_seed(0)
    return Detector().eval()
"""


def test_doctor_examines_a_detector_by_any_object_that_it_finds(place, call):
    (place / "net_of_commands.py").write_text(DETECTOR)
    code, out, err = call("doctor", MODEL, "--shape", "3,16,16", "--json")
    assert code == 0, err
    model = json.loads(out)["model"]
    assert model["output"] == "detections"
    assert all(seconds > 0 for seconds in model["seconds"].values())
    works = {one["name"]: one for one in model["techniques"]}
    for name in ("saliency", "integrated_gradients", "occlusion", "rise", "pixel_flipping"):
        assert works[name]["works"], works[name]


def test_doctor_prints_a_model_for_people(place, call):
    code, out, err = call("doctor", MODEL, "--shape", "3,32,32")
    assert code == 0, err
    for heading in ("ENVIRONMENT", "PLUGINS", "MODEL", "LAYER", "TECHNIQUE"):
        assert heading in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((MODEL, "--shape", "3,x"), "--shape"),
        ((MODEL, "--shape", "3,0,4"), "--shape"),
        ((MODEL, "--shape", "2,8,8"), "fails on an input (2, 8, 8)"),
        (("resnet50",), "torchvision:resnet50"),
        (("python:no_such_module:make",), "no_such_module"),
    ],
)
def test_mistakes_of_doctor_exit_with_2_and_one_line(place, call, arguments, said):
    code, out, err = call("doctor", *arguments, "--json")
    assert (code, out) == (2, "")
    assert is_one_line_of(err), err
    assert said in err


def test_bench_counts_passes_and_times_them(place, call):
    arguments = ("--technique", "saliency,grad_cam", "--size", "32", "--repeats", "1")
    code, out, err = call("bench", MODEL, *arguments, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [row["technique"] for row in told["rows"]] == ["saliency", "grad_cam"]
    for row in told["rows"]:
        assert row["backward"] == 1
        assert row["seconds"] > 0
        assert row["ratio"] > 0
    code, out, _ = call("bench", MODEL, *arguments)
    assert code == 0
    assert out.split()[0] == "TECHNIQUE"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--repeats", "0"), "--repeats"), (("--technique", "salience"), "saliency"), (("--size", "x"), "--size")],
)
def test_mistakes_of_bench_exit_with_2_and_one_line(place, call, arguments, said):
    code, out, err = call("bench", MODEL, *arguments)
    assert (code, out) == (2, "")
    assert is_one_line_of(err), err
    assert said in err


def test_demo_to_a_folder_that_cannot_be_written(place, call):
    code, out, err = call("demo", "--out", "one.png")
    assert (code, out) == (2, "")
    assert is_one_line_of(err), err


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("efficientnet_lite_pytorch", "skimage")),
    reason="needs the demo extra",
)
def test_demo_explains_real_photos(place, call):
    code, out, err = call("demo", "--out", "shown", "--json")
    assert code == 0, err
    told = json.loads(out)
    names = " / ".join(guess["name"].lower() for guess in told["predictions"])
    assert "cat" in names
    assert "espresso" in names or "cup" in names
    assert len([step for step in told["steps"].values() if step["class"] == "Attribution"]) >= 8
    assert {score["metric"] for score in told["scores"]} == {
        "pixel_flipping",
        "flipping_both_ways",
        "insertion",
        "deletion",
    }
    assert any(score["control"] for score in told["scores"])
    assert (place / "shown" / "report.html").stat().st_size > 100_000
