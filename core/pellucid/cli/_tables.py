"""Tables on a terminal, and what is told beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import (
    InputError,
    Interrupted,
    LayerError,
    ParameterError,
    TargetError,
    Unavailable,
    Unsuitable,
)
from pellucid.pipeline.result import PipelineResult
from pellucid.results import Scores

if TYPE_CHECKING:
    from rich.table import Table

MOST_INPUTS = 12
"""So many inputs' predictions are printed."""
MISTAKES = (InputError, LayerError, ParameterError, TargetError, Unavailable, Unsuitable)
"""What a step fails with where it asks for something that there is not."""


def summary(result: PipelineResult) -> dict[str, Any]:
    """What a pipeline gave, of JSON's types: what `run.json` has, and the ranking of the scores."""
    told = result.to_dict()
    told["model"] = result.adapter.name
    told["predictions"] = predictions(result)
    scores = result.scores
    told["scores"] = [] if scores is None else _ranked(scores)
    told["out"] = None if result.folder is None else str(result.folder)
    told["report"] = None if result.report is None else str(result.report)
    return told


def predictions(result: PipelineResult) -> list[dict[str, Any]]:
    """The first class of each input, with its probability."""
    if result.predictions is None:
        return []
    categories = result.adapter.categories
    best = result.predictions.max(dim=1)
    return [
        {
            "input": name,
            "class": int(index),
            "name": categories[int(index)] if categories and int(index) < len(categories) else f"class {int(index)}",
            "probability": float(probability),
        }
        for name, index, probability in zip(result.names, best.indices, best.values, strict=True)
    ]


def _ranked(scores: Scores) -> list[dict[str, Any]]:
    better = {row.metric: row.better for row in scores.rows}
    return [
        {"metric": metric, "better": better[metric], **rank._asdict()}
        for metric, ranks in scores.ranking().items()
        for rank in ranks
    ]


def show(result: PipelineResult) -> None:
    """Prints predictions and a table of steps: their scores, passes, seconds and checks; controls stand apart."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    guesses = predictions(result)
    for guess in guesses[:MOST_INPUTS]:
        console.print(f"{guess['input']}: {guess['name']} ({guess['probability']:.0%})", markup=False)
    if len(guesses) > MOST_INPUTS:
        console.print(f"... and {len(guesses) - MOST_INPUTS} inputs more")
    if result.results:
        console.print(_table(result))


def tell_problems(result: PipelineResult) -> None:
    """Says on stderr what failed, was skipped or could not be read, a line each."""
    for name, reason in result.unread:
        print(f"skipped picture {name}: {reason}", file=sys.stderr)
    for name, error in result.errors.items():
        print(f"step '{name}' failed: {' '.join(str(error).split())}", file=sys.stderr)
    for name, reason in result.skipped.items():
        print(f"step '{name}' was skipped: {reason}", file=sys.stderr)
    for note in result.notes:
        print(note, file=sys.stderr)


@contextmanager
def telling_what_finished(folder: Path) -> Iterator[None]:
    """At Ctrl-C, says which steps had finished and where their results are.

    Raises:
        KeyboardInterrupt: with that.
    """
    try:
        yield
    except Interrupted as stop:
        done = ", ".join(stop.results)
        raise KeyboardInterrupt(f"{done} had finished; see '{folder}'" if done else "nothing had finished") from stop


def exit_code(result: PipelineResult) -> int:
    """0 where every step gave its result; 2 where only a user's mistakes failed, such as a layer's name; else 1."""
    if result.ok:
        return 0
    return 2 if result.errors and all(isinstance(error, MISTAKES) for error in result.errors.values()) else 1


def _table(result: PipelineResult) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    scores = result.scores
    metrics = () if scores is None else scores.metrics
    better = {} if scores is None else {row.metric: row.better for row in scores.rows}
    ranking = {} if scores is None else scores.ranking()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("technique", no_wrap=True)
    for metric in metrics:
        table.add_column(f"{metric} {'↑' if better[metric] == 'higher' else '↓'}", justify="right")
    for head in ("forward", "backward", "seconds"):
        table.add_column(head, justify="right")
    table.add_column("checks")
    means = {metric: {rank.explanation: rank.mean for rank in ranks} for metric, ranks in ranking.items()}
    best = {metric: next((r.explanation for r in ranks if not r.control), "") for metric, ranks in ranking.items()}

    def cells(name: str) -> list[str]:
        shown = []
        for metric in metrics:
            mean = means[metric].get(name)
            text = "" if mean is None else f"{mean:.3f}"
            shown.append(f"[bold]{text}[/bold]" if best[metric] == name else text)
        return shown

    order = [rank.explanation for ranks in ranking.values() for rank in ranks]
    for name in dict.fromkeys([*(name for name in order if name in result.explanations), *result.explanations]):
        one = result.explanations[name]
        passes = one.meta.passes
        table.add_row(
            name,
            *cells(name),
            f"{passes.get('forward', 0):g}",
            f"{passes.get('backward', 0):g}",
            f"{one.meta.seconds or 0:.2f}",
            one.checks.summary,
        )
    controls = dict.fromkeys(rank.explanation for ranks in ranking.values() for rank in ranks if rank.control)
    if controls:
        table.add_section()
    for name in controls:
        table.add_row(f"{name} (control)", *cells(name), "", "", "", "", style="dim")
    return table
