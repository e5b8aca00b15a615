"""Texts, given as they are or as files with a text a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import InputError

LONGEST_NAME = 60
"""Characters of a text that serve as its name."""


def load_texts(specs: Sequence[str], base: Path = Path()) -> list[str]:
    """The texts that are named: each spec is a text, or a file "*.txt" in UTF-8 with a text on each line.

    Empty lines are left out.

    Args:
        specs: the texts and files.
        base: where relative paths start from.

    Raises:
        InputError: when there are none, or a file is missing, is not UTF-8, or has no text.
    """
    texts: list[str] = []
    for spec in specs:
        if not is_file_of_texts(spec):
            texts.append(spec)
            continue
        path = base / Path(spec).expanduser()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the texts '{path}' cannot be read: {error}; expected UTF-8, a text a line") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise InputError(f"there is no text in '{path}'; expected a text on each line")
        texts += found
    if not texts:
        raise InputError("there are no texts; expected at least one")
    return texts


def is_file_of_texts(spec: str) -> bool:
    """Whether a spec names a file of texts."""
    return spec.endswith(".txt") and "\n" not in spec


def name_of(text: str) -> str:
    """What a text is called: its beginning."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1].rstrip()}…"
