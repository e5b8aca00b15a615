import sys

import pytest

from pellucid import ModelError, PluginError, Technique, hookimpl, registry
from pellucid.registry import discovery

HEAD = "from pellucid import Technique, hookimpl\n"
ONE = 'Technique("one", "explainer", "One.", "m:C")'


def told(made):
    return [str(problem) for problem in made.problems]


def test_records_carry_their_provenance(site):
    site.provide("some-dist", "one", "two", plugin="plug", version="2.1")
    made = site.registry()
    assert list(made.records) == ["one", "two"]
    first = made.records["one"]
    assert (first.plugin, first.distribution, first.version) == ("plug", "some-dist", "2.1")
    assert first.provider == "some-dist 2.1"
    assert made.problems == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import surely_not_installed", "could not be imported: ModuleNotFoundError"),
        ("def (", "could not be imported: SyntaxError"),
        ("raise SystemExit('bye')", "could not be imported: SystemExit: bye"),
        ("1 / 0", "could not be imported: ZeroDivisionError"),
        (
            HEAD + "@hookimpl\ndef pellucid_techniqes(): yield",
            "was refused: it implements the unknown hook 'pellucid_techniqes'. Did you mean 'pellucid_techniques'?",
        ),
        (HEAD + "@hookimpl\ndef pellucid_adapt(modell): ...", "was refused: PluginValidationError"),
        (f"{HEAD}def pellucid_techniques(): yield {ONE}", "was refused: it implements no hook. Decorate"),
        (HEAD + "@hookimpl\ndef pellucid_techniques(): 1 / 0", "failed while it listed its techniques: ZeroDivision"),
        (HEAD + "@hookimpl\ndef pellucid_techniques(): raise SystemExit", "failed while it listed"),
        (HEAD + "@hookimpl\ndef pellucid_techniques(): return 3", "failed while it listed its techniques: TypeError"),
        (HEAD + "@hookimpl\ndef pellucid_techniques(): pass", "it returned None where techniques were expected"),
        (
            HEAD + "@hookimpl\ndef pellucid_techniques(): yield {'name': 'one'}",
            "provides something else than techniques: it gave {'name': 'one'}",
        ),
        (
            HEAD + "@hookimpl\ndef pellucid_techniques(): yield Technique('One', 'explainer', 'One.', 'm:C')",
            "PluginError: technique 'One': name='One' is not a lower_snake identifier",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_no_other(site, source, what):
    site.add("bad-dist", {"bad": "bad_one"}, bad_one=source)
    site.provide("a-dist", "before")
    site.provide("z-dist", "after")
    made = site.registry()
    assert list(made.records) == ["before", "after"]
    assert [(problem.plugin, problem.distribution, problem.loses) for problem in made.problems] == [
        ("bad", "bad-dist", True)
    ]
    assert what in told(made)[0]
    assert told(made)[0].startswith("bad (bad-dist) ")


def test_a_refused_plugin_is_unregistered_whole(site):
    site.add(
        "bad-dist",
        {"bad": "bad_one"},
        bad_one=HEAD + "@hookimpl\ndef pellucid_adapt(model): return 'bad'\n@hookimpl\ndef pellucid_wrong(): ...",
    )
    made = site.registry()
    assert made.hook.pellucid_adapt(model=None, options={}) is None


def test_what_a_plugin_gave_before_it_failed_is_kept(site):
    source = f"{HEAD}@hookimpl\ndef pellucid_techniques():\n    yield {ONE}\n    yield 3\n    raise OSError('disk')"
    site.add("half-dist", {"half": "half_one"}, half_one=source)
    made = site.registry()
    assert list(made.records) == ["one"]
    assert len(made.problems) == 2
    assert "OSError: disk" in told(made)[1]


def test_broken_metadata_is_reported_and_harms_no_other(site):
    site.add("bad-dist", "[pellucid]\nno equals sign\n")
    site.provide("good-dist", "one")
    made = site.registry()
    assert list(made.records) == ["one"]
    assert "bad-dist" in told(made)[0]


def test_looking_for_hooks_sets_off_no_lazy_import(site):
    source = (
        "import lazy_loader\n"
        "__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={'lazy_part': ['thing']})\n"
        f"{HEAD}@hookimpl\ndef pellucid_techniques():\n    yield {ONE}"
    )
    site.add("lazy-dist", {"lazy": "lazy_one"})
    (site.folder / "lazy_one").mkdir()
    (site.folder / "lazy_one" / "__init__.py").write_text(source)
    (site.folder / "lazy_one" / "lazy_part.py").write_text("thing = 1")
    assert list(site.registry().records) == ["one"]
    assert "lazy_one" in sys.modules
    assert "lazy_one.lazy_part" not in sys.modules


def test_first_party_names_win_and_duplicates_stay_reachable(site):
    site.provide("a-dist", "one", "two")
    site.provide("pellucid", "one")
    made = site.registry()
    assert made.records["one"].distribution == "pellucid"
    assert made.records["a-dist:one"].distribution == "a-dist"
    assert made.records["two"].distribution == "a-dist"
    [problem] = told(made)
    assert "already provided by plugin 'pellucid' of pellucid 1.0" in problem
    assert "reachable as 'a-dist:one'" in problem
    assert not made.problems[0].loses


def test_a_distribution_that_repeats_its_own_name_loses_the_second(site):
    site.provide("some-dist", "one", "one", "two")
    made = site.registry()
    assert list(made.records) == ["one", "two"]
    assert "left out" in told(made)[0]


def test_two_distributions_may_have_an_entry_point_of_one_name(site):
    site.provide("a-dist", "one", plugin="same")
    site.provide("b-dist", "two", plugin="same")
    made = site.registry()
    assert list(made.records) == ["one", "two"]
    assert "loaded as 'b-dist:same'" in told(made)[0]


def test_one_module_under_two_entry_points_is_reported(site):
    module = site.provide("a-dist", "one")
    site.add("b-dist", {"again": module})
    made = site.registry()
    assert list(made.records) == ["one"]
    assert told(made) == ["again (b-dist) was refused: it is the plugin 'a_dist', which is loaded already."]


@pytest.mark.parametrize("word", ["a_dist", "a-dist:a_dist"])
def test_a_disabled_plugin_is_not_imported(site, word):
    module = site.provide("a-dist", "one")
    site.provide("b-dist", "two")
    made = site.registry(disable=[word])
    assert list(made.records) == ["two"]
    assert module not in sys.modules
    assert list(made.blocked) == ["a-dist:a_dist"]
    assert made.problems == []


def test_a_disabled_technique_is_left_out_alone(site, monkeypatch):
    site.provide("a-dist", "one", "two")
    monkeypatch.setenv("PELLUCID_DISABLE", " one, ,")
    made = site.registry(disable=None)
    assert list(made.records) == ["two"]
    assert list(made.disabled) == ["a-dist:one"]


def test_disabling_one_provider_leaves_the_name_to_the_other(site):
    site.provide("pellucid", "one")
    site.provide("a-dist", "one")
    made = site.registry(disable=["pellucid:one"])
    assert made.records["one"].distribution == "a-dist"
    assert made.problems == []


def test_an_unknown_name_to_disable_is_reported(site):
    site.provide("a-dist", "saliency")
    [problem] = told(site.registry(disable=["salience"]))
    assert "PELLUCID_DISABLE names something unknown" in problem
    assert "Did you mean 'saliency'?" in problem


def test_trace_tells_each_hook_call_with_result_and_time(site, capsys, monkeypatch):
    site.provide("a-dist", "one", "two")
    monkeypatch.setenv("PELLUCID_TRACE", "1")
    made = site.registry(trace=None)
    made.hook.pellucid_adapt(model=object(), options={"fast": True})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("pellucid_techniques() [a_dist, core] -> [2 x Technique] in ")
    assert second.startswith("pellucid_adapt(model=<object>, options={'fast': True}) [core] -> None in ")
    assert second.endswith(" ms")


def test_trace_tells_a_failure_and_is_silent_unless_asked(site, capsys, monkeypatch):
    class Bad:
        @hookimpl
        def pellucid_adapt(self, model):
            raise ValueError("no such model")

    for value, silent in [("1", False), ("0", True), ("", True)]:
        monkeypatch.setenv("PELLUCID_TRACE", value)
        made = site.registry(trace=None)
        made.register(Bad(), "bad")
        with pytest.raises(PluginError, match="ValueError: no such model"):
            made.hook.pellucid_adapt(model=1, options={})
        assert ("-> PluginError(" in capsys.readouterr().err) is not silent


class Local:
    def __init__(self, name="mine", kind="explainer"):
        self.record = (name, kind, "Mine.", "m:C")

    @hookimpl
    def pellucid_techniques(self):
        yield Technique(*self.record)


def test_a_plugin_can_be_registered_by_program_again_and_again(site):
    made = site.registry()
    assert [record.name for record in made.register(Local(), "local")] == ["mine"]
    [again] = made.register(Local("other"), "local")
    assert (again.name, again.plugin, again.distribution, again.provider) == ("other", "local", "", "local")
    assert list(made.records) == ["other"]
    made.unregister("local")
    made.unregister("local")
    assert made.records == {}


def test_a_wrong_plugin_registered_by_program_is_refused_whole(site):
    site.provide("a-dist", "one")
    made = site.registry()
    for plugin, what in [
        (Local("one"), "already provided by plugin 'a_dist'"),
        (Local("mine", "explain"), "kind='explain'"),
        (object(), "implements no hook"),
    ]:
        with pytest.raises(PluginError, match=what):
            made.register(plugin, "local")
    with pytest.raises(PluginError, match="an installed plugin has this name"):
        made.register(Local(), "a_dist")
    assert list(made.records) == ["one"]
    assert made.problems == []


def test_a_plugin_whose_hook_fails_is_named_with_a_way_on(site):
    adapts = HEAD + "@hookimpl\ndef pellucid_adapt(model):\n    {}\n"
    site.add("bad-dist", {"bad": "adapts_badly"}, adapts_badly=adapts.format("return model.surely_not"))
    site.add("good-dist", {"good": "adapts_well"}, adapts_well=adapts.format("return 'adapted'"))
    site.add("strict-dist", {"strict": "adapts_strictly"})
    (site.folder / "adapts_strictly.py").write_text(
        f"from pellucid import ModelError\n{HEAD}@hookimpl(tryfirst=True)\n"
        "def pellucid_adapt(model):\n    if model == 'old':\n        raise ModelError('too old')\n"
    )
    made = site.registry(disable=["good"])
    with pytest.raises(
        PluginError, match=r"plugin bad failed in its hook `pellucid_adapt`: AttributeError.*DISABLE=bad"
    ):
        made.hook.pellucid_adapt(model=1, options={})
    with pytest.raises(ModelError, match=r"^too old$"):
        made.hook.pellucid_adapt(model="old", options={})
    assert site.registry(disable=["bad"]).hook.pellucid_adapt(model=1, options={}) == "adapted"


def test_run_is_executed_inside_the_wrappers(site):
    events = []

    class Run:
        def execute(self):
            events.append("run")
            return 41

    class Timer:
        @hookimpl(wrapper=True)
        def pellucid_run(self, run):
            events.append("before")
            result = yield
            events.append("after")
            return result + 1

    made = site.registry()
    assert made.hook.pellucid_run(run=Run()) == 41
    made.register(Timer(), "timer")
    assert made.hook.pellucid_run(run=Run()) == 42
    assert events == ["run", "before", "run", "after"]


def test_the_registry_is_built_once_until_reset(monkeypatch):
    monkeypatch.setattr(discovery, "_current", [])
    first = registry.registry()
    assert registry.registry() is first
    registry.reset()
    assert registry.registry() is not first


def test_a_plugin_that_asks_the_registry_while_it_is_built_is_told(site, monkeypatch):
    site.add("bad-dist", {"bad": "asks_one"}, asks_one="import pellucid\npellucid.techniques()")
    monkeypatch.setattr(discovery, "_current", [])
    [problem] = [problem for problem in registry.registry().problems if problem.plugin == "bad"]
    assert "must not ask the registry" in problem.why
