"""Charts of scores and projections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator

from pellucid.errors import InputError, ParameterError, nearest
from pellucid.results import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from pellucid.results.projection import Projection
    from pellucid.results.scores import Scores

RINGS = ("#e8590c", "#087f5b", "#862e9c", draw.INK)
"""The colours of marks."""

KINDS = ("auto", "bars", "curves")
NOTE = "lines on bars and bands: two standard errors over examples   ·   grey: controls, dashed: the best of them"


def scores(result: Scores, metrics: Iterable[str] | None, kind: str) -> draw.Picture:
    """Bars and curves, a panel for each metric."""
    if kind not in KINDS:
        raise ParameterError(f"there is no kind of plot '{kind}'; expected one of {KINDS}.{nearest(kind, KINDS)}")
    names = list(result.metrics if metrics is None else metrics)
    for name in names:
        if name not in result.metrics:
            raise InputError(f"there are no scores by '{name}'; expected one of {result.metrics}")
    curved = result.curves
    charts = [(name, False) for name in names if kind != "curves"]
    charts += [(name, True) for name in names if kind != "bars" and name in curved]
    if not charts:
        raise InputError(f"{', '.join(names) or 'these scores'} have no curves; use kind='bars'")
    colours = _colours(result)
    height = max(2.4, 0.26 * len(result.explanations) + 1.1)

    def one(ax: Axes, place: int) -> None:
        name, is_curve = charts[place]
        (_curve if is_curve else _bar)(ax, result, name, colours)

    picture = draw.panels(len(charts), one, width=4.4, height=height)
    picture.supxlabel(NOTE, fontsize=8, color=draw.FAINT)
    return picture


def _colours(result: Scores) -> dict[str, str]:
    controls = {row.explanation for row in result.rows if row.control}
    real = [name for name in result.explanations if name not in controls]
    return {name: draw.SERIES[place % len(draw.SERIES)] for place, name in enumerate(real)} | dict.fromkeys(
        controls, draw.CONTROL
    )


def _bar(ax: Axes, result: Scores, metric: str, colours: dict[str, str]) -> None:
    ranks = result.ranking()[metric]
    better = next(row.better for row in result.rows if row.metric == metric)
    heights = range(len(ranks) - 1, -1, -1)
    for place, rank in zip(heights, ranks, strict=True):
        error = 2 * rank.standard_error if np.isfinite(rank.standard_error) else None
        ax.barh(
            place,
            rank.mean if np.isfinite(rank.mean) else 0.0,
            xerr=error,
            color=colours[rank.explanation],
            height=0.7,
            hatch="////" if rank.control else None,
            edgecolor="white",
            linewidth=0.5,
            error_kw={"ecolor": draw.INK, "elinewidth": 0.9, "alpha": 0.6},
        )
    controls = [rank.mean for rank in ranks if rank.control and np.isfinite(rank.mean)]
    if controls and len(controls) < len(ranks):
        best = max(controls) if better == "higher" else min(controls)
        ax.axvline(best, color=draw.FAINT, linewidth=1, linestyle=(0, (4, 3)))
    ax.set_yticks(list(heights), [draw.short(rank.explanation) for rank in ranks])
    ax.axvline(0, color="#d0d7de", linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    arrow = "→" if better == "higher" else "←"
    draw.tidy(ax, draw.literal(metric), x=f"{better} is better {arrow}")
    for label, rank in zip(ax.get_yticklabels(), ranks, strict=True):
        label.set_color(draw.FAINT if rank.control else draw.INK)


def _curve(ax: Axes, result: Scores, metric: str, colours: dict[str, str]) -> None:
    curves = result.curves[metric]
    x = curves.x.detach().cpu().double().numpy()
    controls = {row.explanation for row in result.rows if row.control}
    styles = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
    for place, name in enumerate(sorted(curves.mean, key=lambda name: (name in controls,))):
        mean = draw.finite(curves.mean[name].detach().cpu().numpy())
        error = np.nan_to_num(draw.finite(curves.standard_error[name].detach().cpu().numpy()))
        control = name in controls
        ax.plot(
            x,
            mean,
            color=colours[name],
            linewidth=1.2 if control else 1.8,
            linestyle=styles[place % len(styles)] if control else "-",
            label=draw.short(name),
            zorder=2 if control else 3,
        )
        ax.fill_between(x, mean - 2 * error, mean + 2 * error, color=colours[name], alpha=0.12, linewidth=0)
    draw.tidy(ax, draw.literal(f"{metric}: mean curve"), x="share", y="score")
    ax.legend(
        frameon=False, fontsize=8, labelcolor=draw.INK, handlelength=1.8, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def projection(result: Projection, axes: tuple[int, int], annotate: bool | None) -> draw.Picture:
    """A scatter plot, or paths."""
    d = result.values.shape[-1]
    points = result.values.detach().cpu().double().numpy()
    if d == 1:
        order = np.broadcast_to(np.arange(len(result), dtype=float)[:, None], points.shape)
        points, names, axes = np.concatenate([points, order], axis=-1), (*result.axis_names(), "point"), (0, 1)
    else:
        names = result.axis_names()
        if wrong := [axis for axis in axes if not -d <= axis < d]:
            raise InputError(f"axis {wrong[0]} does not exist; there are {d}, from 0")
    points = draw.finite(points[..., list(axes)])
    picture, ((ax,),) = draw.grid(1, 1, 5.4, 4.6)
    members_of, colours = groups(result)
    if result.moves:
        crowd = len(result) > 60  # their paths are a shade, in which single ones are not told apart
        for place in range(len(result)):
            path = points[:, place]
            pieces = np.stack([path[:-1], path[1:]], axis=1)
            fading = [to_rgba(colours[place], a) for a in np.linspace(0.15, 0.85, len(pieces)) * (0.3 if crowd else 1)]
            width = 0.6 if crowd else 1.3
            ax.add_collection(LineCollection(list(pieces), colors=fading, linewidths=width, zorder=2))
    last = _last(points) if result.moves else points
    finite = np.isfinite(last).all(axis=-1)
    many = len(result) > 500
    for name, members in members_of.items():
        kept = [place for place in members if finite[place]]
        ax.scatter(
            last[kept, 0],
            last[kept, 1],
            s=9 if many else 30,
            c=[colours[place] for place in kept],
            alpha=0.65 if many else 0.9,
            edgecolors="white",
            linewidths=0.1 if many else 0.6,
            label=name,
            zorder=3,
        )
    for mark in dict.fromkeys(filter(None, result.marks or ())):
        kept = [point for point, own in enumerate(result.marks or ()) if own == mark and finite[point]]
        ax.scatter(
            last[kept, 0],
            last[kept, 1],
            s=90,
            facecolors="none",
            edgecolors=ring(result, mark),
            linewidths=1.6,
            label=draw.short(draw.called(mark)),
            zorder=4,
        )
    told = len(members_of) > 1 and result.labels is None  # by the legend
    if result.names is not None and (len(result) <= 25 and not told if annotate is None else annotate):
        for place, name in enumerate(result.names):
            if finite[place]:
                ax.annotate(draw.short(name, 18), last[place], (4, 4), textcoords="offset points", fontsize=8)
    ax.autoscale_view()
    if d > 1:
        ax.set_aspect("equal", adjustable="datalim")
    draw.tidy(ax, draw.titled(result.meta.technique), names[axes[0]], names[axes[1]])
    if len(members_of) > 1 or any(result.marks or ()):
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.2)
    return picture


def _last(points: NDArray[Any]) -> NDArray[Any]:
    """(n, 2) where each point of (T, n, 2) is last that has a place there: a run may diverge before its end."""
    known = np.isfinite(points).all(axis=-1)
    times = len(points) - 1 - known[::-1].argmax(axis=0)
    last: NDArray[Any] = points[times, np.arange(points.shape[1])]
    return last


def groups(result: Projection) -> tuple[dict[str, list[int]], list[str]]:
    """The points of each label, and the colour of each point.

    A few points that move, such as networks, are groups of their own where they have names and no labels.
    """
    if result.labels is None and result.names is not None and result.moves and len(result) <= len(draw.SERIES):
        members: dict[str, list[int]] = {}
        for place, own in enumerate(result.names):
            members.setdefault(draw.short(own), []).append(place)
        return members, [draw.SERIES[min(members[draw.short(own)])] for own in result.names]
    if result.labels is None:
        return {"": list(range(len(result)))}, [draw.SERIES[0]] * len(result)
    labels = result.labels.detach().cpu().tolist()
    kinds = sorted(set(labels))
    colours = [draw.SERIES[kinds.index(label) % len(draw.SERIES)] for label in labels]
    found: dict[str, list[int]] = {}
    for place in sorted(range(len(labels)), key=labels.__getitem__):
        label = labels[place]
        name = result.meta.category(label) if isinstance(label, int) else None
        found.setdefault(draw.short(name) if name else str(label), []).append(place)
    return found, colours


def ring(result: Projection, mark: str) -> str:
    """The colour of a mark."""
    return RINGS[list(dict.fromkeys(filter(None, result.marks or ()))).index(mark) % len(RINGS)]
