"""Where results are written: a folder that is known to be writable before anything runs."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pellucid.errors import SavedFileError
from pellucid.pipeline.choice import RECORDING, Choice, quality
from pellucid.results import Attribution, Explanation, Projection, Scores

if TYPE_CHECKING:
    from pellucid.pipeline.result import PipelineResult
    from pellucid.recorder import States


def writable(folder: str | Path) -> Path:
    """Makes a folder where it is missing, and sees that files can be written to it.

    Raises:
        SavedFileError: when it cannot be written to, with the reason.
    """
    folder = Path(folder).expanduser()
    trial = folder / f".{secrets.token_hex(4)}.trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SavedFileError(f"cannot write to the folder '{folder}': {reason}; give another one with --out") from error
    return folder


def write_text(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all.

    Raises:
        SavedFileError: when it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SavedFileError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes a JSON file; numbers that JSON does not have (NaN, infinity) become null."""
    return write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n")


def write_result(folder: Path, step: str, result: Explanation) -> None:
    """Writes a step's result, without the inputs, which all steps have in common."""
    result.save(folder / f"{step}.safetensors", inputs=False)


def write_scores(folder: Path, scores: Scores, names: list[str]) -> None:
    """Writes scores as `scores.csv`, a line for each explanation, metric and example, and ranked as `scores.json`."""
    table = scores.to_dataframe()
    if len(names) == len(scores):
        table["example"] = [names[place] for place in table["example"]]
    write_text(folder / "scores.csv", table.to_csv(index=False))
    better = {row.metric: row.better for row in scores.rows}
    ranked = {
        metric: {"better": better[metric], "ranking": [rank._asdict() for rank in ranks]}
        for metric, ranks in scores.ranking().items()
    }
    write_json(folder / "scores.json", ranked)


def write_pages(
    folder: Path, states: States, maps: Iterable[str], choices: Iterable[Choice], result: PipelineResult
) -> dict[str, Path]:
    """Writes an interactive page for each map of recorded states on two axes; points lead to their explanations.

    Args:
        folder: where.
        states: the recorded states.
        maps: the steps that mapped them.
        choices: what marked points; the page can colour by the qualities that they are made of.
        result: the pipeline's.
    """
    from pellucid.recorder import save_page

    shown = {name: one for name, one in result.explanations.items() if isinstance(one, Attribution)}
    sources = {RECORDING: states, **result.results}
    colours = {
        f"{one.most} ({one.of})".replace("_", "-"): quality(sources[one.of], one.most)
        for one in choices
        if one.most is not None and one.of in sources
    }
    return {
        name: save_page(
            cast(Projection, result.results[name]),
            states,
            folder / f"{name}.html",
            title=name.replace("_", " "),
            colours=colours,
            explanations=shown,
            at=result.rows,
        )
        for name in maps
        if name in result.results and result.results[name].values.shape[-1] == 2
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
