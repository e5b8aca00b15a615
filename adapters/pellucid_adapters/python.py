"""One's own models: "python:package.module:name" and "python:path/to/file.py:name"."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid import BadReference, nearest


def load(kind: str, name: str, options: dict[str, Any]) -> object:
    """Loads what a Python module holds: a model, or a function or class that makes one.

    A module or an estimator is taken as it is; anything else that can be called is called with the options as
    keywords, and what it returns is the model. Modules are looked for in the current directory too. The code that is
    named here is run.

    Raises:
        BadReference: no such module or name, or the call fails for its arguments.
    """
    location, colon, attribute = name.rpartition(":")
    if not colon or not location or not attribute:
        raise BadReference(f"'python:{name}' names no callable: expected python:package.module:name.")
    module = _file(Path(location).expanduser()) if location.endswith(".py") else _module(location)
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise BadReference(f"'{location}' has no '{attribute}'." + nearest(attribute, public))
    found = getattr(module, attribute)
    if _is_model(found):
        if options.pop("weights", None) is not None or options:
            raise BadReference(f"'python:{name}' is a model already, so it takes no options; got {options}.")
        return found
    if not callable(found):
        raise BadReference(
            f"'python:{name}' is of type {type(found).__name__}: expected a model or a function making one."
        )
    options = {key: value for key, value in options.items() if key != "weights" or value is not None}
    try:
        return found(**options)
    except TypeError as error:
        raise BadReference(f"'python:{name}' cannot be called with {options or 'no arguments'}: {error}.") from error


def _is_model(found: object) -> bool:
    from torch import nn

    return isinstance(found, nn.Module) or (hasattr(found, "predict") and not isinstance(found, type))


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BadReference(
            f"there is no module '{error.name}', looked for from {here}. Install it, or name its file, as in "
            "python:path/to/file.py:name."
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pellucid_reference_{path.stem}", path)  # shadows nothing
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadReference(f"there is no Python file '{path}'.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
