"""What a pipeline gave: results by step, what failed, what was skipped and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.adapter import Adapter
from pellucid.engine.drive import Cost
from pellucid.results import Attribution, Explanation, Scores


@dataclass(eq=False)
class PipelineResult(Mapping[str, Explanation]):
    """The results of a pipeline's steps: a mapping from a step's name to its result.

    Attributes:
        results: by step, those that finished.
        errors: by step, why it failed.
        skipped: by step, why it was not run.
        notes: what a reader must know besides, such as an explanation that a score is missing of.
        names: what each input is called.
        rows: by step, which of the inputs it explains, where that is some of them.
        pages: by step, the path of a map's interactive page.
        unread: pictures that could not be read, with the reason.
        adapter: the model.
        predictions: (B, classes) probabilities at the inputs; None where the model is no classifier.
        cost: what all passes took together, those of evaluators included.
        seconds: the wall-clock time of the whole.
        folder: where everything was written, or None.
        report: the report's path, or None.
        interrupted: whether Ctrl-C stopped it.
    """

    adapter: Adapter
    names: list[str] = field(default_factory=list)
    results: dict[str, Explanation] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    pages: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    predictions: Tensor | None = None
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    folder: Path | None = None
    report: Path | None = None
    interrupted: bool = False

    def __getitem__(self, step: str) -> Explanation:
        try:
            return self.results[step]
        except KeyError:
            if step in self.errors:
                raise KeyError(f"step '{step}' failed: {self.errors[step]}") from self.errors[step]
            reason = f"was skipped: {self.skipped[step]}" if step in self.skipped else "does not exist"
            raise KeyError(f"step '{step}' {reason}; finished steps: {', '.join(self.results) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def ok(self) -> bool:
        """Whether every step gave its result."""
        return not (self.errors or self.skipped or self.interrupted)

    @property
    def explanations(self) -> dict[str, Explanation]:
        """The results that are no scores."""
        return {step: one for step, one in self.results.items() if not isinstance(one, Scores)}

    @property
    def scores(self) -> Scores | None:
        """The scores of all evaluator steps in one table, each under the name of its step; None without any."""
        tables = [one for one in self.results.values() if isinstance(one, Scores)]
        return Scores.merge(tables) if tables else None

    def __repr__(self) -> str:
        told = [f"{len(self.results)} finished"]
        told += [f"{len(left)} {word}" for word, left in (("failed", self.errors), ("skipped", self.skipped)) if left]
        return f"PipelineResult({', '.join(told)}: {', '.join(self.results)})"

    def to_dict(self) -> dict[str, Any]:
        """What run.json has of the results: status, certificates, provenance and cost of every step."""
        steps: dict[str, Any] = {step: _told(one) for step, one in self.results.items()}
        for step, rows in self.rows.items():
            if step in steps:
                steps[step]["inputs"] = rows
        steps |= {step: {"status": "failed", "error": _named(error)} for step, error in self.errors.items()}
        steps |= {step: {"status": "skipped", "reason": reason} for step, reason in self.skipped.items()}
        return {
            "ok": self.ok,
            "interrupted": self.interrupted,
            "inputs": self.names,
            "unread": [{"name": name, "reason": reason} for name, reason in self.unread],
            "steps": steps,
            "notes": self.notes,
            "cost": vars(self.cost).copy(),
            "seconds": self.seconds,
        }


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _told(result: Explanation) -> dict[str, Any]:
    meta = result.meta
    told: dict[str, Any] = {
        "status": "done",
        "class": type(result).__name__,
        "technique": meta.technique,
        "provider": f"{meta.provider} {meta.version}".strip(),
        "parameters": dict(meta.parameters),
        "layer": meta.layer,
        "passes": dict(meta.passes),
        "seconds": meta.seconds,
        "notes": list(meta.notes),
        "checks": [
            {
                "name": check.name,
                "value": check.value,
                "tolerance": check.tolerance,
                "verdict": check.verdict,
                "note": check.note,
            }
            for check in result.checks
        ],
    }
    if isinstance(result, Attribution) and result.target.classes is not None:
        told["classes"] = result.target.classes.tolist()
        told["class_names"] = list(result.class_names())
    return told
