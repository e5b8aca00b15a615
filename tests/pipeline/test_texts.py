"""Pipelines and commands over texts, with a tiny model and tokenizer of Hugging Face's kind."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from tests.adapters.text_models import TEXTS, made

from pellucid import InputError, PipelineError, create, explain, load
from pellucid.cli import main
from pellucid.data.texts import load_texts, name_of
from pellucid.pipeline import Pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A reference to a saved classifier of texts."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer, _ = made("bert")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def code_of(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    return left.value.code


def test_a_pipeline_explains_texts_and_reports_coloured_tokens(saved, tmp_path):
    (tmp_path / "more.txt").write_text(f"{TEXTS[1]}\n\n  {TEXTS[2]} \n", encoding="utf-8")
    described = {
        "model": saved,
        "data": {"texts": [TEXTS[0], "more.txt"]},
        "target": 1,
        "steps": {"slopes": {"use": "input_x_gradient"}, "shares": {"use": "deeplift", "baselines": "pad"}},
    }
    (tmp_path / "texts.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    result = Pipeline.from_yaml(tmp_path / "texts.yaml").run(tmp_path / "out", progress=False)
    assert result.ok
    assert result.names == TEXTS
    _, _, adapter = made("bert")
    expected = explain(adapter, TEXTS, create("deeplift", baselines="pad"), target=1)
    torch.testing.assert_close(result.results["shares"].values.double(), expected.values, atol=1e-5, rtol=1e-4)
    assert load(tmp_path / "out" / "shares.safetensors").tokens == expected.tokens
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "plots" in page
    assert page.count('<div class="tokens">') == 2
    assert page.count(">film</span>") == 2 * 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["pipeline"]["data"] == described["data"]


def test_explain_takes_texts(saved, tmp_path, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("bad\nthe plot\n", encoding="utf-8")
    out = tmp_path / "out"
    asked = ("--technique", "saliency,lrp", "--target", 0, "--out", out, "--json")
    code = code_of("explain", "--model", saved, "--text", TEXTS[0], "--text", lines, *asked)
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["inputs"] == [TEXTS[0], "bad", "the plot"]
    assert {path.name for path in out.iterdir()} >= {"saliency.png", "lrp.safetensors"}
    assert load(out / "saliency.safetensors").tokens[1] == ("[CLS]", "bad", "[SEP]")


def test_texts_are_explained_by_integrated_gradients_where_nothing_is_said(saved, tmp_path, capsys):
    assert code_of("explain", "--model", saved, "--text", "bad", "--out", tmp_path) == 0
    assert (tmp_path / "integrated_gradients.png").stat().st_size > 1000
    assert "integrated_gradients" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, TEXTS[0]])
def test_doctor_examines_a_model_of_texts(saved, text, capsys):
    code_of("doctor", saved, "--json", *([] if text is None else ["--text", text]))
    told = json.loads(capsys.readouterr().out)["model"]
    works = {one["name"]: one["works"] for one in told["techniques"]}
    assert told["input"].startswith("8 x ")
    assert text is None or told["input"] == "8 x 5"
    assert works["integrated_gradients"]
    assert works["lrp"]
    assert works["kernel_shap"]
    assert not works["grad_cam"]
    assert told["seconds"]["gradient"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain"], "expected either IMAGE or --text"),
        (["explain", "one.png", "--text", "a"], "expected either IMAGE or --text"),
        (["explain", "--text", "missing.txt"], "cannot be read"),
        (["doctor", "demo:efficientnet_lite0", "--shape", "3", "--text", "a"], "expected one of them"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(arguments, said, tmp_path, capsys):
    out = [] if arguments[0] == "doctor" else ["--out", str(tmp_path)]
    model = [] if arguments[0] == "doctor" else ["--model", "demo:efficientnet_lite0"]
    assert code_of(*arguments, *model, *out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "data", [{}, {"images": ["a.png"], "texts": ["a"]}, {"texts": []}, {"texts": [3]}, {"text": ["a"]}]
)
def test_data_that_cannot_be_meant_are_refused(data, saved):
    with pytest.raises(PipelineError, match="data"):
        Pipeline({"model": saved, "data": data, "steps": {"one": "saliency"}})


def test_files_of_texts(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert load_texts(["a", "marked.txt", "b"], tmp_path) == ["a", "one", "two", "b"]
    for file, said in (("empty.txt", "no text in"), ("latin.txt", "expected UTF-8"), ("none.txt", "cannot be read")):
        with pytest.raises(InputError, match=said):
            load_texts([file], tmp_path)
    with pytest.raises(InputError, match="no texts"):
        load_texts([])


def test_a_text_is_called_by_its_beginning():
    assert name_of("a  short\none") == "a short one"
    assert len(name_of("word " * 40)) <= 60
    assert name_of("word " * 40).endswith("word…")
