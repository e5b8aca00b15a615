"""Galleries: rows of photos for influence, exemplars, concepts and syntheses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.results import draw
from pellucid.results.pictures import chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.results.base import Explanation
    from pellucid.results.concepts import Concepts
    from pellucid.results.exemplars import Exemplars
    from pellucid.results.influence import Influence
    from pellucid.results.synthesis import Synthesis


def photo(ax: Axes, pixels: draw.Bytes | None, title: str = "", colour: str | None = None, size: float = 8.5) -> None:
    """One photo, framed in a colour; empty axes where there is none."""
    if pixels is None:
        ax.set_axis_off()
        return
    small = max(pixels.shape[:2]) < 64
    ax.imshow(pixels, interpolation="nearest" if small else "lanczos")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color(colour or "#d0d7de")
    ax.spines[:].set_linewidth(2.0 if colour else 0.8)
    ax.set_title(title, fontsize=size, color=draw.INK, pad=4)


def _photos(result: Explanation, tensor: Tensor | None) -> draw.Bytes | None:
    return None if tensor is None else draw.photos_of(tensor, result.meta.mean, result.meta.std)


def influence(result: Influence, examples: Iterable[int] | None, k: int) -> draw.Picture:
    """Each query, then what helped most (red) and what worked against most (blue)."""
    shown = chosen(examples, len(result))
    k = max(1, min(k, result.values.shape[1]))
    titles = result.class_names()
    train = result.train
    if train is None or train.dim() != 4 or not shown:
        names = [f"train {place}" for place in range(result.values.shape[1])]

        def one(ax: Axes, place: int) -> None:
            row = result.values[shown[place]].detach().cpu().float()
            draw.bars(ax, row, names, most=2 * k)
            draw.tidy(ax, draw.short(titles[shown[place]]) or f"query {shown[place]}", x="influence")

        return draw.panels(len(shown), one)
    queries = draw.photos_of(result.inputs, result.meta.mean, result.meta.std)
    picture, axes = draw.grid(len(shown), 1 + 2 * k, 1.35, 1.6)
    for row, query in zip(axes, shown, strict=True):
        photo(row[0], None if queries is None else queries[query], draw.short(titles[query]) or f"query {query}")
        for start, colour, best in (
            (1, draw.FOR, result.top(query, k)),
            (1 + k, draw.AGAINST, result.opponents(query, k)),
        ):
            pixels = _photos(result, train[best.places.to(train.device)])
            for rank, (place, value) in enumerate(zip(best.places.tolist(), best.values.tolist(), strict=True)):
                label = ""
                if result.train_labels is not None:
                    index = int(result.train_labels[place])
                    label = draw.short(result.meta.category(index) or f"class {index}", 14) + "\n"
                photo(row[start + rank], None if pixels is None else pixels[rank], f"{label}{value:+.3g}", colour)
    picture.supxlabel(
        f"the query, the {k} training examples that helped most (red), the {k} that worked against most (blue)",
        fontsize=8,
        color=draw.FAINT,
    )
    return picture


def exemplars(result: Exemplars, rows: Iterable[int] | None, k: int | None) -> draw.Picture:
    """A line of photos for each row, framed by kind."""
    shown = chosen(rows, len(result))
    names, kinds = result.row_names(), result.kinds
    columns = _shared_out(kinds, 10 if k is None else k)
    k = len(columns)
    pictured = result.crops is not None or (result.examples is not None and result.examples.dim() == 4)
    if not pictured or not shown or not k:

        def one(ax: Axes, place: int) -> None:
            row = shown[place]
            kept = [rank for rank in range(result.values.shape[1]) if int(result.indices[row, rank]) >= 0]
            labels = [f"{kinds[rank]} {int(result.indices[row, rank])}" for rank in kept]
            draw.bars(ax, result.values[row, kept].detach().cpu().float(), labels, most=max(1, k or 1))
            draw.tidy(ax, draw.short(names[row]), x="value")

        return draw.panels(len(shown), one)
    # Only what is similar to an input has an input for each row; others explain a whole data set at once.
    queries = draw.photos_of(result.inputs, result.meta.mean, result.meta.std) if set(kinds) == {"similar"} else None
    own = queries is not None and len(queries) == len(result)
    picture, axes = draw.grid(len(shown), k + own, 1.35, 1.6)
    tones = {kind: draw.SERIES[place % len(draw.SERIES)] for place, kind in enumerate(dict.fromkeys(kinds))}
    for line, row in zip(axes, shown, strict=True):
        if own and queries is not None:
            photo(line[0], queries[row], draw.short(names[row], 16) if result.names else "input")
        for column, rank in enumerate(columns):
            index = int(result.indices[row, rank])
            ax = line[column + own]
            if index < 0:
                ax.set_axis_off()
                continue
            source = result.crops[row, rank] if result.crops is not None else result.examples[index]  # type: ignore[index]
            pixels = _photos(result, source[None])
            several = len(tones) > 1
            title = f"{kinds[rank]} {index}" if several else f"{index}: {float(result.values[row, rank]):.3g}"
            photo(ax, None if pixels is None else pixels[0], title, tones[kinds[rank]] if several else None)
        if not own and result.names:
            line[0].set_ylabel(draw.short(names[row], 18), fontsize=9, color=draw.INK)
    return picture


def _shared_out(kinds: tuple[str, ...], k: int) -> list[int]:
    """The first columns of each kind, k in all: as many of each, and what one kind lacks goes to the others."""
    ranks = [kinds[:place].count(kind) for place, kind in enumerate(kinds)]
    return sorted(sorted(range(len(kinds)), key=lambda place: ranks[place])[:k])


def concepts(result: Concepts, k: int) -> draw.Picture:
    """Bars for each row; below them pictures of the concepts."""
    scores = result.values.detach().cpu().float()
    order = scores.nan_to_num(0.0).sum(dim=0).argsort(descending=True, stable=True)[: max(1, k)].tolist()
    lines = result.patches if result.patches is not None else ()
    across = max((min(6, len(patch)) for patch in lines), default=0)
    names = result.row_names()
    bars = min(len(result), 4)
    if not bars:
        return draw.panels(0, lambda ax, place: None)
    picture = draw.Picture(3.9 * bars + 1.1 * across + 0.4, max(2.6, 0.55 * len(order) + 1.0))
    spec = picture.add_gridspec(max(1, len(order)), bars + across, width_ratios=[3.4] * bars + [0.9] * across)
    for row in range(bars):
        ax = picture.add_subplot(spec[:, row])
        for height, concept in enumerate(order):
            sure = result.significant is None or bool(result.significant[row, concept])
            spread = None if result.spread is None else float(result.spread[row, concept].nan_to_num(0.0, 0.0))
            score = float(scores[row, concept])
            ax.barh(
                height,
                score if math.isfinite(score) else 0.0,
                color=draw.SERIES[0],
                alpha=1.0 if sure else 0.3,
                xerr=spread,
                error_kw={"ecolor": draw.INK, "elinewidth": 0.9},
                height=0.66,
            )
            if result.control is not None:
                level = float(result.control[row, concept])
                ax.plot([level, level], [height - 0.4, height + 0.4], color=draw.FAINT, linewidth=1.6)
        ax.set_yticks(range(len(order)), [draw.short(result.names[c]) for c in order] if row == 0 else [])
        ax.set_ylim(len(order) - 0.5, -0.5)
        pale = "" if result.significant is None else "   (pale: not significant)"
        draw.tidy(ax, draw.short(names[row]), x=f"score{pale}")
    for height, concept in enumerate(order if across else []):
        pixels = _photos(result, lines[concept])
        for place in range(across):
            patch = None if pixels is None or place >= len(pixels) else pixels[place]
            photo(picture.add_subplot(spec[height, bars + place]), patch)
    return picture


def synthesis(result: Synthesis, examples: Iterable[int] | None) -> draw.Picture:
    """The made pictures, beside what they started from, above the objective's course."""
    shown = chosen(examples, len(result))
    made = draw.photos_of(result.values, result.meta.mean, result.meta.std)
    start = draw.photos_of(result.inputs, result.meta.mean, result.meta.std) if result.compare else None
    if start is not None and len(start) != len(result):
        start = None
    names = result.row_names()
    lines = (start is not None) + 1 + (result.trace is not None)
    picture, axes = draw.grid(lines, max(1, len(shown)), 2.5, 2.6)
    for column, example in enumerate(shown):
        cells = iter(row[column] for row in axes)
        title = draw.short(names[example])
        if start is not None:
            photo(next(cells), start[example], title and f"{title}: input", size=10)
        ax = next(cells)
        if made is not None:
            photo(ax, made[example], title, size=10)
        else:
            flat = result.values[example].detach().cpu().double().reshape(-1)
            ax.plot(draw.finite(flat.numpy()), color=draw.SERIES[0], linewidth=1.2)
            draw.tidy(ax, title)
        if result.trace is not None:
            ax = next(cells)
            ax.plot(
                draw.finite(result.trace[example].detach().cpu().double().numpy()), color=draw.SERIES[0], linewidth=1.6
            )
            ax.set_box_aspect(0.7)
            draw.tidy(ax, x="step", y=draw.literal(result.objective) if column == 0 else "")
    if not shown:
        for row in axes:
            row[0].set_axis_off()
    return picture
