"""Folders, packages of the wheel, entry points and public names agree."""

import ast
import inspect
import tomllib
from pathlib import Path

import pytest

import pellucid
from pellucid import errors

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STUB = ast.parse((ROOT / "core/pellucid/__init__.pyi").read_text())


def packages(room):
    return {path.name for path in (ROOT / room).iterdir() if (path / "__init__.py").is_file()}


def test_every_folder_is_packaged_and_has_one_entry_point():
    plugins, adapters = packages("plugins"), packages("adapters")
    built = {Path(path) for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    folders = {Path("core/pellucid"), *(Path("plugins") / name for name in plugins)}
    assert built == folders | {Path("adapters") / name for name in adapters}
    assert sorted(PROJECT["project"]["entry-points"]["pellucid"].values()) == sorted(plugins | adapters)


def test_plugin_families_are_named_after_their_folder():
    for name, value in PROJECT["project"]["entry-points"]["pellucid"].items():
        assert value == f"pellucid_{name}"


def test_import_contracts_know_every_package():
    contracts = PROJECT["tool"]["importlinter"]
    assert set(contracts["root_packages"]) == {"pellucid", *packages("plugins"), *packages("adapters")}


def imported():
    return [(node.module, alias.name) for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def test_the_public_names_are_sorted_and_unique():
    names = [name for _, name in imported()]
    assert imported() == sorted(imported(), key=lambda pair: (pair[0].lower(), isort_order(pair[1])))
    assert len(names) == len(set(names))
    assert sorted(names) == pellucid.__all__


def isort_order(name):
    return (not name.isupper(), not name[0].isupper(), name.lower())


@pytest.mark.parametrize("name", pellucid.__all__)
def test_every_public_name_exists(name):
    assert getattr(pellucid, name) is not None


def test_every_error_is_public():
    classes = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert classes <= set(pellucid.__all__)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="surely_not"):
        _ = pellucid.surely_not
