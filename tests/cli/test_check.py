"""`pellucid check`: what it chooses, prints and exits with; the kit itself is tested in tests/testing."""

import json
import sys
import types
from dataclasses import dataclass

import pytest

from pellucid import cli
from pellucid.errors import PluginError


@dataclass
class Report:
    results: list
    ok: bool


@pytest.fixture
def command(site, only_site, monkeypatch, capsys):
    """Runs `pellucid check` on a site with a kit that finds fault with techniques named `bad...`."""
    asked = []

    def check_technique(name, *, seed=0):
        asked.append((name, seed))
        failed = name.rpartition(":")[2].startswith("bad")
        results = [("it is light", "pass", ""), ("it is right", "fail" if failed else "known", "off by one")]
        if name == "bad_through_and_through":
            results += [("it is neat", "fail", "off by one"), ("it is quick", "fail", "slow")]
        if name == "broken":
            raise PluginError("technique 'broken' could not be loaded")
        return Report(results, not failed)

    kit = types.ModuleType("pellucid.testing")
    kit.check_technique = check_technique
    monkeypatch.setitem(sys.modules, "pellucid.testing", kit)
    monkeypatch.delenv("PELLUCID_DEBUG", raising=False)

    def call(*arguments):
        only_site()
        asked.clear()
        with pytest.raises(SystemExit) as stop:
            cli.main(["check", *arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err, list(asked)

    return call


def test_a_technique_that_holds(site, command):
    site.provide("some-dist", "one", "two")
    code, out, err, asked = command("one", "--seed", "3")
    assert (code, err, asked) == (0, "", [("one", 3)])
    assert out.splitlines() == [
        "one of some-dist 1.0: 1 pass, 1 known",
        "  pass  it is light",
        "  known it is right: off by one",
    ]


def test_a_failed_check_exits_with_1(site, command):
    site.provide("some-dist", "bad_one")
    code, out, _, _ = command("bad_one")
    assert code == 1
    assert "  FAIL  it is right: off by one" in out.splitlines()


def test_failures_of_one_cause_are_told_once(site, command):
    site.provide("some-dist", "bad_through_and_through")
    assert command("bad_through_and_through")[1].splitlines() == [
        "bad_through_and_through of some-dist 1.0: 1 pass, 3 fail",
        "  pass  it is light",
        "  FAIL  it is right: off by one (and so does 1 more)",
        "  FAIL  it is quick: slow",
    ]


def test_a_technique_that_cannot_be_loaded_does_not_keep_the_others_from_being_checked(site, command):
    site.provide("some-dist", "broken", "one")
    code, out, err, asked = command("some-dist")
    assert (code, err, [name for name, _ in asked]) == (1, "", ["broken", "one"])
    assert out.startswith("FAIL  technique 'broken' could not be loaded\none of some-dist 1.0: 1 pass")
    code, out, _, _ = command("some-dist", "--json")
    assert (code, [one["ok"] for one in json.loads(out)["techniques"]]) == (1, [False, True])
    assert command("broken")[0] == 2


@pytest.mark.parametrize("name", ["plug", "some-dist", "Some_Dist", "site_some_dist"])
def test_a_plugin_is_found_by_entry_point_distribution_and_package(site, command, name):
    site.provide("some-dist", "one", "two", plugin="plug")
    site.provide("other-dist", "three")
    code, _, _, asked = command(name)
    assert (code, asked) == (0, [("one", 0), ("two", 0)])


def test_a_plugin_with_a_problem_fails_though_its_techniques_hold(site, command):
    source = (
        "from pellucid import Technique, hookimpl\n@hookimpl\ndef pellucid_techniques():\n"
        "    yield Technique('one', 'explainer', 'Explains.', 'm:C')\n    yield 3\n"
    )
    site.add("half-dist", {"half": "half_one"}, half_one=source)
    code, out, _, asked = command("half")
    assert (code, asked) == (1, [("one", 0)])
    assert out.startswith("FAIL  half (half-dist) provides something else than techniques: it gave 3")
    assert command("one")[0] == 0


def test_duplicates_are_checked_under_their_own_names(site, command):
    site.provide("a-dist", "one")
    site.provide("b-dist", "one")
    assert command("b-dist:one")[3] == [("b-dist:one", 0)]
    code, out, _, asked = command("b-dist")
    assert (code, asked) == (1, [("b-dist:one", 0)])
    assert "has a technique of a taken name" in out


def test_an_unavailable_technique_is_skipped_with_a_hint(site, command):
    source = (
        "from pellucid import Technique, hookimpl\n@hookimpl\ndef pellucid_techniques():\n"
        "    yield Technique('one', 'explainer', 'Explains.', 'm:C', requires=['surely-not-installed'])\n"
    )
    site.add("needy-dist", {"needy": "needy_one"}, needy_one=source)
    code, out, _, asked = command("needy")
    assert (code, asked) == (0, [])
    assert out == "one of needy-dist 1.0: skipped, it is unavailable. Try: pip install surely-not-installed\n"


def test_json_says_the_same(site, command):
    site.provide("some-dist", "one", "bad_two")
    code, out, _, _ = command("some-dist", "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["problems"]) == (1, False, [])
    assert [(report["name"], report["ok"]) for report in told["techniques"]] == [("one", True), ("bad_two", False)]
    assert told["techniques"][1]["results"][1] == ["it is right", "fail", "off by one"]


def test_unknown_and_broken_names_are_told(site, command):
    site.provide("some-dist", "saliency_two")
    site.add("bad-dist", {"broken": "bad_one"}, bad_one="1 / 0")
    code, out, err, asked = command("saliency_to")
    assert (code, out, asked) == (2, "", [])
    assert "no technique 'saliency_to'. Did you mean 'saliency_two'?" in err
    assert "Nor is there a plugin" in err
    code, _, err, _ = command("bad-dist")
    assert code == 2
    assert "has no technique that works. broken (bad-dist) could not be imported: ZeroDivisionError" in err
