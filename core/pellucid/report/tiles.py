"""The pictures of a report: photos, overlays with the numbers behind them, figures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import InputError
from pellucid.registry import registry
from pellucid.results import Attribution, Explanation, draw, draw_tokens

CELLS = 48
"""Values under the pointer are means over at most so many cells along each side."""

MOST_IN_BAND = 6
"""Techniques side by side; more are broken into bands of about equal length."""


@dataclass(frozen=True)
class Tile:
    """One map over one photo.

    Attributes:
        picture: as a data URI.
        rows: how many rows of values there are.
        columns: how many columns of values there are.
        values: one signed byte for each cell, row by row, as base64.
        unit: what one step of the bytes is worth.
        bound: where the colours end on both sides of zero.
    """

    picture: str
    rows: int
    columns: int
    values: str
    unit: float
    bound: float


@dataclass(frozen=True)
class Column:
    """One technique's maps over all photos.

    Attributes:
        name: the result's name.
        technique: the technique's name.
        layer: the layer that was looked at, or "".
        ends: what the colours' two ends mean: evidence against and for the class, or just the sign.
        low: the least value.
        high: the greatest value.
        tiles: one for each photo.
    """

    name: str
    technique: str
    layer: str
    ends: tuple[str, str]
    low: float
    high: float
    tiles: tuple[Tile, ...]


def data_uri(data: bytes, kind: str) -> str:
    """A file as an address that contains it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture(pixels: draw.Bytes) -> str:
    """Pixels (H, W, 3) as a JPEG in a data URI, without colour subsampling so that edges of colour stay sharp."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=90, subsampling=0, optimize=True)
    return data_uri(buffer.getvalue(), "jpeg")


def column(name: str, result: Explanation, photos: draw.Bytes) -> Column | None:
    """A technique's overlays; None where the result is no map over these photos."""
    if not isinstance(result, Attribution) or len(result) != len(photos):
        return None
    try:
        maps = result.heatmap((photos.shape[1], photos.shape[2])).detach().cpu().double()
    except InputError:
        return None
    finite = maps[maps.isfinite()]
    return Column(
        name=name,
        technique=result.meta.technique,
        layer=result.meta.layer or "",
        ends=_ends(result.meta.technique),
        low=float(finite.min()) if len(finite) else 0.0,
        high=float(finite.max()) if len(finite) else 0.0,
        tiles=tuple(_tile(photo, heatmap) for photo, heatmap in zip(photos, maps, strict=True)),
    )


def _ends(technique: str) -> tuple[str, str]:
    known = registry().records.get(technique)
    return ("negative", "positive") if known is not None and known.explains != "decision" else ("against", "for")


def columns_and_others(
    results: Mapping[str, Explanation], photos: draw.Bytes | None
) -> tuple[list[Column], dict[str, str]]:
    """The results that are maps over the photos, and each of the others as HTML: coloured tokens, or a figure."""
    columns: list[Column] = []
    others: dict[str, str] = {}
    for name, result in results.items():
        made = None if photos is None else column(name, result, photos)
        if made is not None:
            columns.append(made)
        else:
            others[name] = _alone(name, result)
    return columns, others


def _alone(name: str, result: Explanation) -> str:
    if isinstance(result, Attribution) and result.tokens is not None:
        return draw_tokens.markup(result)
    picture = data_uri(draw.png(result.plot(), 160), "png")
    return f'<img src="{picture}" alt="{html.escape(name.replace("_", " "))}">'


def bands(columns: Sequence[Column]) -> list[list[Column]]:
    """Columns in rows of about equal length that fit a page."""
    count = -(-len(columns) // MOST_IN_BAND)
    size = -(-len(columns) // count) if count else 0
    return [list(columns[start : start + size]) for start in range(0, len(columns), max(1, size))]


def gradient(stops: int = 33) -> str:
    """The colours of the overlays, over a light photo, as stops of a CSS gradient from the least to the greatest."""
    levels = np.linspace(-1, 1, stops)[None]
    colours = draw.blend(np.full((1, stops, 3), 242, np.uint8), levels, 1.0)[0]
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist())


def _tile(photo: draw.Bytes, heatmap: Tensor) -> Tile:
    bound = draw.limit(heatmap)
    height, width = heatmap.shape
    rows, columns = min(CELLS, height), min(CELLS, width)
    cells = F.adaptive_avg_pool2d(heatmap.nan_to_num(0.0, 0.0, 0.0)[None, None], (rows, columns))[0, 0]
    unit = float(cells.abs().max()) / 127 or 1.0
    coded = (cells / unit).round().to(torch.int8).numpy().tobytes()
    return Tile(
        picture=picture(draw.blend(photo, heatmap.numpy(), bound)),
        rows=rows,
        columns=columns,
        values=base64.b64encode(coded).decode("ascii"),
        unit=unit,
        bound=bound,
    )
