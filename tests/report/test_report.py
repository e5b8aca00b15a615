"""The report: one file that needs no other, with everything in it and nothing of it taken for markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid import SavedFileError, Scores
from pellucid.report import write_report
from pellucid.results.scores import Row

HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self.within = tag

    def handle_endtag(self, tag):
        if tag == self.within:
            self.within = ""

    def handle_data(self, data):
        if not self.within:
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


@pytest.fixture(scope="module")
def made():
    """Results of a small network on two small pictures, with scores."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()
    adapter = pellucid.adapt(model)
    inputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    techniques = [pellucid.create("grad_cam", layer="0"), pellucid.create("integrated_gradients", n_steps=4)]
    results = pellucid.explain(adapter, inputs, techniques, seed=3)
    flip = pellucid.create("pixel_flipping", regions=4)
    scores = pellucid.evaluate(adapter, inputs, results, flip, controls=("random", "constant"))
    with torch.no_grad():
        predictions = model(inputs).double().softmax(1)
    photos = (inputs.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return adapter, results, scores, predictions, photos


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    adapter, results, scores, predictions, photos = made
    path = write_report(
        tmp_path_factory.mktemp("report") / "report.html",
        results=results,
        scores=scores,
        photos=photos,
        names=["a photo", HOSTILE],
        adapter=adapter,
        predictions=predictions,
        seconds=1.5,
        title=f"Title {HOSTILE}",
        notes=[f"Note {HOSTILE}"],
    )
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action"):
            if attributes.get(name):
                assert attributes[name].startswith(("data:image/", "#")), (tag, name, attributes[name][:60])
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))
    assert "@import" not in page
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)", page)


def test_a_hostile_name_stays_text(page):
    read = Page(page)
    assert len([tag for tag, _ in read.tags if tag == "script"]) == 1
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert "alert('x')" not in re.sub(r"&[#\w]+;", "", page)
    assert f"Title {HOSTILE}" in read.text
    assert f"Note {HOSTILE}" in read.text


def test_a_hostile_class_and_step_stay_text(made, tmp_path):
    adapter, results, _, predictions, photos = made
    adapter = pellucid.adapt(adapter.module)
    adapter.categories = [HOSTILE] * 4
    path = write_report(
        tmp_path / "report.html",
        results={HOSTILE: results["grad_cam"]},
        photos=photos,
        adapter=adapter,
        predictions=predictions,
    )
    read = Page(path.read_text(encoding="utf-8"))
    assert len([tag for tag, _ in read.tags if tag == "script"]) == 1
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert HOSTILE in read.text


def test_techniques_scores_certificates_and_provenance_are_on_it(made, page):
    _, results, scores, predictions, _ = made
    text = Page(page).text
    for words in ("Grad-CAM", "Integrated gradients", "Pixel flipping", "Random", "Constant", "Controls"):
        assert words in text
    assert re.search(
        r"is first at .* the best control, .*\. (1 of 2 techniques beats|[02] of 2 techniques beat) every", text
    )
    for rank in scores.ranking()["pixel_flipping"]:
        shown = {f"{rank.mean:.{digits}f}".replace("-", "−") for digits in range(2, 7)}
        assert any(one in text for one in shown), rank
    for check in results["integrated_gradients"].checks:
        assert check.name.replace("_", " ") in text
    meta = results["grad_cam"].meta
    for known in (meta.model_hash, meta.input_hash, meta.pellucid_version, meta.torch_version):
        assert known
        assert known[:8] in text
    assert "n_steps" in text
    for probability in predictions[0].tolist():
        assert f"{100 * probability:.1f} %" in text


def test_a_name_that_is_another_technique_s_stays_a_name(made, tmp_path):
    _, results, _, _, photos = made
    path = write_report(tmp_path / "r.html", results={"cam": results["grad_cam"]}, photos=photos)
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Cam grad_cam" in text
    assert "CAM" not in text


def test_a_colour_that_comes_again_is_drawn_otherwise(made, tmp_path):
    _, results, _, _, _ = made
    rows = tuple(Row(f"method {place}", "pixel_flipping", "higher") for place in range(12))
    axis, curves = (torch.linspace(0, 1, 3),) * 12, tuple(torch.rand(2, 3) for _ in range(12))
    scores = Scores(torch.rand(12, 2), rows, curve_x=axis, curve_y=curves)
    tags = Page(write_report(tmp_path / "r.html", results=results, scores=scores).read_text(encoding="utf-8")).tags
    drawn = [(facts["style"], facts["class"]) for tag, facts in tags if tag == "polyline"]
    assert len(drawn) == len(set(drawn)) == 12
    assert [facts["class"] for _, facts in tags if "swatch" in (facts.get("class") or "")].count("swatch again") == 2


def test_each_map_is_a_picture_with_its_values(made, page):
    _, results, _, _, photos = made
    tiles = [attributes for tag, attributes in Page(page).tags if tag == "div" and "data-values" in attributes]
    assert len(tiles) == len(results) * len(photos)
    import base64

    for tile in tiles:
        values = np.frombuffer(base64.b64decode(tile["data-values"]), dtype=np.int8)
        assert len(values) == int(tile["data-rows"]) * int(tile["data-columns"])
        assert float(tile["data-unit"]) > 0
        assert np.abs(values.astype(int)).max() == 127


def test_results_alone_are_enough(made, tmp_path):
    _, results, _, _, _ = made
    text = Page(write_report(tmp_path / "r.html", results=results).read_text(encoding="utf-8")).text
    assert "Grad-CAM" in text
    assert "input 2" in text


def test_what_is_no_map_gets_a_figure(made, tmp_path):
    adapter, _, _, _, _ = made
    states = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    text = write_report(tmp_path / "r.html", results={"map": pellucid.project(states, "pca")}, adapter=adapter)
    images = [attributes["src"] for tag, attributes in Page(text.read_text(encoding="utf-8")).tags if tag == "img"]
    assert images
    assert all(source.startswith("data:image/") for source in images)


def test_the_title_names_the_model_without_its_options(made, tmp_path):
    adapter = pellucid.Adapter(nn.Linear(2, 2), name="python:nets.py:small?weights=small.safetensors")
    results = made[1]
    page = write_report(tmp_path / "r.html", results=results, adapter=adapter).read_text(encoding="utf-8")
    assert "<title>What python:nets.py:small looks at</title>" in page


def test_a_report_that_cannot_be_written_is_one_clear_error(made, tmp_path):
    with pytest.raises(SavedFileError, match="cannot write the report"):
        write_report(tmp_path / "none" / "r.html", results=made[1])


def test_colours_of_what_explains_no_decision_are_no_evidence(made, tmp_path):
    _, results, _, _, photos = made
    inner = {"features": replace(results["grad_cam"], meta=replace(results["grad_cam"].meta, technique="activations"))}
    for shown, words in ((inner, ("negative", "positive")), (results, ("against", "for"))):
        page = write_report(tmp_path / "r.html", results=shown, photos=photos).read_text(encoding="utf-8")
        assert f"<span>{words[0]}</span><span>0</span><span>{words[1]}</span>" in page
