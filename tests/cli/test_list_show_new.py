import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pellucid
from pellucid import cli


def rows(ran):
    return [line.split() for line in ran.stdout.splitlines()[1:]]


def one_line(ran, code=2):
    """The single line on stderr of a command that failed."""
    assert ran.returncode == code, ran.stderr
    assert ran.stdout == ""
    [line] = ran.stderr.splitlines()
    assert "Traceback" not in line
    return line


def test_list_shows_name_kind_needs_and_provider(site):
    site.provide("some-dist", "one", version="2.1")
    ran = site.run("list")
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[0].split() == ["NAME", "KIND", "NEEDS", "PROVIDER", "SUMMARY"]
    assert ["one", "explainer", "gradients", "some-dist", "2.1", "Explains."] in rows(ran)
    assert [row[0] for row in rows(ran)] == [record.name for record in pellucid.techniques()]
    assert ran.stderr == ""


def test_list_filters_by_kind_and_tag(site):
    ran = site.run("list", "--kind", "evaluators", "--json")
    listed = json.loads(ran.stdout)["techniques"]
    assert [record["name"] for record in listed] == [record.name for record in pellucid.techniques("evaluator")]
    source = (
        "from pellucid import Technique, hookimpl\n@hookimpl\ndef pellucid_techniques():\n"
        "    for name, tags in [('one', 'ab'), ('two', 'a'), ('three', '')]:\n"
        "        yield Technique(name, 'explainer', 'Explains.', 'm:C', tags=[f'tag_{tag}' for tag in tags])\n"
    )
    site.add("tagged-dist", {"tagged": "tagged_one"}, tagged_one=source)
    assert [row[0] for row in rows(site.run("list", "--tag", "tag_a"))] == ["one", "two"]
    assert [row[0] for row in rows(site.run("list", "--tag", "tag_a", "--tag", "tag_b"))] == ["one"]
    assert "no technique has the tag 'tag_c'. Did you mean 'tag_" in one_line(site.run("list", "--tag", "tag_c"))


def test_list_as_json_has_records_and_problems(site):
    site.provide("some-dist", "one")
    site.provide("other-dist", "one")
    site.add("bad-dist", {"bad": "bad_one"}, bad_one="1 / 0")
    told = json.loads(site.run("list", "--json").stdout)
    by_name = {record["listed_as"]: record for record in told["techniques"]}
    assert by_name["one"]["distribution"] == "other-dist"
    assert by_name["some-dist:one"]["name"] == "one"
    assert by_name["one"]["missing"] == []
    assert [(problem["plugin"], problem["loses"]) for problem in told["problems"]] == [
        ("bad", True),
        ("some_dist", False),
    ]


def test_list_notes_broken_plugins_and_missing_requirements_at_the_end(site):
    site.add("bad-dist", {"bad": "bad_one", "worse": "worse_one"}, bad_one="1 / 0", worse_one="2 / 0")
    source = (
        "from pellucid import Technique, hookimpl\n@hookimpl\ndef pellucid_techniques():\n"
        "    yield Technique('needy', 'explainer', 'Needs.', 'm:C', requires=['surely-not-installed'], extra='more')\n"
    )
    site.add("needy-dist", {"needy": "needy_one"}, needy_one=source)
    ran = site.run("list")
    assert ran.returncode == 0
    assert "needy" in [row[0] for row in rows(ran)]
    assert "surely-not-installed (missing)" in ran.stdout
    unavailable, broken = ran.stderr.splitlines()
    assert unavailable == "needy is unavailable. Try: pip install 'needy-dist[more]'"
    assert broken.startswith("A plugin has a problem: bad (bad-dist) could not be imported: ZeroDivisionError")
    assert "and 1 more" in broken


def test_disable_and_trace_reach_the_command(site):
    site.provide("some-dist", "one", "two")
    ran = site.run("list", PELLUCID_DISABLE="one", PELLUCID_TRACE="1")
    assert "one" not in [row[0] for row in rows(ran)]
    assert "pellucid_techniques() [some_dist, core] -> [2 x Technique] in " in ran.stderr


def test_show_tells_record_parameters_and_docstring(site):
    site.provide("some-dist", "one")
    ran = site.run("show", "one")
    assert ran.returncode == 0
    for line in ["one: Explains.", "  provider    some-dist 1.0, plugin some_dist", "  available   yes"]:
        assert line in ran.stdout.splitlines()
    assert "  size: int, default 3\n  mode: Any, default 'mean'\n" in ran.stdout
    assert ran.stdout.endswith("Explains a little.\n\nMore of it.\n")
    told = json.loads(site.run("show", "one", "--json").stdout)
    assert told["parameters"][0] == {"name": "size", "type": "int", "required": False, "default": "3"}
    assert told["available"] is True


def test_show_tells_why_a_technique_cannot_be_used(site):
    module = site.provide("some-dist", "one")
    (site.folder / f"{module}.py").write_text(
        (site.folder / f"{module}.py").read_text().replace("class Exp", "class N")
    )
    ran = site.run("show", "one")
    assert ran.returncode == 0
    assert "  available   no; " in ran.stdout
    assert "has no attribute 'Explains'" in ran.stdout


def test_mistakes_cost_one_line_and_exit_code_2(site):
    site.provide("some-dist", "surely_mine")
    assert "Did you mean 'surely_mine'" in one_line(site.run("show", "surely_mime"))
    assert "Did you mean 'list'" in one_line(site.run("lst"))
    assert "unrecognized arguments: --kinds" in one_line(site.run("list", "--kinds", "explainer"))
    assert "no kind 'foo'" in one_line(site.run("list", "--kind", "foo"))
    assert "the following arguments are required: name" in one_line(site.run("show"))


def test_debug_adds_the_traceback(site):
    ran = site.run("show", "surely_not", PELLUCID_DEBUG="1")
    assert ran.returncode == 2
    assert "Traceback" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("error: no technique 'surely_not'")


def test_help_and_version(site):
    top = site.run()
    assert top.returncode == 0
    assert all(f"    {name} " in top.stdout for name in cli.COMMANDS)
    assert site.run("--help").stdout == top.stdout
    assert site.run("--version").stdout.strip() == pellucid.__version__
    for name in cli.COMMANDS:
        assert site.run(name, "--help").stdout.startswith(f"usage: pellucid {name} ")


def test_every_command_has_its_module():
    folder = Path(cli.__file__).parent
    assert {path.stem for path in folder.glob("[!_]*.py")} == set(cli.COMMANDS)
    for name in cli.COMMANDS:
        functions = {node.name for node in ast.parse((folder / f"{name}.py").read_text()).body if hasattr(node, "name")}
        assert {"arguments", "run"} <= functions


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (pellucid.Interrupted({"one": 1}), 130, "interrupted."),
        (PermissionError(13, "Permission denied", "x.html"), 2, "error: [Errno 13] Permission denied: 'x.html'"),
        (pellucid.InputError("wrong\nrank"), 2, "error: wrong rank"),
        (RuntimeError("bug"), 1, "internal error: RuntimeError: bug (PELLUCID_DEBUG=1 shows where)"),
    ],
)
def test_errors_become_exit_codes(monkeypatch, capsys, error, code, line):
    def fail(given):
        raise error

    monkeypatch.delenv("PELLUCID_DEBUG", raising=False)
    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == code
    assert capsys.readouterr().err == f"{line}\n"


def test_ctrl_c_ends_with_130(site):
    # A process that is started in the background, as on some servers, has its children ignore Ctrl-C.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    slow = f"import os, signal, time\n{heard}\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)"
    site.add("slow-dist", {"slow": "slow_one"}, slow_one=slow)
    assert one_line(site.run("list"), 130) == "interrupted."


def test_a_reader_that_goes_away_is_no_error(site):
    site.provide("some-dist", *(f"technique_{index}" for index in range(2000)))
    variables = os.environ | {"PYTHONPATH": str(site.folder)}
    command = [sys.executable, "-m", "pellucid", "list"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_new_makes_a_package_of_the_name(site, tmp_path):
    ran = site.run("new", "my_own_maps", cwd=tmp_path)
    assert ran.returncode == 0
    folder = tmp_path / "pellucid-my-own-maps"
    assert f"cd {folder.name}" in ran.stdout
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "src/pellucid_my_own_maps/__init__.py",
        "src/pellucid_my_own_maps/my_own_maps.py",
        "tests/test_my_own_maps.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == folder.name
    assert project["project"]["entry-points"]["pellucid"] == {"my_own_maps": "pellucid_my_own_maps"}
    text = "".join((folder / name).read_text() for name in files)
    assert "class MyOwnMaps(Explainer)" in text
    assert "pooled_gradient" not in text.lower().replace("-", "_").replace("pooledgradient", "pooled_gradient")
    pytest.importorskip("ruff")
    options = ["--isolated", "--line-length=120"]
    subprocess.run([sys.executable, "-m", "ruff", "check", *options, "--select=E,F,I,UP,B", folder], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", *options, "--check", folder], check=True)


def test_new_refuses_bad_names_and_overwrites_nothing(site, tmp_path):
    site.provide("some-dist", "taken")
    (site.folder / "pellucid_packed.py").write_text("")
    (tmp_path / "pellucid-there").write_text("mine")
    taken = "some-dist 1.0 already has a technique 'taken'"
    for name, told in [
        ("MyOwnMaps", "try a name such as 'my_own_maps'"),
        ("my-maps", "try a name such as 'my_maps'"),
        ("", "is not a lower_snake identifier"),
        ("lambda", "try a name such as 'lambda_maps'"),
        ("../up", "is not a lower_snake identifier"),
        ("taken", taken),
        ("packed", "there is already a package 'pellucid_packed'"),
        ("there", "exists already, and nothing is overwritten"),
    ]:
        assert told in one_line(site.run("new", name, cwd=tmp_path))
    assert "there is no folder" in one_line(site.run("new", "fine", "--into", str(tmp_path / "absent")))
    assert [path.name for path in tmp_path.iterdir() if path.name != "site"] == ["pellucid-there"]
    assert (tmp_path / "pellucid-there").read_text() == "mine"


def test_list_works_with_a_model_by_reference(site):
    (site.folder / "own_models.py").write_text("def black_box():\n    return lambda inputs: inputs.sum(axis=1)\n")
    ran = site.run("list", "--works-with", "python:own_models:black_box")
    assert ran.returncode == 0, ran.stderr
    names = {row[0] for row in rows(ran)}
    assert "occlusion" in names
    assert "saliency" not in names
    assert "reference" in one_line(site.run("list", "--works-with", "surely not a model"))
