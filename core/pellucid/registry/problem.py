"""What is wrong with a plugin, as a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one plugin; it never keeps another plugin from working.

    Attributes:
        plugin: the entry point, or the name under which the plugin was registered.
        distribution: the distribution that holds it, "" for a plugin registered by program.
        what: what happened, such as "could not be imported".
        why: the cause, often an exception's type and message.
        hint: what to do, "" where nothing general can be said.
        loses: whether techniques or adapters of the plugin may be missing for it.
    """

    plugin: str
    distribution: str
    what: str
    why: str
    hint: str = ""
    loses: bool = False

    @property
    def headline(self) -> str:
        """Who and what, without the cause."""
        origin = f" ({self.distribution})" if self.distribution else ""
        return f"{self.plugin}{origin} {self.what}"

    def __str__(self) -> str:
        why = self.why if self.why.endswith((".", "?")) else f"{self.why}."
        return f"{self.headline}: {why} {self.hint}".rstrip()

    def to_dict(self) -> dict[str, str | bool]:
        """The record as JSON-able values."""
        return asdict(self)


def told(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
