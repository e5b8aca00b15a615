"""The types of parameters as a reader wants them: what may be given, with the ranges."""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import Any

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def type_names(technique: type, parameters: list[inspect.Parameter]) -> dict[str, str]:
    """The types of a technique's parameters by name, "" where one has none.

    Those of a class that cannot be resolved, such as one that imports them for the type checker alone, are as written.
    """
    try:
        hints = typing.get_type_hints(technique, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    named = {}
    for parameter in parameters:
        written = "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
        named[parameter.name] = type_name(hints[parameter.name]) if parameter.name in hints else written.strip("'")
    return named


def type_name(hint: Any) -> str:
    """A type in words: `Annotated[int, Ge(1)]` is "int >= 1", `Literal["a", "b"]` its choices."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join([type_name(arguments[0]), " and ".join(filter(None, map(_bound, arguments[1:])))]).strip()
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_name, arguments))
    if origin is not None and arguments:
        inner = ", ".join(_argument(argument) for argument in arguments)
        return f"{_plain(origin)}[{inner}]"
    return _plain(hint)


def _argument(argument: Any) -> str:
    if argument is Ellipsis:
        return "..."
    if isinstance(argument, list):  # what a callable takes
        return f"[{', '.join(map(type_name, argument))}]"
    return type_name(argument)


def _plain(hint: Any) -> str:
    if hint is type(None):
        return "None"
    name = hint.__name__ if isinstance(hint, type) or hasattr(hint, "__name__") else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", name)


def _bound(constraint: Any) -> str:
    """A constraint of `annotated_types` in words, "" for those that a reader need not know of."""
    told = [f"{sign} {getattr(constraint, name)}" for name, sign in _BOUNDS.items() if _has(constraint, name)]
    if _has(constraint, "min_length"):
        told.append(f"of at least {constraint.min_length}")
    if _has(constraint, "max_length"):
        told.append(f"of at most {constraint.max_length}")
    return " and ".join(told)


def _has(constraint: Any, name: str) -> bool:
    return getattr(constraint, name, None) is not None
