import pytest

import pellucid
from pellucid import ParameterError, PluginError, Technique, UnknownTechnique, hookimpl
from pellucid.registry.lookup import title


class Several:
    @hookimpl
    def pellucid_techniques(self):
        yield Technique(
            "cam",
            "explainer",
            "Maps.",
            "m:C",
            title="CAM",
            output="attribution",
            uses={"activations", "gradients"},
            tags={"image"},
        )
        yield Technique(
            "rise", "explainer", "Masks.", "m:C", output="attribution", uses={"outputs"}, tags={"image", "slow"}
        )
        yield Technique("score", "evaluator", "Scores.", "m:C", output="scores", uses={"outputs"}, better="lower")
        yield Technique("draw", "projector", "Draws.", "m:C", output="projection", requires=("surely-not-installed",))


@pytest.fixture
def several(only_site):
    only_site().register(Several(), "several")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "cam rise score draw"),
        ({"kind": "explainer"}, "cam rise"),
        ({"tags": "image"}, "cam rise"),
        ({"tags": ["image", "slow"]}, "rise"),
        ({"tags": ()}, "cam rise score draw"),
        ({"uses": {"outputs"}}, "rise score"),
        ({"output": "attribution", "tags": {"slow"}}, "rise"),
        ({"output": ["scores", "projection"]}, "score draw"),
        ({"available": False}, "draw"),
        ({"requires": "surely-not-installed"}, "draw"),
        ({"plugin": "several", "better": "lower"}, "score"),
        ({"name": "nothing"}, ""),
    ],
)
def test_filters(several, filters, expected):
    assert [record.name for record in pellucid.techniques(**filters)] == expected.split()


@pytest.mark.parametrize(
    ("name", "told"),
    [("cam", "CAM"), ("cam_2", "CAM 2"), ("rise", "rise"), ("my_label", "my label"), ("cam_b", "cam b"), ("", "")],
)
def test_titles_are_found_by_the_names_of_results(several, name, told):
    assert title(name) == told


def test_a_result_that_has_another_technique_s_name_is_not_written_as_that():
    assert title("cam") == title("cam", "cam") == "CAM"
    assert title("cam", "grad_cam") == "cam"
    assert title("cam_2", "cam") == "CAM 2"
    assert title("cam_2", "grad_cam") == "cam 2"


def test_unknown_filters_and_kinds_are_told(several):
    with pytest.raises(ParameterError, match=r"no filter 'tag'\. Did you mean 'tags'"):
        pellucid.techniques(tag="image")
    with pytest.raises(ParameterError, match=r"no kind 'explainers' of technique\. Did you mean 'explainer'"):
        pellucid.techniques("explainers")


def test_an_unknown_technique_has_neighbours(several):
    with pytest.raises(UnknownTechnique, match=r"no technique 'scor'\. Did you mean 'score'\?"):
        pellucid.technique("scor")


def test_a_qualified_name_finds_the_record_of_its_distribution(site, only_site):
    site.provide("a-dist", "one")
    site.provide("b-dist", "one")
    only_site()
    assert pellucid.technique("one").distribution == "a-dist"
    assert pellucid.technique("a-dist:one").distribution == "a-dist"
    assert pellucid.technique("b-dist:one").distribution == "b-dist"
    assert pellucid.create("b-dist:one", size=1).technique.provider == "b-dist 1.0"


def test_what_may_have_provided_an_unknown_technique_is_named(site, only_site):
    site.add("bad-dist", {"bad": "bad_one"}, bad_one="1 / 0")
    site.provide("off-dist", "off_one")
    site.provide("a-dist", "one", "two")
    only_site(disable=["off_dist", "one"])
    with pytest.raises(UnknownTechnique) as caught:
        pellucid.technique("off_one")
    assert "off-dist:off_dist (disabled by PELLUCID_DISABLE)" in str(caught.value)
    assert "bad (bad-dist) could not be imported" in str(caught.value)
    with pytest.raises(UnknownTechnique, match=r"'one' of a-dist 1\.0 is disabled by PELLUCID_DISABLE"):
        pellucid.create("one")


def test_create_takes_a_name_a_record_or_an_instance(site, only_site):
    site.provide("a-dist", "one")
    only_site()
    record = pellucid.technique("one")
    instance = pellucid.create("one", size=7)
    assert (instance.size, instance.technique) == (7, record)
    assert pellucid.create(record, size=8).size == 8
    assert pellucid.create(instance) is instance
    with pytest.raises(ParameterError, match="is made already; set size"):
        pellucid.create(instance, size=9)
    with pytest.raises(ParameterError, match="Explains is a class"):
        pellucid.create(type(instance))


def test_register_adds_to_the_registry_of_the_process(several):
    with pytest.raises(PluginError, match="already provided"):
        pellucid.register(Several())
    [made] = [record for record in pellucid.register(Several(), "several") if record.name == "rise"]
    assert pellucid.technique("rise") is made


def test_works_with_keeps_what_the_model_can_serve():
    torch = pytest.importorskip("torch")
    every = {record.name for record in pellucid.techniques()}
    differentiable = {record.name for record in pellucid.techniques(works_with=torch.nn.Linear(3, 2))}
    black_box = pellucid.techniques(works_with=lambda inputs: inputs.sum(axis=1))
    assert "saliency" in differentiable <= every
    assert {"occlusion", "rise"} <= {record.name for record in black_box} < differentiable
    assert all(record.uses <= {"outputs"} for record in black_box)
    explainers = pellucid.techniques("explainer", works_with=pellucid.adapt(torch.nn.Linear(3, 2)), tags="black_box")
    assert {record.kind for record in explainers} == {"explainer"}
