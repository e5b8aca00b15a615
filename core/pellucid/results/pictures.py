"""How each kind of result is drawn, where that is more than a few lines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.errors import InputError, ParameterError, nearest
from pellucid.protocol.leaves import Leaves
from pellucid.results import beeswarm, draw, draw_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.results.attribution import Attribution, Style

STYLES = ("overlay", "heatmap", "side", "bars", "beeswarm", "tokens")
SHOWN = 8


def chosen(examples: Iterable[int] | None, count: int) -> list[int]:
    """The examples that are drawn: those that are named, or the first eight."""
    if examples is None:
        return list(range(min(count, SHOWN)))
    picked = [int(place) for place in examples]
    if wrong := [place for place in picked if not -count <= place < count]:
        raise InputError(f"example {wrong[0]} does not exist; there are {count}")
    return [place % count for place in picked]


def attribution(
    result: Attribution,
    examples: Iterable[int] | None,
    style: Style | None,
    name: str | None,
    bound: float | None,
    columns: int,
) -> draw.Picture:
    """Maps over photos, coloured tokens, bars or a beeswarm."""
    if style is not None and style not in STYLES:
        raise ParameterError(f"there is no style '{style}'; expected one of {STYLES}.{nearest(style, STYLES)}")
    shown = chosen(examples, len(result))
    if style == "tokens" or (style is None and result.tokens is not None):
        return draw_tokens.tokens(result, shown, bound)
    if isinstance(result.values, Leaves) and name is None:
        name = next((key for key, leaf in result.values.items() if leaf.dim() == 4), next(iter(result.values)))
    if style == "beeswarm" or (style is None and examples is None and _long(result, name)):
        return beeswarm.beeswarm(result, list(range(len(result))) if examples is None else shown, name)
    titles = [draw.short(draw.called(title)) for title in result.class_names()]
    if style == "bars":
        return _bars(result, shown, titles, name)
    try:
        maps = result[shown].heatmap(name=name).cpu() if shown else None
    except InputError:
        values = result._of(name)
        return _bars(result, shown, titles, name) if values.dim() == 2 else _strips(values, shown, titles)
    if maps is None:
        return draw.grid(1, 1)[0]
    found = draw.photos_of(result.inputs, result.meta.mean, result.meta.std, name)
    style = "heatmap" if found is None else style or "overlay"
    across = 2 if style == "side" else 1
    columns = max(1, min(columns // across or 1, len(shown)))
    rows = math.ceil(len(shown) / columns)
    aspect = min(2.0, max(0.5, maps.shape[-2] / maps.shape[-1]))
    picture, axes = draw.grid(rows, columns * across, 2.9, 2.65 * aspect + 0.25)
    for place, (example, heatmap) in enumerate(zip(shown, maps, strict=True)):
        here = axes[place // columns][place % columns * across : (place % columns + 1) * across]
        photo = None if found is None else found[example]
        _one(picture, here, photo, heatmap, titles[example], style, bound)
    for empty in range(len(shown), rows * columns):
        for ax in axes[empty // columns][empty % columns * across : (empty % columns + 1) * across]:
            ax.set_axis_off()
    note = draw.SCALE if bound is None else "attribution"
    picture.supxlabel(
        f"{draw.titled(result.meta.technique)}  ·  {note}" if result.meta.technique else note,
        fontsize=8,
        color=draw.FAINT,
    )
    return picture


def _one(
    picture: draw.Picture,
    axes: list[Axes],
    photo: draw.Bytes | None,
    heatmap: Tensor,
    title: str,
    style: Style,
    bound: float | None,
) -> None:
    if style == "side" and photo is not None:
        axes[0].imshow(photo, interpolation="lanczos")
        draw.plain(axes[0], title)
        title = ""
    if style == "overlay" and photo is not None:
        bound = draw.draw_overlay(axes[-1], photo, heatmap, bound=bound, title=title)
    else:
        bound = draw.draw_heatmap(axes[-1], heatmap, bound=bound, title=title)
    draw.colour_bar(picture, [axes[-1]], bound, "")


def _long(result: Attribution, name: str | None) -> bool:
    """Whether a result is a table of features with more examples than are drawn one by one."""
    return result.over in ("input", "features") and len(result) > SHOWN and result._of(name).dim() == 2


def _bars(result: Attribution, shown: list[int], titles: list[str], name: str | None) -> draw.Picture:
    values = result._of(name).detach().cpu().float()
    if values.dim() != 2:
        raise InputError(f"values of shape {tuple(values.shape)} are no table; bars are for values (B, n)")
    names = result.part_names() if isinstance(result.values, Tensor) else tuple(map(str, range(values.shape[1])))

    def one(ax: Axes, place: int) -> None:
        if result.tokens is not None:  # each text has tokens of its own; the same one may stand in several places
            tokens = result.tokens[shown[place]]
            draw.bars(ax, values[shown[place], : len(tokens)], [f"{token} · {k}" for k, token in enumerate(tokens)])
        else:
            draw.bars(ax, values[shown[place]], names)
        draw.tidy(ax, titles[shown[place]] or f"example {shown[place]}", x="attribution")

    return draw.panels(len(shown), one)


def _strips(values: Tensor, shown: list[int], titles: list[str]) -> draw.Picture:
    """Sequences (B, C, T), or anything else, as a picture of each example with its first axis downwards."""

    def one(ax: Axes, place: int) -> None:
        strip = values[shown[place]].detach().cpu()
        strip = strip.reshape(strip.shape[0], -1) if strip.dim() > 1 else strip.reshape(1, -1)
        bound = draw.draw_heatmap(ax, strip, title=titles[shown[place]] or f"example {shown[place]}")
        ax.set_aspect("auto")
        if ax.figure is not None:
            draw.colour_bar(ax.figure, [ax], bound, "")  # type: ignore[arg-type]

    return draw.panels(len(shown), one)
