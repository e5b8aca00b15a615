"""Which entry points are installed, and by whom."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """An entry point with its provenance."""

    distribution: str
    version: str
    entry_point: importlib.metadata.EntryPoint


def find(
    group: str,
    distributions: Iterable[importlib.metadata.Distribution],
    broken: Callable[[str, Exception], None],
) -> Iterator[Found]:
    """Yields the entry points of a group, each distribution's once.

    `importlib.metadata.entry_points` would do, but it parses the metadata of everything that is installed, which takes
    most of the time of `pellucid list`, and one unreadable file keeps it from finding anything.

    Args:
        group: the section of `entry_points.txt`.
        distributions: where to look; the first of several with one name counts, as it does for imports.
        broken: told of a distribution's name and error where its metadata cannot be read.
    """
    seen: set[str] = set()
    for distribution in distributions:
        name = ""
        try:
            if f"[{group}]" not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name = distribution.metadata["Name"] or "?"
            if name.casefold() in seen:
                continue
            seen.add(name.casefold())
            version = distribution.version  # parses the metadata each time it is asked
            for entry_point in distribution.entry_points.select(group=group):
                yield Found(name, version, entry_point)
        except Exception as error:
            broken(name or "?", error)
