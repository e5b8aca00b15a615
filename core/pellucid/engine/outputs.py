"""What a model or a layer returned, in whatever form: its tensors, cut to rows and put together again."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.protocol.leaves import Leaves


def _parts(value: Any) -> dict[Any, Any] | None:
    """The parts of a tuple, list, mapping or dataclass, or None of anything else."""
    form = _form(type(value))  # type: ignore[arg-type]
    if form is None:
        return None
    if form == "sequence":
        return dict(enumerate(value))
    return dict(value) if form == "mapping" else {name: getattr(value, name) for name in form}


@functools.lru_cache(maxsize=1024)
def _form(kind: type) -> str | tuple[str, ...] | None:
    """How values of a type hold their parts: in a "sequence", a "mapping", or the fields of these names."""
    if issubclass(kind, (tuple, list)):
        return "sequence"
    if issubclass(kind, (dict, Leaves)):
        return "mapping"
    if dataclasses.is_dataclass(kind):
        # A field may say that it holds no tensors, where a walk through it would take long.
        return tuple(field.name for field in dataclasses.fields(kind) if field.metadata.get("tensors", True))
    return None


def _with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """The same form with other parts."""
    if isinstance(value, Leaves):
        return Leaves(parts)
    if isinstance(value, (tuple, list)):
        return type(value)(*parts.values()) if hasattr(value, "_fields") else type(value)(parts.values())
    made = copy.copy(value)
    for key, part in parts.items():
        # The outputs of some libraries are mappings that forbid `update`, and frozen dataclasses forbid `setattr`.
        if isinstance(made, dict):
            made[key] = part
        else:
            object.__setattr__(made, key, part)
    return made


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors, in order."""
    if isinstance(value, Tensor):
        yield value
        return
    for part in (_parts(value) or {}).values():
        if isinstance(part, Tensor):
            yield part
        elif part is not None:
            yield from tensors_in(part)


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Applies a function to every tensor; all else stays."""
    if isinstance(value, Tensor):
        return function(value)
    parts = _parts(value)
    return value if parts is None else _with_parts(value, {key: mapped(function, part) for key, part in parts.items()})


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for an output: itself, or the first of its parts."""
    return next(tensors_in(value), None)


def with_first(value: Any, first: Tensor, tensor: Tensor) -> Any:
    """The same output with its first tensor exchanged, wherever it occurs."""
    return mapped(lambda part: tensor if part is first else part, value)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _one_each(value: Any, rows: int) -> bool:
    """Whether an output is a list with an entry for each row, as of a detection model, not of parts with all rows.

    A list of dictionaries is taken for one; a list of anything else where its entries are alike and do not all have as
    many rows.
    """
    if not isinstance(value, list) or len(value) != rows or len({type(entry) for entry in value}) != 1:
        return False
    if isinstance(value[0], dict):
        return True
    if isinstance(value[0], Tensor) and len({(entry.dim(), entry.dtype) for entry in value}) != 1:
        return False
    return not all(_has_rows(part, rows) for part in tensors_in(value))


def _by_rows(function: Callable[[Any], Any], value: Any, rows: int) -> Any:
    """Applies a function to every tensor with the rows on its first axis and every list with an entry for each."""
    if _one_each(value, rows) or _has_rows(value, rows):
        return function(value)
    parts = _parts(value)
    if parts is None:
        return value
    return _with_parts(value, {key: _by_rows(function, part, rows) for key, part in parts.items()})


def cut(value: Any, start: int, stop: int, rows: int) -> Any:
    """The part of what a model returned for `rows` rows that belongs to some of them."""
    if start == 0 and stop == rows:
        return value
    return _by_rows(lambda part: part[start:stop], value, rows)


def by_draw(value: Any, draws: int, rows: int) -> Any:
    """Gives what was returned for `rows` rows, draw by draw, the derived axis first."""
    count = rows // draws

    def unfolded(part: Any) -> Any:
        if isinstance(part, list):
            return [part[start : start + count] for start in range(0, rows, count)]
        return part.reshape(draws, count, *part.shape[1:])

    return _by_rows(unfolded, value, rows)


def joined(values: Sequence[Any], rows: Sequence[int]) -> Any:
    """Puts together what a model returned for some rows and for the next; what has no rows is taken from the first."""
    first = values[0]
    if len(values) == 1:
        return first
    listed = all(isinstance(value, list) and len(value) == count for value, count in zip(values, rows, strict=True))
    # One entry may happen to have as many detections as there are rows; the others show what the list is.
    if listed and any(map(_one_each, values, rows)):
        return [entry for value in values for entry in value]
    if all(map(_has_rows, values, rows)):
        return torch.cat(list(values))
    parts = [_parts(value) or {} for value in values]
    if not parts[0]:
        return first
    keys = [key for key in parts[0] if all(key in other for other in parts)]
    return _with_parts(first, {key: joined([other[key] for other in parts], rows) for key in keys})
