"""The page on training data and concepts: its code runs and does as it says; its scores are those measured."""

import json

import matplotlib.pyplot as plt
import pytest
import torch
from tests.docs.pages import ROOT, blocks

import pellucid

PAGE = (ROOT / "docs/data.md").read_text()


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What the page's code made; 3 parts in place of 32, whose trainings take a while."""
    code = [text for _, language, text in blocks(PAGE) if language == "python"]
    assert PAGE.count("```") == 2 * len(code)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for text in code:
            exec(compile(text.replace("n_subsets=32", "n_subsets=3"), "docs/data.md", "exec"), made)
    plt.close("all")
    return made


def mean(scores, metric, name):
    (row,) = (place for place, one in enumerate(scores.rows) if (one.metric, one.explanation) == (metric, name))
    return float(scores.values[row].mean())


def test_influence_is_as_the_page_says(known):
    found, ours, y = known["found"], known["ours"], known["y"]
    predicted = known["model"](known["queries"]).argmax(dim=1)
    helped = y[found.top(slice(None), k=5).places] == predicted[:, None]
    opposed = y[found.opponents(slice(None), k=5).places] == predicted[:, None]
    assert float(helped.float().mean()) > 0.8 > 0.2 > float(opposed.float().mean())
    assert {"damping", "training loss", "classes without examples"} <= {check.name for check in ours.checks}
    assert float(known["wrong"][known["suspects"]].float().mean()) > 5 / 20
    assert {row.explanation for row in known["scores"].rows if row.control} == {"random", "similarity", "loss"}
    assert mean(known["scores"], "mislabel_detection", "ours") > 0.95
    assert (
        mean(known["scores"], "mislabel_detection", "loss") > mean(known["scores"], "mislabel_detection", "ours") - 0.01
    )


def test_prototypes_and_examples_are_as_the_page_says(known):
    assert int((known["critic"].of("prototype") >= 0).sum()) == 100
    assert int((known["critic"].of("criticism") >= 0).sum()) == 20
    errors = known["errors"]
    assert mean(errors, "nearest_prototype_error", "mmd_critic") < mean(errors, "nearest_prototype_error", "random")
    assert known["units"].crops.shape == (2, 9, 1, 5, 5)
    assert known["like"].indices.shape == (30, 3)


def test_concepts_are_as_the_page_says(known):
    scored, again = known["scored"], known["again"]
    assert scored.significant.tolist() == [[True, False]]
    assert bool((scored.values[:, 0] == 1).all() and scored.magnitudes[0, 0] > 0.1)
    assert bool(again.significant.all() and torch.allclose(again.values[:, 0], scored.values[:, 0]))
    assert known["parts"].masks.shape[0] == len(known["seen"])
    assert {"random order"} == {row.explanation for row in known["few"].rows if row.control}


def test_every_technique_and_metric_stands_on_the_page():
    families = ("pellucid_influence", "pellucid_examples", "pellucid_concepts")
    names = {one.name for one in pellucid.techniques("explainer") if one.target.startswith(families)}
    assert not {name for name in names - {"influence_control", "concept_control"} if f"`{name}`" not in PAGE}


def test_the_scores_of_the_page_were_measured():
    measured = json.loads((ROOT / "benchmarks/results/influence_quality.json").read_text())
    quality = {row["name"]: row for row in measured["rows"]}
    for line, name in {
        "Gauss-Newton of rank 1000": "influence functions, Gauss-Newton of rank 1000",
        "Fisher": "influence functions, Fisher",
        "EK-FAC": "influence functions, EK-FAC of the Fisher",
        "`trak`, exact kernel": "trak, exact kernel",
        "gradients' inner products": "gradient dot product",
        "loss": "loss",
        "likeness within the class": "class x similarity",
    }.items():
        both = [f"{quality[f'{name} ({recipe})']['three']:.3f}" for recipe in ("sgd", "adam")]
        (told,) = (one for one in PAGE.splitlines() if one.startswith(f"| {line} |") and one.count("|") == 4)
        for value, cell in zip(both, told.split("|")[2:4], strict=True):
            assert abs(float(value) - float(cell)) <= 0.0051
