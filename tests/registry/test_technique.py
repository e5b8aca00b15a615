import dataclasses
import json
import sys

import pytest

from pellucid import ParameterError, PluginError, Technique, Unavailable


def record(**fields):
    given = {"name": "grad_x", "kind": "explainer", "summary": "Explains.", "target": "somewhere:Explains"}
    return Technique(**{**given, **fields})


@pytest.mark.parametrize("name", ["GradCAM", "grad-cam", "_cam", "cam_", "grad__cam", "2cam", "", "grad cam"])
def test_a_name_that_is_not_lower_snake_is_refused(name):
    with pytest.raises(PluginError, match="lower_snake"):
        record(name=name)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "explainr"}, "Did you mean 'explainer'"),
        ({"kind": 3}, "kind=3"),
        ({"summary": " "}, "one line"),
        ({"summary": "two\nlines"}, "one line"),
        ({"summary": None}, "summary=None is not a string"),
        ({"target": "module.Class"}, "module:Class"),
        ({"target": "module:"}, "module:Class"),
        ({"uses": {"gradient"}}, "Did you mean 'gradients'"),
        ({"uses": "gradients"}, "several words"),
        ({"uses": None}, "several words"),
        ({"tags": ["image", 3]}, "is not words"),
        ({"requires": "pymde"}, "several words"),
        ({"requires": ["pymde>=0.1"]}, "without versions"),
        ({"better": "higher"}, "for an evaluator"),
        ({"kind": "evaluator"}, "better='' is not 'higher' or 'lower'"),
        ({"kind": "evaluator", "better": "more"}, "better='more'"),
        ({"reference": 2017}, "reference=2017 is not a string"),
        ({"title": "Grad\nX"}, "a name on one line"),
        ({"title": 3}, "title=3 is not a string"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(fields, told):
    with pytest.raises(PluginError, match="technique 'grad_x'") as caught:
        record(**fields)
    assert told in str(caught.value)


def test_a_technique_is_written_by_its_title_or_its_name():
    assert record().title == "grad x"
    assert record(title="Grad-X").title == "Grad-X"


def test_words_may_come_in_any_iterable():
    made = record(uses=["outputs", "gradients"], tags=(word for word in ("image", "control")), requires=["pymde"])
    assert made.uses == {"outputs", "gradients"}
    assert made.tags == {"image", "control"}
    assert made.requires == ("pymde",)
    assert hash(made) == hash(dataclasses.replace(made))


def test_to_dict_survives_json():
    made = record(uses={"gradients", "activations"}, requires=("surely-not-installed",), extra="surely")
    told = json.loads(json.dumps(made.to_dict()))
    assert told["uses"] == ["activations", "gradients"]
    assert told["requires"] == told["missing"] == ["surely-not-installed"]
    assert told["hint"] == "pip install 'pellucid[surely]'"
    kept = {field.name for field in dataclasses.fields(Technique)}
    assert Technique(**{name: value for name, value in told.items() if name in kept}) == made


def test_what_is_missing_decides_availability_and_the_hint():
    assert record(requires=("pytest",)).available
    assert record(requires=("pytest",)).hint == ""
    absent = record(requires=("pytest", "surely-not-installed"))
    assert absent.missing == ("surely-not-installed",)
    assert not absent.available
    assert absent.hint == "pip install surely-not-installed"
    third = dataclasses.replace(absent, extra="more", distribution="some-dist")
    assert third.hint == "pip install 'some-dist[more]'"


def test_a_module_without_metadata_counts_as_installed(site):
    (site.folder / "bare_module.py").write_text("")
    assert record(requires=("bare-module",)).available


def test_create_sets_parameters_and_the_record(site):
    module = site.provide("some-dist", "grad_x")
    made = record(target=f"{module}:Explains")
    instance = made.create(size=5)
    assert (instance.size, instance.mode) == (5, "mean")
    assert instance.technique is made
    assert [parameter.name for parameter in made.parameters()] == ["size", "mode"]


def test_create_works_on_a_frozen_dataclass(site):
    (site.folder / "frozen_one.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Explains:\n    size: int\n    def explain(self, sample): return None\n"
    )
    made = record(target="frozen_one:Explains")
    assert made.create(size=2).technique is made
    with pytest.raises(ParameterError, match="needs the parameter 'size'"):
        made.create()


def test_wrong_parameters_are_told(site):
    made = record(target=f"{site.provide('some-dist', 'grad_x')}:Explains")
    with pytest.raises(ParameterError, match=r"no parameter 'sise'\. Did you mean 'size'\?.*size, mode"):
        made.create(sise=3)
    with pytest.raises(ParameterError, match="size must not be negative"):
        made.create(size=-1)


def test_a_class_that_takes_any_keyword_is_asked_itself(site):
    (site.folder / "open_one.py").write_text(
        "class Explains:\n"
        "    def __init__(self, **named): self.named = named\n"
        "    def explain(self, sample): return None\n"
    )
    assert record(target="open_one:Explains").create(anything=1).named == {"anything": 1}


@pytest.mark.parametrize(
    ("source", "path", "told"),
    [
        ("import surely_not_installed", "Explains", "No module named 'surely_not_installed'"),
        ("raise SystemExit(3)", "Explains", "SystemExit"),
        ("x = 1", "Explains", "has no attribute 'Explains'"),
        ("def Explains(): ...", "Explains", "not a class with a method `explain`"),
        ("class Explains: ...", "Explains", "not a class with a method `explain`"),
        ("class Explains:\n  __slots__ = ()\n  def explain(self, sample): ...", "Explains", "no __slots__"),
    ],
)
def test_what_cannot_be_loaded_is_blamed_on_its_provider(site, source, path, told):
    (site.folder / "broken_one.py").write_text(source)
    made = record(target=f"broken_one:{path}", plugin="p", distribution="some-dist", version="2.1")
    with pytest.raises(PluginError, match=r"'grad_x' of some-dist 2\.1") as caught:
        made.create()
    assert told in str(caught.value)


def test_a_missing_requirement_makes_it_unavailable_with_a_hint(site):
    (site.folder / "needy_one.py").write_text("import surely_not_installed")
    made = record(target="needy_one:Explains", requires=("surely-not-installed",), distribution="some-dist", extra="e")
    for attempt in (made.create, made.load):
        with pytest.raises(Unavailable, match=r"needs surely-not-installed.*pip install 'some-dist\[e\]'"):
            attempt()


def test_create_does_not_import_what_is_unavailable(site):
    module = site.provide("some-dist", "grad_x")
    with pytest.raises(Unavailable):
        record(target=f"{module}:Explains", requires=("surely-not-installed",)).create()
    assert module not in sys.modules
