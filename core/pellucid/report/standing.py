"""How the techniques stand: scores beside the controls, as rows of a table and as curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pellucid.results import Curves, Rank, Scores

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 30
COLOURS = 10


@dataclass(frozen=True)
class Cell:
    """One explanation's score by one metric.

    Attributes:
        mean: over the examples.
        error: its standard error, NaN where there is none.
        start: where the bar starts, in percent of the cell's width.
        width: how long the bar is, in percent.
        best: whether it is the best of the metric, controls aside.
        beaten: whether a control is at least as good.
    """

    mean: float
    error: float
    start: float
    width: float
    best: bool
    beaten: bool


@dataclass(frozen=True)
class Line:
    """One explanation in the table of scores.

    Attributes:
        name: the explanation's.
        control: whether it knows nothing of the model.
        colour: the number of its colour.
        again: whether another explanation has this colour already, so that it is drawn dotted.
        cells: its scores by the metrics in their order, None where it has none.
    """

    name: str
    control: bool
    colour: int
    again: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Metric:
    """One column of the table of scores.

    Attributes:
        name: the metric's.
        better: which scores are good.
        bar: where the best control stands, in percent of the cell's width; None without controls.
        best: the best technique.
        control: the best control, or None.
        beating: how many techniques are better than every control.
    """

    name: str
    better: Literal["higher", "lower"]
    bar: float | None
    best: Rank | None
    control: Rank | None
    beating: int


@dataclass(frozen=True)
class Standing:
    """The table: metrics and lines, controls last."""

    metrics: tuple[Metric, ...]
    lines: tuple[Line, ...]
    examples: int

    @property
    def techniques(self) -> list[Line]:
        """The lines of explanations."""
        return [line for line in self.lines if not line.control]

    @property
    def controls(self) -> list[Line]:
        """The lines of controls."""
        return [line for line in self.lines if line.control]


def standing(scores: Scores) -> Standing:
    """Makes the table of scores, ordered by the first metric."""
    ranking = scores.ranking()
    better = {row.metric: row.better for row in scores.rows}
    cells: dict[str, dict[str, Cell]] = {}
    metrics = []
    for name, ranks in ranking.items():
        metric, by_name = _column(name, better[name], ranks)
        metrics.append(metric)
        cells[name] = by_name
    # A later metric may have explanations that the first one lacks.
    order = dict.fromkeys(rank.explanation for ranks in ranking.values() for rank in ranks)
    control = {row.explanation: row.control for row in scores.rows}
    places = {name: place for place, name in enumerate(n for n in scores.explanations if not control[n])}
    lines = [
        Line(
            name,
            control[name],
            places.get(name, 0) % COLOURS,
            places.get(name, 0) >= COLOURS,
            tuple(cells[metric].get(name) for metric in ranking),
        )
        for name in order
    ]
    return Standing(tuple(metrics), tuple(sorted(lines, key=lambda line: line.control)), len(scores))


def _column(name: str, better: Literal["higher", "lower"], ranks: tuple[Rank, ...]) -> tuple[Metric, dict[str, Cell]]:
    known = [rank for rank in ranks if not math.isnan(rank.mean)]
    best = next((rank for rank in known if not rank.control), None)
    control = next((rank for rank in known if rank.control), None)
    low = min([0.0, *(rank.mean for rank in known)])
    high = max([0.0, *(rank.mean for rank in known)])
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    def ahead(rank: Rank) -> bool:
        if control is None:
            return True
        return rank.mean > control.mean if better == "higher" else rank.mean < control.mean

    cells = {
        rank.explanation: Cell(
            mean=rank.mean,
            error=rank.standard_error,
            start=min(place(0.0), place(rank.mean)) if rank in known else 0.0,
            width=abs(place(rank.mean) - place(0.0)) if rank in known else 0.0,
            best=rank is best,
            beaten=not rank.control and not ahead(rank),
        )
        for rank in ranks
    }
    metric = Metric(
        name=name,
        better=better,
        bar=None if control is None else place(control.mean),
        best=best,
        control=control,
        beating=sum(ahead(rank) for rank in known if not rank.control),
    )
    return metric, cells


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in the chart's units, and the number there."""

    place: float
    text: str


@dataclass(frozen=True)
class Path:
    """One explanation's curve, as the points of an SVG polyline."""

    name: str
    control: bool
    colour: int
    again: bool
    points: str


@dataclass(frozen=True)
class Chart:
    """A metric's curves, ready to be drawn."""

    metric: str
    paths: tuple[Path, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def charts(scores: Scores, lines: tuple[Line, ...]) -> list[Chart]:
    """The curves of those metrics that have some, controls drawn first so that nothing hides behind them."""
    drawn = sorted(lines, key=lambda line: not line.control)
    return [_chart(metric, curves, drawn) for metric, curves in scores.curves.items()]


def _chart(metric: str, curves: Curves, lines: list[Line]) -> Chart:
    xs: list[float] = curves.x.double().tolist()
    known = [float(value) for mean in curves.mean.values() for value in mean if math.isfinite(value)]
    y_ticks = _round_numbers(min(known, default=0.0), max(known, default=1.0))
    x_ticks = _round_numbers(min(xs), max(xs))
    x_low, x_span = float(min(xs)), float(max(xs) - min(xs)) or 1.0
    y_low, y_span = min(y_ticks), (max(y_ticks) - min(y_ticks)) or 1.0

    def across(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - x_low) / x_span, 1)

    def down(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_low) / y_span, 1)

    def points(mean: Tensor) -> str:
        pairs = zip(xs, mean.tolist(), strict=True)
        return " ".join(f"{across(x)},{down(y)}" for x, y in pairs if math.isfinite(y))

    return Chart(
        metric,
        tuple(
            Path(line.name, line.control, line.colour, line.again, points(curves.mean[line.name]))
            for line in lines
            if line.name in curves.mean
        ),
        tuple(Tick(across(value), f"{value:g}") for value in x_ticks if x_low <= value <= max(xs)),
        tuple(Tick(down(value), f"{value:g}") for value in y_ticks),
    )


def _round_numbers(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers at even steps that cover a range."""
    raw = (high - low) / count if high > low else 1.0
    size = math.pow(10.0, math.floor(math.log10(raw)))
    step = next((size * factor for factor in (1, 2, 2.5, 5) if size * factor >= raw * 0.999), size * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]
