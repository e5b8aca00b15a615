"""Pictures without a display: figures, photos, signed heatmaps over photos, colour bars."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import InputError
from pellucid.protocol.leaves import Leaves
from pellucid.registry.lookup import title as title_of

Bytes: TypeAlias = NDArray[np.uint8]

INK = "#1f2328"
FAINT = "#6e7781"
FOR, AGAINST = "#c8102e", "#1b5fc1"
SERIES = ("#0b6e99", "#d1495b", "#2a9d6f", "#8458b3", "#d98e04", "#3d5a80", "#b0437c", "#6b8e23", "#8c564b", "#22a7c4")
CONTROL = "#9aa1a9"
ROBUST = 0.995


class Picture(Figure):
    """A figure that draws itself without a display, and shows itself in a notebook without pyplot."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), facecolor="white", layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def img(figure: Figure, dpi: int = 110) -> str:
    """A figure as an HTML element that contains its own picture."""
    data = base64.b64encode(png(figure, dpi)).decode("ascii")
    return f'<img style="max-width:100%" alt="" src="data:image/png;base64,{data}">'


def grid(rows: int, columns: int, width: float = 2.6, height: float | None = None) -> tuple[Picture, list[list[Axes]]]:
    """A figure with rows and columns of axes, each of a size in inches."""
    picture = Picture(width * columns + 0.3, (width if height is None else height) * rows + 0.25)
    axes = picture.subplots(rows, columns, squeeze=False)
    return picture, [list(row) for row in axes]


def plain(ax: Axes, title: str = "", size: float = 10) -> None:
    """Takes frame and ticks off axes that hold a picture."""
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=size, color=INK, pad=5)


def tidy(ax: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Gives axes that hold a chart the house's quiet look."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#d0d7de")
    ax.tick_params(colors=FAINT, labelsize=8.5, length=3)
    ax.set_xlabel(x, fontsize=9, color=FAINT)
    ax.set_ylabel(y, fontsize=9, color=FAINT)
    ax.set_title(title, fontsize=10.5, color=INK, loc="left", pad=7)


def short(name: str, length: int = 26) -> str:
    """The first of a category's synonyms, cut to a length, as `literal` text."""
    first = name.split(",")[0].strip() or name
    return literal(first if len(first) <= length else first[: length - 1] + "…")


def called(category: str) -> str:
    """A category as a title: one that is only a number says what it is the number of."""
    return f"class {category}" if category.strip("-").isdecimal() else category


def literal(text: str) -> str:
    """A text that matplotlib draws letter by letter: a pair of dollar signs would be read as mathematics."""
    printed = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return printed.replace("$", r"\$")


def titled(technique: str) -> str:
    """A technique as the field writes it, ready to be drawn."""
    return literal(title_of(technique))


def finite(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers with NaN for all that is not finite or beyond single precision, which matplotlib leaves out."""
    return np.where(np.abs(values) < np.finfo(np.float32).max, values, np.nan)


@cache
def colours() -> Colormap:
    """The colour map of signed maps: blue below zero, white at zero, red above; dark is strong on both sides."""
    stops = ["#07238f", "#0f56d9", "#56a3f5", "#cbe4fc", "#ffffff", "#fee0c8", "#fd8f5a", "#e31a2c", "#8c0020"]
    return LinearSegmentedColormap.from_list("pellucid", stops, N=513)


def limit(values: Tensor) -> float:
    """The magnitude at which colours end: the 99.5th percentile of the finite magnitudes, never below their zero.

    A map that is zero nearly everywhere ends at its greatest magnitude instead, a constant zero one at 1.
    """
    magnitudes = values.detach().float().abs().reshape(-1)
    magnitudes = magnitudes[magnitudes.isfinite()]
    if not len(magnitudes):
        return 1.0
    place = min(len(magnitudes), math.ceil(ROBUST * len(magnitudes)))
    robust = float(magnitudes.kthvalue(place).values) or float(magnitudes.max())
    return robust if robust > 0 else 1.0


def photos(inputs: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Bytes:
    """Inputs (B, C, H, W) as photos (B, H, W, 3).

    Normalisation by `mean` and `std` is undone. Without them, values outside 0 to 1 are stretched to that range, for
    display only. One channel becomes grey, and so does the mean of any number but three. What is not finite is black.
    """
    if inputs.dim() != 4:
        raise InputError(f"inputs of shape {tuple(inputs.shape)} are no photos; expected (B, C, H, W)")
    shown = inputs.detach().cpu()
    if shown.dtype == torch.uint8:
        shown = shown.float() / 255
    shown = shown.float()
    channels = shown.shape[1]
    if mean is not None and std is not None and {len(mean), len(std)} <= {1, channels}:
        shown = shown * torch.tensor(std).view(1, -1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1)
    shown = shown.nan_to_num(0.0, 0.0, 0.0)
    if mean is None and shown.numel() and (float(shown.min()) < -1e-3 or float(shown.max()) > 1 + 1e-3):
        low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
        shown = (shown - low) / (high - low).clamp_min(1e-12)
    if channels != 3:
        shown = shown.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    pixels: Bytes = shown.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def photos_of(
    inputs: Any, mean: Sequence[float] | None, std: Sequence[float] | None, name: str | None = None
) -> Bytes | None:
    """The photos among a result's inputs (the named leaf, or the first that looks like photos), or None."""
    if isinstance(inputs, Leaves):
        leaves = [inputs[name]] if name in inputs else list(inputs.values())
        inputs = next((leaf for leaf in leaves if _pictorial(leaf)), None)
    return photos(inputs, mean, std) if isinstance(inputs, Tensor) and _pictorial(inputs) else None


def _pictorial(inputs: Tensor) -> bool:
    return inputs.dim() == 4 and 0 not in inputs.shape[1:]


def resize(heatmap: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) at another size: bilinear, half-pixel centres, edges held; the values keep their meaning."""
    if tuple(heatmap.shape[-2:]) == tuple(size):
        return heatmap
    return F.interpolate(heatmap.unsqueeze(1).float(), size=size, mode="bilinear", align_corners=False).squeeze(1)


def blend(photo: Bytes, heatmap: NDArray[Any], bound: float, strength: float = 0.92) -> Bytes:
    """A photo (H, W, 3) with a signed map (H, W) over it; the stronger the value, the less of the photo shows.

    The photo is greyed and lightened a little, so that colour means attribution. What is not finite stays uncovered.
    """
    level = np.clip(np.nan_to_num(heatmap / bound, nan=0.0, posinf=1.0, neginf=-1.0), -1, 1)
    grey = photo.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    base = 0.66 * grey[..., None] + 0.12 * photo + 0.22 * 255
    opacity = (strength * np.abs(level) ** 0.75)[..., None]
    # Colours start a fifth of the way from white: a weak value is a clear tint, told apart from a light photo.
    tint = np.sign(level) * (0.2 + 0.8 * np.abs(level))
    colour = colours()(tint / 2 + 0.5)[..., :3] * 255
    mixed: Bytes = np.clip((1 - opacity) * base + opacity * colour, 0, 255).round().astype(np.uint8)
    return mixed


def draw_overlay(ax: Axes, photo: Bytes, heatmap: Tensor, *, bound: float | None = None, title: str = "") -> float:
    """Draws a photo (H, W, 3) with a signed map (h, w) over it, and returns the magnitude at which colours end."""
    bound = limit(heatmap) if bound is None else bound
    full = resize(heatmap.detach().cpu()[None], (photo.shape[0], photo.shape[1]))[0]
    ax.imshow(blend(photo, full.double().numpy(), bound), interpolation="lanczos")
    plain(ax, title)
    return bound


def draw_heatmap(ax: Axes, heatmap: Tensor, *, bound: float | None = None, title: str = "") -> float:
    """Draws a signed map (h, w) alone, white at zero and grey where it is not finite; returns where colours end."""
    bound = limit(heatmap) if bound is None else bound
    shown = np.ma.masked_invalid(heatmap.detach().cpu().double().numpy())
    ax.set_facecolor("#b6bcc2")
    ax.imshow(shown, cmap=colours(), vmin=-bound, vmax=bound, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color("#d0d7de")
    if title:
        ax.set_title(title, fontsize=10, color=INK, pad=5)
    return bound


def colour_bar(figure: Figure, axes: Sequence[Axes], bound: float, label: str | None = None) -> Colorbar:
    """A colour bar with the true values, symmetric about zero."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(-bound, bound), colours()), ax=list(axes), fraction=0.03, pad=0.015, aspect=24
    )
    bar.locator = MaxNLocator(nbins=5, symmetric=True)
    bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}")
    bar.update_ticks()
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=2)
    bar.set_label(SCALE if label is None else label, fontsize=8, color=FAINT)
    return bar


SCALE = f"attribution (colours end at the {100 * ROBUST:g}th percentile of |value|)"


@dataclass(frozen=True)
class Overlay:
    """A picture for a web page.

    Attributes:
        png: the bytes of a PNG file.
        bound: the value at which the colours end on both sides of zero.
    """

    png: bytes
    bound: float


def overlay_png(
    photo: Bytes, heatmap: Tensor | NDArray[Any], size: int | None = None, *, bound: float | None = None
) -> Overlay:
    """A photo (H, W, 3) with a signed map (h, w) over it, and the limits of its colour bar.

    Args:
        photo: the photo, bytes.
        heatmap: the map, resized bilinearly to the photo.
        size: the longer side of the picture in pixels; None is the photo's own.
        bound: where colours end; None is the map's 99.5th percentile.
    """
    signed = torch.as_tensor(heatmap)
    bound = limit(signed) if bound is None else bound
    full = resize(signed.detach().cpu()[None], (photo.shape[0], photo.shape[1]))[0]
    return Overlay(image_png(blend(photo, full.double().numpy(), bound), size), bound)


def image_png(photo: Bytes, size: int | None = None) -> bytes:
    """Pixels (H, W, 3) as the bytes of a PNG file, the longer side resized to `size`."""
    from PIL import Image

    image = Image.fromarray(photo)
    if size is not None and size != max(image.size):
        scale = size / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def colour_bar_png(width: int = 256, height: int = 12) -> bytes:
    """A horizontal strip of the signed colour map, for a web page that writes its own limits beside it."""
    strip = colours()(np.linspace(0, 1, width))[None, :, :3].repeat(height, axis=0)
    return image_png((strip * 255).round().astype(np.uint8))


def bars(ax: Axes, values: Tensor, names: Sequence[str], *, most: int = 12) -> None:
    """Draws signed bars, the greatest magnitudes first; what is left out is counted, what is not finite is written."""
    order = values.nan_to_num(0.0).abs().argsort(descending=True, stable=True)[:most].flip(0).tolist()
    heights = [float(values[place]) for place in order]
    missing = [place for place, height in enumerate(heights) if not math.isfinite(height)]
    for place in missing:
        ax.text(0, place, f" {heights[place]:g}", va="center", size=8, color=FAINT)
        heights[place] = 0.0
    ax.barh(
        range(len(order)),
        heights,
        color=[FOR if height >= 0 else AGAINST for height in heights],
        height=0.72,
    )
    ax.set_yticks(range(len(order)), [short(names[place]) for place in order])
    ax.axvline(0, color="#8c959f", linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    if len(values) > most:
        ax.text(
            1, 1, f"and {len(values) - most} more", transform=ax.transAxes, ha="right", va="bottom", size=8, color=FAINT
        )


def panels(count: int, draw: Callable[[Axes, int], None], *, width: float = 3.4, height: float = 2.8) -> Picture:
    """A figure with one chart for each of `count` things, at most three in a row."""
    columns = max(1, min(3, count))
    rows = max(1, math.ceil(count / columns))
    picture, axes = grid(rows, columns, width, height)
    flat = [ax for row in axes for ax in row]
    for place, ax in enumerate(flat):
        if place < count:
            draw(ax, place)
        else:
            ax.set_axis_off()
    return picture
