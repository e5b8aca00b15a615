"""A third party's distribution, and a package that `pellucid new` made: built, installed apart, listed and checked."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pellucid
from pellucid.cli.new import make

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/pellucid-smooth-grad-cam"

pytest.importorskip("hatchling", reason="the wheels are built offline, with the hatchling that is installed")


def run(*command, folder, cwd):
    """Runs a command in a fresh process that has a folder of installed distributions beside the environment's own."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PELLUCID_")}
    variables |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=variables, cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module", params=["example", "new"])
def installed(request, tmp_path_factory):
    """(project, folder where its wheel is installed, technique)."""
    base = tmp_path_factory.mktemp(request.param)
    technique = {"example": "smooth_grad_cam_pp", "new": "freshly_made"}[request.param]
    project = EXAMPLE if request.param == "example" else make(technique, base)
    wheels, folder = base / "wheels", base / "installed"
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    for command in (
        ["wheel", project, "--no-build-isolation", *offline, "--wheel-dir", wheels],
        ["install", *offline, "--target", folder, "--find-links", wheels, project.name],
    ):
        ran = run("-m", "pip", *command, folder=base, cwd=base)
        assert ran.returncode == 0, ran.stderr
    return project, folder, technique


def test_it_is_listed_with_its_provider(installed):
    project, folder, technique = installed
    ran = run("-m", "pellucid", "list", "--json", folder=folder, cwd=folder)
    [record] = [record for record in json.loads(ran.stdout)["techniques"] if record["name"] == technique]
    assert record["distribution"] == project.name
    assert record["version"] in {"0.1.0", "1.0.0"}
    assert record["missing"] == []
    assert json.loads(ran.stdout)["problems"] == []


def test_its_code_comes_from_the_wheel(installed):
    _, folder, technique = installed
    code = (
        f"import pellucid, sys; c = pellucid.technique('{technique}').load(); print(sys.modules[c.__module__].__file__)"
    )
    ran = run("-c", code, folder=folder, cwd=folder)
    assert ran.stdout.startswith(str(folder))


def test_it_passes_the_command_check(installed):
    project, folder, technique = installed
    ran = run("-m", "pellucid", "check", project.name, "--json", folder=folder, cwd=folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout)
    assert told["ok"]
    assert [report["name"] for report in told["techniques"]] == [technique]
    assert sum(status == "pass" for _, status, _ in told["techniques"][0]["results"]) >= 10


def test_its_own_tests_pass(installed):
    project, folder, technique = installed
    # The kit has run for both on the command line; once it also runs in the third party's pytest.
    chosen = [] if technique == "freshly_made" else ["-k", "not contract"]
    tests = project / "tests"
    ran = run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *chosen, tests, folder=folder, cwd=project)
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
    ran = run("-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", *sources, folder="", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
