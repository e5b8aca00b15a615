"""A third party's distribution, and a package of `pellucid new`: built, installed in isolation, listed and checked."""

import ast
import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import pellucid
from pellucid.cli.new import make

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/pellucid-smooth-grad-cam"

pytest.importorskip("hatchling", reason="the wheels are built offline, with the hatchling that is installed")


def run(python, *command, cwd):
    """Runs a command of an environment's Python in a fresh process."""
    left_out = ("PELLUCID_", "PYTHONPATH", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    variables["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        [python, *map(str, command)], env=variables, cwd=cwd, capture_output=True, text=True, timeout=300
    )


def environment(folder):
    """A virtual environment that sees this one's packages, offline; what is installed into it stays in it."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    found = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    outer = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    (Path(found.stdout.strip()) / "outer.pth").write_text(outer)
    return python


@pytest.fixture(scope="module", params=["example", "new"])
def installed(request, tmp_path_factory):
    """(project, environment where its wheel is installed, technique)."""
    base = tmp_path_factory.mktemp(request.param)
    technique = {"example": "smooth_grad_cam_pp", "new": "freshly_made"}[request.param]
    project = EXAMPLE if request.param == "example" else make(technique, base)
    python, wheels = environment(base / "environment"), base / "wheels"
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    for command in (
        ["wheel", project, "--no-build-isolation", *offline, "--wheel-dir", wheels],
        ["install", *offline, "--find-links", wheels, project.name],
    ):
        ran = run(python, "-m", "pip", *command, cwd=base)
        assert ran.returncode == 0, ran.stderr
    return project, python, technique


def test_it_is_listed_with_its_provider(installed):
    project, python, technique = installed
    ran = run(python, "-m", "pellucid", "list", "--json", cwd=python.parent)
    [record] = [record for record in json.loads(ran.stdout)["techniques"] if record["name"] == technique]
    assert record["distribution"] == project.name
    assert record["version"] in {"0.1.0", "1.0.0"}
    assert record["missing"] == []
    assert json.loads(ran.stdout)["problems"] == []


def test_its_code_comes_from_the_wheel_and_nothing_of_it_leaves_its_environment(installed):
    _, python, technique = installed
    code = (
        f"import pellucid, sys; c = pellucid.technique('{technique}').load(); print(sys.modules[c.__module__].__file__)"
    )
    ran = run(python, "-c", code, cwd=python.parent)
    assert ran.stdout.startswith(str(python.parents[1])), ran.stdout + ran.stderr
    outside = run(sys.executable, "-m", "pellucid", "show", technique, cwd=python.parent)
    assert outside.returncode == 2
    assert "no technique" in outside.stderr


def test_it_passes_the_command_check(installed):
    project, python, technique = installed
    ran = run(python, "-m", "pellucid", "check", project.name, "--json", cwd=python.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout)
    assert told["ok"]
    assert [report["name"] for report in told["techniques"]] == [technique]
    assert sum(status == "pass" for _, status, _ in told["techniques"][0]["results"]) >= 10


def test_its_own_tests_pass(installed):
    project, python, technique = installed
    # The kit has run for both on the command line; once it also runs in the third party's pytest.
    chosen = [] if technique == "freshly_made" else ["-k", "not contract"]
    tests = project / "tests"
    ran = run(python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *chosen, tests, cwd=project)
    assert ran.returncode == 0, ran.stdout[-3000:]


def test_it_uses_public_names_only(installed):
    project, _, _ = installed
    for path in project.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("pellucid.") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pellucid":
                assert node.module in {"pellucid", "pellucid.testing"}
                if node.module == "pellucid":
                    assert {alias.name for alias in node.names} <= set(pellucid.__all__)


def test_both_are_typed(tmp_path):
    pytest.importorskip("mypy")
    sources = [EXAMPLE / "src", make("freshly_made", tmp_path) / "src"]
    ran = run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", *sources, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
