"""Maps through time to look at: an interactive page, and an animated picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.errors import InputError, ParameterError, SavedFileError
from pellucid.recorder.sheets import leaf, sheet

if TYPE_CHECKING:
    from pellucid.recorder.states import States
    from pellucid.results import Explanation, Projection

FEW = 10
"""So many points without labels have colours of their own where they have names, as networks do."""


def save_page(
    projection: Projection,
    states: States,
    path: str | Path,
    *,
    title: str = "Training dynamics",
    colours: Mapping[str, Tensor] = MappingProxyType({}),
    explanations: Mapping[str, Explanation] = MappingProxyType({}),
    at: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Path:
    """Writes a map through time as one HTML page that needs nothing else, and returns its path.

    A slider and a play button move through the captures; points can be coloured by label, prediction, loss, the step at
    which they were learned or how often they were forgotten, as far as the states know them; hovering shows a point's
    picture, label, prediction, history and explanations. The map's marks are rings. A click pins a point and its
    trajectory; points that have explanations have a dark rim.

    Args:
        projection: what `States.project` made, on two axes.
        states: the states that it is of.
        path: where; an existing file is replaced.
        title: the page's heading.
        colours: (n,) numbers by which points can be coloured besides, by name.
        explanations: explanations of the points, by name; of each one's example.
        at: by an explanation's name, which points it explains, where these are not all.

    Raises:
        InputError: when the map is not of these states, or not on two axes, or colours or explanations are not of its
            points.
        SavedFileError: when the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    _check(projection, states)
    environment = Environment(loader=PackageLoader("pellucid.recorder", "template"), autoescape=True)
    # Text within a script must not close it.
    data = _data(projection, states)
    for name, values in colours.items():
        if values.shape != (len(states),):
            raise InputError(f"the colour '{name}' has shape {tuple(values.shape)}; expected ({len(states)},)")
        data["colours"][name] = {"kind": "number", "values": _numbers(values)}
    data["explanations"] = [
        leaf(name, one, at.get(name, range(len(one))), len(states)) for name, one in explanations.items()
    ]
    told = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = environment.get_template("map.html.j2").render(
        title=title, data=told, notes=list(map(str, projection.checks))
    )
    path = Path(path)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SavedFileError(
            f"cannot write '{path}': {error}; expected an existing folder that can be written"
        ) from error
    return path


def save_animation(
    projection: Projection, states: States, path: str | Path, *, seconds: float = 6.0, between: int = 4
) -> Path:
    """Writes a map through time as an animated GIF, and returns its path.

    Points have the colours of their labels; those that are marked have a rim in their mark's colour.

    Args:
        projection: what `States.project` made, on two axes.
        states: the states that it is of.
        path: where; an existing file is replaced.
        seconds: how long one round takes; longer where that would be more than 50 pictures a second, which browsers
            show more slowly.
        between: how many pictures lead from one capture to the next.

    Raises:
        InputError: when the map is not of these states, or not on two axes.
        ParameterError: when the seconds or the pictures between are not positive.
        SavedFileError: when the picture cannot be written.
    """
    if not seconds > 0 or between < 1:
        raise ParameterError(f"seconds={seconds!r}, between={between!r}: expected positive ones")
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    from pellucid.results import charts

    _check(projection, states)
    places = projection.values.detach().cpu().double()
    figure = Figure(figsize=(4.9, 4.2), dpi=90, layout="constrained")
    axes = figure.subplots()
    groups, colours = charts.groups(projection)
    low, high = _limits(places)
    first = places[0].nan_to_num().numpy()
    marks = projection.marks or [""] * len(projection)
    rims = [charts.ring(projection, mark) if mark else colour for mark, colour in zip(marks, colours, strict=True)]
    widths = [1.8 if mark else 0.0 for mark in marks]
    dots = axes.scatter(first[:, 0], first[:, 1], s=20, c=colours, edgecolors=rims, linewidths=widths)
    if len(groups) > 1:
        for name, members in groups.items():
            axes.scatter([], [], s=20, c=colours[members[0]], label=name)
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], aspect="equal")
    stops = torch.linspace(0, len(places) - 1, (len(places) - 1) * between + 1).tolist()

    def show(stop: float) -> list[Any]:
        before, share = int(stop), stop - int(stop)
        after = min(before + 1, len(places) - 1)
        frame = places[before] if share == 0 else (1 - share) * places[before] + share * places[after]
        dots.set_offsets(frame.numpy())
        axes.set_title(f"step {int(states.steps[before])}", fontsize=10)
        return [dots]

    path = Path(path)
    try:
        animation = FuncAnimation(figure, show, frames=stops)
        animation.save(path, writer=PillowWriter(fps=min(max(1, round(len(stops) / seconds)), 50)))
    except (OSError, ValueError) as error:  # the latter of a suffix that is none of a picture's
        raise SavedFileError(
            f"cannot write '{path}': {error}; expected a name that ends in .gif in an existing folder that can be "
            "written"
        ) from error
    return path


def _check(projection: Projection, states: States) -> None:
    if projection.values.shape != (*states.values.shape[:2], 2):
        raise InputError(
            f"the map has shape {tuple(projection.values.shape)}; expected {(*states.values.shape[:2], 2)}, a map of "
            "these states on two axes"
        )


def _limits(places: Tensor) -> tuple[list[float], list[float]]:
    """The least square that holds all finite places, with a margin: its lower and its upper corner."""
    flat = places.flatten(0, 1)
    flat = flat[flat.isfinite().all(dim=1)]
    low, high = (flat.amin(dim=0), flat.amax(dim=0)) if len(flat) else (torch.zeros(2), torch.ones(2))
    middle, half = (low + high) / 2, 0.54 * max(float((high - low).max()), 1e-9)
    return (middle - half).tolist(), (middle + half).tolist()


def _data(projection: Projection, states: States) -> dict[str, Any]:
    """All that the page shows, as JSON-able values; NaN is null."""
    low, high = _limits(projection.values.detach().cpu().double())
    histories: dict[str, Any] = {}
    colours: dict[str, Any] = {}
    if states.labels is None and states.names is not None and len(states) <= FEW:
        colours["name"] = {"kind": "name", "values": []}
    if states.labels is not None:
        colours["label"] = {"kind": "class", "values": states.labels.tolist()}
    if states.outputs is not None:
        colours["prediction"] = {"kind": "class", "values": states.predictions.tolist()}
        histories["prediction"] = states.predictions.tolist()
        if states.labels is not None:
            histories["loss"] = _numbers(states.losses)
            colours["loss"] = {"kind": "number", "values": _numbers(states.losses)}
            colours["learned at step"] = {"kind": "number", "values": states.learned.tolist(), "logarithmic": True}
            colours["times forgotten"] = {"kind": "number", "values": states.forgotten.tolist()}
    return {
        "places": _numbers(projection.values),
        "low": low,
        "high": high,
        "steps": states.steps.tolist(),
        "labels": None if states.labels is None else states.labels.tolist(),
        "names": states.names,
        "classes": states.classes,
        "histories": histories,
        "colours": colours,
        "pictures": None if states.pictures is None else sheet(states.pictures.numpy(), 48),
        "marks": projection.marks,
    }


def _numbers(values: Tensor) -> Any:
    rounded = values.detach().cpu().double().tolist()

    def clean(part: Any) -> Any:
        if isinstance(part, list):
            return [clean(one) for one in part]
        return float(f"{part:.5g}") if math.isfinite(part) else None

    return clean(rounded)
