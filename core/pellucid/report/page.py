"""The page: what it says, and the template that says it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pellucid.adapter import Adapter
from pellucid.engine.drive import Cost
from pellucid.errors import SavedFileError
from pellucid.registry.lookup import title as title_of
from pellucid.report.standing import Standing, charts, standing
from pellucid.report.tiles import bands, columns_and_others, gradient, picture
from pellucid.results import Explanation, Meta, Scores, draw

if TYPE_CHECKING:
    from jinja2 import Environment

TOP_CLASSES = 5


def write_report(
    path: str | Path,
    *,
    results: Mapping[str, Explanation],
    scores: Scores | None = None,
    photos: draw.Bytes | None = None,
    names: Sequence[str] = (),
    adapter: Adapter | None = None,
    predictions: Tensor | None = None,
    cost: Cost | None = None,
    seconds: float | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Writes one self-contained HTML page and returns its path.

    Everything is in the file: it works offline, in light and dark, and on paper. Every map has its own colour scale,
    symmetric about zero, whose end is written on it; under the pointer stand the values.

    Args:
        path: the file to write.
        results: explanations by the names under which they are shown; what is no map over the photos gets a figure.
        scores: the scores of the explanations, controls among them.
        photos: (B, H, W, 3) bytes, aligned with the maps; None takes the explained inputs, where these are pictures.
        names: what each input is called.
        adapter: the model; None takes its name and classes from the results.
        predictions: (B, classes) probabilities.
        cost: what all passes took together; None leaves the comparison with the sum of the parts out.
        seconds: the wall-clock time of the whole.
        title: the page's; by default it names the model.
        notes: what a reader must know besides, such as what failed.

    Raises:
        SavedFileError: when the file cannot be written.
    """
    first = next(iter([*results.values(), *([] if scores is None else [scores])]), None)
    meta = first.meta if first is not None else Meta()
    if photos is None and first is not None and first.inputs is not None:
        photos = draw.photos_of(first.inputs, meta.mean, meta.std)
    count = len(photos) if photos is not None else max(map(len, results.values()), default=0)
    names = list(names) if len(names) == count else [f"input {place}" for place in range(1, count + 1)]
    categories = (adapter.categories if adapter is not None else None) or meta.categories
    columns, others = columns_and_others(results, photos)
    table = None if scores is None else standing(scores)
    model = (adapter.name if adapter is not None else "") or meta.model or "a model"
    pictures = [picture(photo) for photo in photos] if photos is not None else []
    titles = Titles({name: one.meta.technique for name, one in results.items()})
    text = (
        _environment(titles)
        .get_template("report.html.j2")
        .render(
            title=title or f"What {model.partition('?')[0]} looks at",
            model=model,
            meta=meta,
            run_line=_run_line(model, count, photos is not None, results, table, seconds),
            findings=_findings(results, table, titles),
            inputs=_inputs(names, pictures, predictions, categories, results),
            bands=bands(columns),
            gradient=gradient(),
            others=others,
            table=table,
            charts=[] if scores is None or table is None else charts(scores, table.lines),
            scored=None if scores is None else scores.meta,
            results=results,
            costs=_costs(results, scores),
            cost=cost,
            alone=_alone(results, scores, count),
            count=count,
            seconds=seconds,
            notes=list(dict.fromkeys([*notes, *(note for one in results.values() for note in one.meta.notes)])),
            created=meta.created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
    )
    path = Path(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SavedFileError(f"cannot write the report '{path}': {error.strerror or error}") from error
    return path


@dataclass(frozen=True)
class Titles:
    """How results, metrics and controls are written.

    Attributes:
        techniques: of which each result is, by its name.
    """

    techniques: Mapping[str, str]

    def within(self, name: str) -> str:
        """Within a sentence."""
        return title_of(name, self.techniques.get(name, ""))

    def heading(self, name: str) -> str:
        """As a heading."""
        words = self.within(name)
        return words[:1].upper() + words[1:]


def _environment(titles: Titles) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pellucid.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "words": _words,
        "title": titles.within,
        "heading": titles.heading,
        "number": _number,
        "count": _count,
        "percent": _percent,
    }
    template = resources.files("pellucid.report") / "template"
    environment.globals |= {
        "style": (template / "report.css").read_text(encoding="utf-8"),
        "script": (template / "report.js").read_text(encoding="utf-8"),
    }
    return environment


@dataclass(frozen=True)
class Guess:
    """A class with its probability; `explained` where it is the class that the explanations are of."""

    name: str
    probability: float
    explained: bool


@dataclass(frozen=True)
class Shown:
    """One input: its photo, and the classes that the model gives it."""

    name: str
    picture: str
    explained: str
    guesses: tuple[Guess, ...]


def _inputs(
    names: Sequence[str],
    pictures: Sequence[str],
    predictions: Tensor | None,
    categories: Sequence[str] | None,
    results: Mapping[str, Explanation],
) -> list[Shown]:
    explained = next((one.target.classes for one in results.values() if one.target.classes is not None), None)
    if explained is not None and explained.shape != (len(names),):
        explained = None

    def called(index: int) -> str:
        known = categories is not None and index < len(categories)
        return categories[index] if known and categories is not None else f"class {index}"

    shown = []
    for place, name in enumerate(names):
        own = None if explained is None else int(explained[place])
        guesses: list[Guess] = []
        if predictions is not None and place < len(predictions):
            top = predictions[place].topk(min(TOP_CLASSES, predictions.shape[1])).indices.tolist()
            listed = top if own is None or own in top else [*top[:-1], own]
            guesses = [Guess(called(index), float(predictions[place, index]), index == own) for index in listed]
        shown.append(
            Shown(
                name,
                pictures[place] if place < len(pictures) else "",
                "" if own is None else called(own),
                tuple(guesses),
            )
        )
    return shown


def _run_line(
    model: str,
    count: int,
    pictorial: bool,
    results: Mapping[str, Explanation],
    table: Standing | None,
    seconds: float | None,
) -> str:
    parts = [model, _plural(count, "photo" if pictorial else "input"), _plural(len(results), "technique")]
    if table is not None:
        parts.append(_plural(len(table.metrics), "metric"))
        if table.controls:
            parts.append(_plural(len(table.controls), "control"))
    if seconds is not None:
        parts.append(f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s")
    return "  ·  ".join(parts)


def _findings(results: Mapping[str, Explanation], table: Standing | None, titles: Titles) -> list[tuple[str, str]]:
    """What the page comes to, in sentences: each a heading and what it says."""
    told = []
    for metric in table.metrics if table is not None else ():
        if metric.best is None:
            continue
        first = _number(metric.best.mean)
        said = f"{titles.heading(metric.best.explanation)} is first at {first}"
        if metric.control is not None:
            best = _number(metric.control.mean)
            how = "level with" if best == first else "ahead of" if metric.beating else "and does not beat"
            said += f", {how} the best control, {titles.within(metric.control.explanation)} ({best})"
            count = len(table.techniques) if table is not None else 0
            if count > 1:
                said += f". {metric.beating} of {count} techniques beat{'s' * (metric.beating == 1)} every control"
        said += "."
        told.append((titles.heading(metric.name), said))
    judged = [(name, check) for name, one in results.items() for check in one.checks if check.passed is not None]
    if judged:
        failed = [f"{_words(check.name)} of {titles.within(name)}" for name, check in judged if not check.passed]
        said = f"{len(judged) - len(failed)} of {len(judged)} hold" + (
            f"; not: {', '.join(failed)}." if failed else "."
        )
        told.append(("Certificates", said))
    return told


@dataclass(frozen=True)
class Spent:
    """What one technique took: passes for each example, and its share of the seconds."""

    name: str
    technique: str
    forward: float
    backward: float
    seconds: float
    share: float
    evaluation: bool = False


def _costs(results: Mapping[str, Explanation], scores: Scores | None) -> list[Spent]:
    everything: list[tuple[str, Meta, bool]] = [(name, one.meta, False) for name, one in results.items()]
    if scores is not None:
        everything.append(("all scores, controls included", scores.meta, True))
    most = max((meta.seconds or 0.0 for _, meta, _ in everything), default=0.0) or 1.0
    return [
        Spent(
            name,
            meta.technique,
            meta.passes.get("forward", 0.0),
            meta.passes.get("backward", 0.0),
            meta.seconds or 0.0,
            100 * (meta.seconds or 0.0) / most,
            evaluation,
        )
        for name, meta, evaluation in everything
    ]


def _alone(results: Mapping[str, Explanation], scores: Scores | None, count: int) -> dict[str, int]:
    """The passes that the techniques would take one at a time, over all examples."""
    metas = [one.meta for one in results.values()] + ([] if scores is None else [scores.meta])
    return {kind: round(sum(meta.passes.get(kind, 0.0) for meta in metas) * count) for kind in ("forward", "backward")}


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("monte carlo", "Monte Carlo")


def _number(value: Any, digits: int = 3) -> str:
    """Three significant digits, with a true minus sign; "–" where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 5:
        text = f"{value:.{max(0, digits - 1 - exponent)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text and exponent < digits and float(text) == int(value) else text
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def _count(value: float) -> str:
    """A count with thin spaces between thousands; one decimal where it is no whole number."""
    text = f"{value:,.0f}" if abs(value - round(value)) < 0.05 else f"{value:,.1f}"
    return text.replace(",", "\u2009")


def _percent(value: float) -> str:
    return "<0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"
