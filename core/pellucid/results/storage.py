"""Results as files: one safetensors file, tensors in its body and everything else as JSON in its header. No pickle."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.errors import SavedFileError
from pellucid.protocol.leaves import Leaves

FORMAT = 1
SUFFIX = ".safetensors"


def write(path: str | Path, kind: str, parts: Mapping[str, Any], records: Mapping[str, type]) -> Path:
    """Writes a result's parts to one file, whole or not at all.

    Args:
        path: where; `.safetensors` is added where it is missing.
        kind: the class that the parts belong to.
        parts: tensors, `Leaves`, numbers, text, tuples, lists and dictionaries of them, and dataclasses in `records`.
        records: the dataclasses that may occur, by name.

    Raises:
        SavedFileError: when the file cannot be written there, or a part cannot be saved.
    """
    path = Path(path)
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    tensors: dict[str, Tensor] = {}
    tree = {name: _encode(part, name, tensors, records) for name, part in parts.items()}
    header = {"pellucid": json.dumps({"format": FORMAT, "kind": kind, "parts": tree}, allow_nan=False)}
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        draft.touch()
        mode = draft.stat().st_mode  # as the user's umask has it: safetensors makes files for their owner alone
        save_file(tensors, draft, metadata=header)
        draft.chmod(mode)
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise SavedFileError(
            f"cannot write '{path}': {getattr(error, 'strerror', None) or error}; expected an existing folder that "
            "can be written and has room"
        ) from error
    finally:
        with suppress(OSError):  # where the folder cannot be written there is no draft to remove
            draft.unlink()
    return path


def read(path: str | Path, records: Mapping[str, type]) -> tuple[str, dict[str, Any]]:
    """Reads what `write` wrote: the kind, and its parts.

    Raises:
        SavedFileError: when the file is missing, damaged, not Pellucid's, or of a newer format.
    """
    path = Path(path)
    with _readable(path), safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get("pellucid")
        if told is None:
            raise SavedFileError(f"'{path}' is a safetensors file that Pellucid did not write; expected a saved result")
        header = json.loads(told)
        if header["format"] > FORMAT:
            raise SavedFileError(
                f"'{path}' has format {header['format']}, this version of Pellucid reads up to {FORMAT}; "
                "update pellucid to read it"
            )
        parts = {name: _decode(part, file.get_tensor, records) for name, part in header["parts"].items()}
        return str(header["kind"]), parts


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        written = path.with_name(path.name + SUFFIX)
        hint = f", which names it '{written}'" if written.is_file() else ""
        raise SavedFileError(f"there is no file '{path}'; expected a result written by `save`{hint}") from error
    except OSError as error:
        raise SavedFileError(f"cannot read '{path}': {error}") from error
    except SavedFileError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SavedFileError(
            f"'{path}' is damaged or not a saved result ({type(error).__name__}: {error}); save the result again"
        ) from error


def _encode(value: Any, where: str, tensors: dict[str, Tensor], records: Mapping[str, type]) -> Any:
    """JSON of a value; tensors go to `tensors` under the place where they stood."""

    def inner(part: Any, name: Any) -> Any:
        return _encode(part, f"{where}.{name}", tensors, records)

    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case Tensor():
            # A copy in plain layout: safetensors refuses tensors that share memory, as slices of one batch do.
            tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"$tensor": where}
        case Leaves():
            return {"$leaves": [[name, inner(leaf, name)] for name, leaf in value.items()]}
        case Mapping():
            if wrong := next((key for key in value if not isinstance(key, str)), None):
                raise SavedFileError(f"cannot save {where}: its key {wrong!r} is not text")
            return {"$dict": {key: inner(part, key) for key, part in value.items()}}
        case list():
            return [inner(part, index) for index, part in enumerate(value)]
        case tuple() if type(value).__name__ not in records:
            return {"$tuple": [inner(part, index) for index, part in enumerate(value)]}
        case tuple():
            return {f"${type(value).__name__}": [inner(part, index) for index, part in enumerate(value)]}
        case _ if type(value).__name__ in records and dataclasses.is_dataclass(value):
            parts = {field.name: inner(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
            return {f"${type(value).__name__}": parts}
        case _ if hasattr(value, "item") and getattr(value, "shape", None) == ():
            return inner(value.item(), "item")  # a number of numpy's
    raise SavedFileError(
        f"cannot save {where}: it is of type {type(value).__name__}; expected tensors, numbers, text and tuples, lists "
        "and dictionaries of them"
    )


def _decode(value: Any, tensor: Any, records: Mapping[str, type]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensor, records) for part in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    match tag:
        case "$float":
            return float(content)
        case "$tensor":
            return tensor(content)
        case "$leaves":
            return Leaves({name: _decode(leaf, tensor, records) for name, leaf in content})
        case "$dict":
            return {key: _decode(part, tensor, records) for key, part in content.items()}
        case "$tuple":
            return tuple(_decode(part, tensor, records) for part in content)
    record = records[tag.removeprefix("$")]
    if isinstance(content, list):
        return record(_decode(part, tensor, records) for part in content)
    known = {field.name for field in dataclasses.fields(record)}
    return record(**{name: _decode(part, tensor, records) for name, part in content.items() if name in known})
