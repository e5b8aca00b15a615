"""Beeswarms: the attributions of many examples of a table, a line for each feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pellucid.errors import InputError
from pellucid.protocol.leaves import Leaves
from pellucid.results import draw

if TYPE_CHECKING:
    from pellucid.results.attribution import Attribution

MOST = 15
"""Features that get a line; the sum of the others gets one more."""
BINS = 80
HALF = 0.38
"""How far points may stand from the middle of their line, where lines are 1 apart."""


def beeswarm(result: Attribution, examples: Sequence[int], name: str | None = None) -> draw.Picture:
    """A line for each feature, the one with the greatest mean magnitude first, and a point for each example.

    A point lies at its attribution and has the colour of its feature's value, from the 5th to the 95th percentile.
    Where inputs were not kept, or are no table of these features, points have one colour.

    Raises:
        InputError: when the values are no table, or there are no examples.
    """
    values = result._of(name).detach().cpu().double()
    if values.dim() != 2 or not len(examples) or not values.shape[1]:
        raise InputError(
            f"values of shape {tuple(values.shape)} over {len(examples)} examples are no table; a beeswarm is for "
            "values (B, n)"
        )
    places = torch.tensor(list(examples))
    points = draw.finite(values[places].numpy())
    features = _features(result, name, values, places)
    names = result.part_names() if isinstance(result.values, Tensor) else tuple(map(str, range(values.shape[1])))
    strength = np.nanmean(np.where(np.isfinite(points), np.abs(points), 0.0), axis=0)
    order = np.argsort(-strength, kind="stable")
    shown, rest = order[:MOST], order[MOST:]
    rows = [points[:, place] for place in shown] + ([np.nansum(points[:, rest], axis=1)] if len(rest) else [])
    labels = [draw.short(names[place], 34) for place in shown]
    labels += [f"{len(rest)} others, summed"] if len(rest) else []

    picture, ((ax,),) = draw.grid(1, 1, 6.4, 0.34 * len(rows) + 1.0)
    ax.axvline(0, color="#8c959f", linewidth=0.8, zorder=1)
    span = _span(rows)
    size = float(np.clip(900 / len(points), 5, 22))
    for line, row in enumerate(rows):
        kept = np.isfinite(row)
        own = features[:, shown[line]] if features is not None and line < len(shown) else None
        ax.axhline(line, color="#eaeef2", linewidth=0.8, zorder=0)
        ax.scatter(
            row[kept],
            line + spread(row[kept], span),
            s=size,
            c=draw.SERIES[0]
            if own is None and features is None
            else draw.CONTROL
            if own is None
            else _level(own)[kept],
            cmap=None if own is None else colours(),
            vmin=None if own is None else 0,
            vmax=None if own is None else 1,
            linewidths=0,
            alpha=0.9,
            zorder=2,
        )
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), labels)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    draw.tidy(ax, draw.titled(result.meta.technique), x=_about(result, places))
    ax.tick_params(axis="y", length=0, labelcolor=draw.INK)
    ax.spines["left"].set_visible(False)
    if features is not None:
        bar = picture.colorbar(ScalarMappable(Normalize(0, 1), colours()), ax=ax, fraction=0.03, pad=0.02, aspect=34)
        bar.set_ticks([0, 1], labels=["low", "high"])
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=draw.FAINT, length=0)
        bar.set_label("value of the feature", fontsize=8, color=draw.FAINT, labelpad=-8)
    return picture


def colours() -> Colormap:
    """Low to high: a map of lightness and hue apart from the red and blue that mean a sign."""
    return LinearSegmentedColormap.from_list("pellucid.values", ["#1d3f72", "#2a8f8f", "#7fbf5f", "#f0b429"])


def spread(row: NDArray[Any], span: tuple[float, float]) -> NDArray[Any]:
    """How far each point stands from the middle of its line, so that points at the same place lie side by side.

    Points are counted in bins along the line, and those of a bin stand in turn above and below the middle. It is not
    random, so that a figure is the same every time.
    """
    width = (span[1] - span[0]) or 1.0
    bins = np.clip(((row - span[0]) / width * BINS).astype(int), 0, BINS)
    offsets = np.zeros(len(row))
    ranks = np.zeros(len(row))
    for one in np.unique(bins):
        members = np.flatnonzero(bins == one)
        ranks[members] = np.arange(len(members))
    turn = np.ceil(ranks / 2) * np.where(ranks % 2 == 1, 1, -1)
    most = float(np.abs(turn).max(initial=0.0))
    # Up to seven fit on either side at their natural distance; more are pressed together.
    return offsets + turn * (HALF / max(7.0, most))


def _span(rows: Sequence[NDArray[Any]]) -> tuple[float, float]:
    every = np.concatenate([row[np.isfinite(row)] for row in rows])
    return (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)


def _features(result: Attribution, name: str | None, values: Tensor, places: Tensor) -> NDArray[Any] | None:
    inputs: Any = result.inputs
    if isinstance(inputs, Leaves):
        inputs = inputs.get(name or "")
    if not isinstance(inputs, Tensor) or inputs.shape != values.shape:
        return None
    features: NDArray[Any] = inputs.detach().cpu()[places].double().numpy()
    return features


def _level(feature: NDArray[Any]) -> NDArray[Any]:
    """A feature's values between 0 and 1: its 5th and 95th percentiles, or all of them where these are equal."""
    low, high = np.nanpercentile(feature, [5, 95])
    if high <= low:
        low, high = np.nanmin(feature), np.nanmax(feature)
    level: NDArray[Any] = np.clip((feature - low) / ((high - low) or 1.0), 0, 1) if high > low else feature * 0 + 0.5
    return level


def _about(result: Attribution, places: Tensor) -> str:
    titles = {result.class_names()[place] for place in places.tolist()} - {""}
    return f"attribution to {draw.short(draw.called(titles.pop()), 40)}" if len(titles) == 1 else "attribution"
