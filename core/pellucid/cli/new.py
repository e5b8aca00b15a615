"""`pellucid new NAME`: a plugin package that works, to start from."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pellucid.errors import ParameterError
from pellucid.registry import registry

_TEMPLATE = "pooled_gradient"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="what the technique is to be called, in lower_snake, such as my_maps")
    parser.add_argument("--into", type=Path, default=Path(), metavar="FOLDER", help="where to make it, by default here")


def run(options: argparse.Namespace) -> None:
    """Make a plugin package with one technique that works, its tests and its entry point, to start from."""
    folder = make(options.name, options.into)
    print(f"Made {folder}. Next:\n  cd {folder}\n  pip install -e '.[test]'\n  pellucid check {options.name}\n  pytest")


def make(name: str, into: Path) -> Path:
    """Writes the package and returns its folder.

    Raises:
        ParameterError: if the name is not free or not lower_snake, or something is where the folder should be.
    """
    if keyword.iskeyword(name):
        raise ParameterError(f"{name!r} is a word of Python's own; try a name such as '{name}_maps'.")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        suggestion = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        raise ParameterError(
            f"{name!r} is not a lower_snake identifier; try a name such as {suggestion or 'my_maps'!r}."
        )
    taken = registry().records.get(name)
    if taken is not None:
        raise ParameterError(f"{taken.provider} already has a technique {name!r}; choose another name.")
    if importlib.util.find_spec(f"pellucid_{name}") is not None:
        raise ParameterError(f"there is already a package 'pellucid_{name}'; choose another name.")
    if not into.is_dir():
        raise ParameterError(f"there is no folder {str(into)!r}; give an existing one with --into.")
    folder = into / _named(f"pellucid-{_TEMPLATE.replace('_', '-')}", name)
    if folder.exists() or folder.is_symlink():
        raise ParameterError(f"{folder} exists already, and nothing is overwritten; choose another name or folder.")
    _write(resources.files("pellucid.cli") / "template", folder, name)
    return folder


def _write(template: Traversable, path: Path, name: str) -> None:
    if template.is_dir():
        path.mkdir()
        for part in template.iterdir():
            _write(part, path / _named(part.name.removesuffix(".tmpl"), name), name)
    else:
        path.write_text(_named(template.read_text(encoding="utf-8"), name), encoding="utf-8")


def _named(text: str, name: str) -> str:
    """The template's text with its own name, in the three ways in which it is written, replaced."""
    words, own = name.split("_"), _TEMPLATE.split("_")
    for join in ("_".join, "-".join, _camel):
        text = text.replace(join(own), join(words))
    return text


def _camel(words: list[str]) -> str:
    return "".join(map(str.capitalize, words))
