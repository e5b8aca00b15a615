"""A technique's parameters: the fields of its dataclass, checked against their types."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from pellucid.errors import ParameterError, PluginError
from pellucid.registry.technique import Technique


class Parametrised:
    """Checks a frozen dataclass's fields against their annotations when it is made.

    Ranges are data beside the type: `n_steps: Annotated[int, Ge(1)] = 50`, with the constraints of `annotated_types`
    and pydantic.

    Attributes:
        technique: the record that the instance was created from, or None where it was made directly.
    """

    technique: typing.ClassVar[Technique | None] = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            checked = _checked(type(self), field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)

    def get_params(self) -> dict[str, Any]:
        """The parameters by name, as given to `pellucid.create`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


@functools.cache
def _checkers(technique: type) -> dict[str, Any]:
    from pydantic import ConfigDict, TypeAdapter

    try:
        hints = typing.get_type_hints(technique, include_extras=True)
    except NameError as error:
        raise PluginError(
            f"a parameter of {technique.__name__} has a type that {technique.__module__} does not know: {error}. "
            "Import it there, also at run time."
        ) from error
    config = ConfigDict(arbitrary_types_allowed=True, strict=False)
    checkers = {}
    for field in dataclasses.fields(technique):
        hint = hints[field.name]
        kind = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        owned = isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "__pydantic_config__"))
        checkers[field.name] = TypeAdapter(hint) if owned else TypeAdapter(hint, config=config)
    return checkers


@functools.cache
def _numbers(technique: type) -> frozenset[str]:
    """The parameters that are numbers, of which Python takes a bool to be one."""
    hints = typing.get_type_hints(technique)
    parts = {name: set(typing.get_args(hint)) | {hint} for name, hint in hints.items()}
    return frozenset(name for name, kinds in parts.items() if kinds & {int, float} and bool not in kinds)


def _checked(technique: type, name: str, value: Any) -> Any:
    from pydantic import ValidationError

    if isinstance(value, bool) and name in _numbers(technique):
        raise ParameterError(f"{technique.__name__}({name}={value!r}): expected a number, not a bool")
    try:
        return _checkers(technique)[name].validate_python(value)
    except ValidationError as error:
        told = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise ParameterError(f"{technique.__name__}({name}={value!r}): {told}") from None
