"""Finished parts of long runs, kept in a folder, from which the next run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
