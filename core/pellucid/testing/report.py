"""What came of the checks of one technique."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Status: TypeAlias = Literal["pass", "fail", "skip", "known"]


class Result(NamedTuple):
    """What came of one check.

    Attributes:
        check: its sentence.
        status: "pass", "fail", "skip" where it is not for this technique, or "known" for a failure that the technique
            excuses in `known_failures`.
        detail: what was found, or why it was skipped or is excused.
    """

    check: str
    status: Status
    detail: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """What came of the checks of one technique.

    Attributes:
        technique: its name.
        results: one for each check, in the order of `docs/conformance.md`.
        seed: what the inputs and models depended on.
    """

    technique: str
    results: tuple[Result, ...]
    seed: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing failed but what the technique excuses."""
        return not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if result.status == "fail")

    def count(self, status: Status) -> int:
        """How many checks have a status."""
        return sum(result.status == status for result in self.results)

    def __repr__(self) -> str:
        words: tuple[Status, ...] = ("pass", "fail", "known", "skip")
        counts = ", ".join(f"{self.count(word)} {word}" for word in words if self.count(word))
        lines = [f"{self.technique}: {counts}"]
        for check, status, detail in self.results:
            if status in ("fail", "known"):
                lines.append(f"  {status.upper() if status == 'fail' else status:<5} {check}: {detail}")
        return "\n".join(lines)
