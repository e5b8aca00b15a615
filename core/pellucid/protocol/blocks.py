"""Finished parts of long runs, kept in a folder, from which the next run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.errors import SavedFileError
from pellucid.results import storage


def digest(*parts: Any) -> str:
    """A digest of tensors, by all their bytes and their forms, of mappings and sequences of them, and of plain values.

    Args:
        parts: tensors, mappings, sequences, and values whose `repr` says all that matters.
    """
    found = hashlib.blake2b(digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            found.update(f"tensor {tuple(part.shape)} {part.dtype}".encode())
            found.update(raw(part))
        elif isinstance(part, Mapping):
            add(sorted(part))
            for name in sorted(part):
                add(part[name])
        elif isinstance(part, (list, tuple)):
            found.update(f"{type(part).__name__} {len(part)} ".encode())
            for inner in part:
                add(inner)
        else:
            found.update(f"{part!r} ".encode())

    add(parts)
    return found.hexdigest()


def settings(model: nn.Module) -> dict[str, str]:
    """Digests of what a model's parts keep besides parameters, buffers and parts, by name.

    The forward pass may depend on such numbers, texts, tensors and functions, and a model's `repr` need not show them.
    """
    own = vars(nn.Module()).keys()
    return {
        f"{name}.{key}": digest(plain(value))
        for name, part in model.named_modules()
        for key, value in vars(part).items()
        if key not in own
    }


def plain(value: Any, depth: int = 4) -> Any:
    """A value as `digest` takes it: of a function what it does, of what else has a `repr` of its own, its kind."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [value.dtype.str, value.shape, value.tobytes()]
    if isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))):
        return value
    if depth and isinstance(value, Mapping):
        return [[plain(key, depth - 1), plain(one, depth - 1)] for key, one in value.items()]
    if depth and isinstance(value, (list, tuple)):
        return [plain(one, depth - 1) for one in value]
    if depth and isinstance(value, FunctionType):
        code, cells = value.__code__, value.__closure__ or ()
        within = [code.co_consts, code.co_names, value.__defaults__, [cell.cell_contents for cell in cells]]
        return [value.__qualname__, code.co_code, plain(within, depth - 1)]
    return getattr(value, "__qualname__", type(value).__qualname__)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


class Blocks:
    """Finished blocks of a long run in a folder, so that a run that was interrupted goes on where it stood.

    A block is filed by a digest of all that it depends on. Where a weight, an example or a setting has changed, the
    digest is another one: what was kept of before is left alone, and never taken for what is asked now. Each block is
    written whole or not at all.

    Args:
        folder: made where it is missing; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()

    def __bool__(self) -> bool:
        return self.folder is not None

    def found(self, key: str) -> dict[str, Tensor] | None:
        """The block that was kept, or None.

        Args:
            key: the `digest` of all that the block depends on.

        Raises:
            SavedFileError: when its file is damaged.
        """
        if self.folder is None or not (path := self._file(self.folder, key)).exists():
            return None
        try:
            return storage.read(path, {})[1]
        except SavedFileError as error:
            raise SavedFileError(f"{error}; or remove it, and this part is computed anew") from error

    def keep(self, key: str, block: Mapping[str, Tensor]) -> None:
        """Writes a finished block.

        Raises:
            SavedFileError: when the folder cannot be written to.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SavedFileError(
                f"cannot write to the folder '{self.folder}': {error}; expected one that can be written and has room"
            ) from error
        storage.write(self._file(self.folder, key), "Block", block, {})

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / f"{key}{storage.SUFFIX}"
