"""Fixtures that several rooms share."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pellucid.registry import Registry, discovery


class Site:
    """A folder of installed distributions, written by a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        entry_points: dict[str, str] | str,
        *,
        version: str = "1.0",
        **modules: str,
    ) -> None:
        """Installs a distribution: entry points (a mapping, or the file's text) and the source of each module."""
        metadata = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        if not isinstance(entry_points, str):
            lines = [f"{name} = {value}" for name, value in entry_points.items()]
            entry_points = "\n".join(["[pellucid]", *lines, ""])
        (metadata / "entry_points.txt").write_text(entry_points)
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(source))

    def provide(self, distribution: str, *names: str, plugin: str = "", version: str = "1.0") -> str:
        """Installs a distribution with one plugin of explainers that work; returns the plugin module's name."""
        plugin = plugin or distribution.replace("-", "_")
        module = f"site_{distribution.replace('-', '_')}"
        self.add(distribution, {plugin: module}, version=version, **{module: plugin_source(module, *names)})
        return module

    def registry(self, **options: Any) -> Registry:
        """A registry of what is installed here and of nothing else."""
        options = {"disable": (), "trace": False, **options}
        return Registry(importlib.metadata.distributions(path=[str(self.folder)]), **options)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the command `pellucid` in a fresh process that has this site beside what is really installed."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PELLUCID_")}
        path = os.pathsep.join(filter(None, [str(self.folder), variables.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-m", "pellucid", *arguments],
            env=variables | {"PYTHONPATH": path} | environment,
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )


def plugin_source(module: str, *names: str) -> str:
    """The source of a plugin module whose techniques all are one class, `module:Explains`."""
    records = "\n".join(
        f'    yield Technique("{name}", "explainer", "Explains.", "{module}:Explains", uses={{"gradients"}})'
        for name in names
    )
    return f'''from pellucid import Technique, hookimpl

@hookimpl
def pellucid_techniques():
{records}

class Explains:
    """Explains a little.

    More of it.
    """

    def __init__(self, size: int = 3, *, mode="mean"):
        if size < 0:
            raise ValueError("size must not be negative")
        self.size, self.mode = size, mode

    def explain(self, sample):
        return self.size
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty folder of distributions that can be imported from, forgotten when the test ends."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(discovery, "_current", [])
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def only_site(site: Site, monkeypatch: pytest.MonkeyPatch):
    """Makes a site's registry the process's one: call it when the site is written."""

    def use(**options: Any) -> Registry:
        made = site.registry(**options)
        monkeypatch.setattr(discovery, "_current", [made])
        return made

    return use
