"""Small pictures on one sheet, as a page holds them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pellucid.results import Explanation

WIDTH = 200
"""How wide an explanation is drawn at most, in pixels; figures are twice as wide."""


def sheet(pictures: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], most: int) -> dict[str, Any]:
    """Pictures (H, W, 3) of one size on one sheet, at most so many pixels wide and high each, as a data address."""
    from PIL import Image

    height, width = pictures[0].shape[:2]
    columns = math.ceil(math.sqrt(len(pictures)))
    scale = min(1.0, most / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    whole = Image.new("RGB", (columns * size[0], math.ceil(len(pictures) / columns) * size[1]))
    for place, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize(size)
        whole.paste(small, (place % columns * size[0], place // columns * size[1]))
    with io.BytesIO() as stream:
        whole.save(stream, "PNG", optimize=True)
        told = base64.b64encode(stream.getvalue()).decode()
    return {"address": f"data:image/png;base64,{told}", "columns": columns, "width": size[0], "height": size[1]}


def leaf(name: str, explanation: Explanation, points: Sequence[int], count: int) -> dict[str, Any]:
    """One technique's explanations of some points, as a page holds them: overlays over photos, else figures.

    Args:
        name: what it is called.
        explanation: one for each of the points.
        points: which points these are.
        count: how many there are.

    Raises:
        InputError: when they are not of these points.
    """
    points = list(points)
    if len(explanation) != len(points) or not all(0 <= point < count for point in points):
        raise InputError(f"'{name}' explains {len(explanation)} examples at {len(points)} points of {count}; see `at`")
    pictures = _overlays(explanation)
    found = explanation.target.classes
    return {
        "name": name,
        "places": {point: place for place, point in enumerate(points)},
        "classes": None if found is None or found.shape != (len(points),) else found.tolist(),
        "sheet": sheet(pictures, WIDTH) if pictures is not None else sheet(_figures(explanation), 2 * WIDTH),
    }


def _overlays(explanation: Explanation) -> list[NDArray[np.uint8]] | None:
    """Maps over photos, where the explanation is of photos."""
    from pellucid.results import Attribution, draw

    if not isinstance(explanation, Attribution):
        return None
    photos = draw.photos_of(explanation.inputs, explanation.meta.mean, explanation.meta.std)
    if photos is None or len(photos) != len(explanation):
        return None
    try:
        maps = explanation.heatmap((photos.shape[1], photos.shape[2])).detach().cpu().double()
    except InputError:  # it is of no positions, such as one of features
        return None
    return [
        draw.blend(photo, heatmap.numpy(), draw.limit(heatmap)) for photo, heatmap in zip(photos, maps, strict=True)
    ]


def _figures(explanation: Explanation) -> list[NDArray[np.uint8]]:
    from PIL import Image

    from pellucid.results import draw

    drawn = []
    for place in range(len(explanation)):
        with io.BytesIO(draw.png(explanation[place].plot(), 90)) as stream, Image.open(stream) as picture:
            drawn.append(np.asarray(picture.convert("RGB")))
    height, width = (max(one.shape[axis] for one in drawn) for axis in (0, 1))
    return [
        np.pad(
            one, ((0, height - one.shape[0]), (0, width - one.shape[1]), (0, 0)), mode="constant", constant_values=255
        )
        for one in drawn
    ]
