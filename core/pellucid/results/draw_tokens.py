"""Texts with coloured tokens, as a figure and as HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from pellucid.errors import InputError
from pellucid.results import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.results.attribution import Attribution

WIDTH = 7.2
"""Inches across a figure: the text's width in a journal."""
SIZE = 10.5
LINE = 1.95
"""Line height, in units of the font's size."""
STRONGEST = 0.82
"""The opacity of the strongest colour, which keeps the token readable."""

_SPECIAL = re.compile(r"\[[^\]\s]+\]|<[^>\s]+>")
_OPENING = re.compile(r"[(\[{“‘]+")
_CLOSING = re.compile(r"[.,;:!?%)\]}’'”…]+")


@dataclass(frozen=True)
class Token:
    """A token as it is drawn.

    Attributes:
        text: what is printed.
        value: its attribution.
        spaced: whether a space stands before it.
        special: whether it is the tokenizer's own, such as "[CLS]".
    """

    text: str
    value: float
    spaced: bool
    special: bool

    def opacity(self, bound: float) -> float:
        """How strong its colour is, 0 to `STRONGEST`."""
        return STRONGEST * min(1.0, abs(self.value) / bound) if math.isfinite(self.value) else 0.0

    @property
    def colour(self) -> str:
        """The hue of its sign."""
        return draw.FOR if self.value > 0 else draw.AGAINST


def tokens_of(result: Attribution, example: int) -> list[Token]:
    """The tokens of one example.

    Raises:
        InputError: when the values are not over tokens.
    """
    if result.tokens is None:
        raise InputError(f"the values are over {result.over}, not over tokens; expected an explanation of texts")
    listed: list[Token] = []
    for label, value in zip(result.tokens[example], result.values[example].tolist(), strict=False):
        goes_on = label.startswith("##") and len(label) > 2
        text = label[2:] if goes_on else label
        special = bool(_SPECIAL.fullmatch(label))
        after = not listed or _OPENING.fullmatch(listed[-1].text)
        glued = bool(goes_on or after or _CLOSING.fullmatch(text))
        listed.append(Token(text, value, not glued, special))
    return listed


def bound_of(result: Attribution, example: int, bound: float | None) -> float:
    """Where the colours of an example end: the given bound, or its greatest magnitudes (see `draw.limit`)."""
    count = len(result.tokens[example]) if result.tokens is not None else None
    return draw.limit(result.values[example, :count]) if bound is None else bound


def markup(result: Attribution, examples: Sequence[int] | None = None, *, bound: float | None = None) -> str:
    """Texts with coloured tokens, as HTML that suits light pages and dark ones and contains everything.

    A token's value stands in its title, which browsers show under the pointer.
    """
    names = result.class_names()
    shown = range(len(result)) if examples is None else examples
    parts = [_paragraph(tokens_of(result, k), bound_of(result, k, bound), names[k]) for k in shown]
    return f'<div class="tokens">{"".join(parts)}</div>'


def _paragraph(tokens: Sequence[Token], bound: float, title: str) -> str:
    said = f"{html.escape(draw.called(title))} · " if title else ""
    head = f'<div style="font-size:.8em;opacity:.7">{said}red for, blue against, ends at ±{bound:.3g}</div>'
    body = "".join(_span(token, bound) for token in tokens)
    return f'<div style="margin:.6em 0">{head}<div style="line-height:1.9;overflow-wrap:anywhere">{body}</div></div>'


def _span(token: Token, bound: float) -> str:
    opacity = token.opacity(bound)
    red, green, blue = (round(255 * part) for part in to_rgb(token.colour))
    style = f"background:rgba({red},{green},{blue},{opacity:.3f});border-radius:3px;padding:.15em .06em"
    style += ";color:#fff" if opacity > 0.55 else ""
    style += ";font-size:.8em;opacity:.75" if token.special else ""
    space = " " if token.spaced else ""
    return f'{space}<span style="{style}" title="{token.value:+.4g}">{html.escape(token.text)}</span>'


@dataclass(frozen=True)
class Placed:
    """A token with its place on the page, in points from the left and the number of its line."""

    token: Token
    left: float
    width: float
    line: int


def laid_out(tokens: Sequence[Token], width: float) -> list[Placed]:
    """Breaks tokens into lines of at most `width` points; only a piece longer than a line goes beyond it."""
    placed: list[Placed] = []
    left, line = 0.0, 0
    for word in _words(tokens):
        air = 0.3 if len(word) == 1 else 0.14  # the pieces of a word stand closer than words
        sizes = [_advance(token, air) for token in word]
        gap = 0.36 * SIZE if word[0].spaced and left else 0.0
        if left and left + gap + sum(sizes) > width:
            left, gap, line = 0.0, 0.0, line + 1
        left += gap
        for token, size in zip(word, sizes, strict=True):
            if left and left + size > width:  # a word that fills more than a line is broken between its tokens
                left, line = 0.0, line + 1
            placed.append(Placed(token, left, size, line))
            left += size
    return placed


def _words(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    word: list[Token] = []
    for token in tokens:
        if token.spaced and word:
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _font(token: Token) -> FontProperties:
    return FontProperties(size=SIZE * (0.8 if token.special else 1.0))


def _advance(token: Token, air: float) -> float:
    """The width of a token in points, with a little air around it, in units of the font's size."""
    text = draw.literal(token.text)
    extent = TextPath((0, 0), text, prop=_font(token)).get_extents().width if text.strip() else 0.3 * SIZE
    return max(float(extent) + air * SIZE, 0.5 * SIZE)  # so wide that a full stop's colour is seen


def tokens(result: Attribution, examples: Sequence[int], bound: float | None) -> draw.Picture:
    """A figure of texts with coloured tokens, each with its own colours and the bar that reads them."""
    inner = 72 * (WIDTH - 1.15)
    pages = [laid_out(tokens_of(result, k), inner) for k in examples]
    lines = [1 + max((one.line for one in page), default=0) for page in pages]
    heights = [SIZE * (LINE * count + 2.1) for count in lines] or [2 * SIZE]
    picture = draw.Picture(WIDTH, (sum(heights) + 2.6 * SIZE) / 72)
    picture.set_layout_engine("constrained", h_pad=0, w_pad=0, hspace=0, wspace=0)
    axes = picture.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    titles = result.class_names()
    for place, (page, height) in enumerate(zip(pages, heights, strict=False)):
        example = examples[place]
        end = bound_of(result, example, bound)
        ax = axes[place][0]
        _page(ax, page, height, draw.called(titles[example]) or f"example {example}", end)
        _bar(ax, height, end)
    for ax in axes[:, 0]:
        ax.set_axis_off()
    told = "red speaks for the target, blue against it  ·  each text has its own colours"
    told = told if bound is None else "red speaks for the target, blue against it"
    technique = draw.titled(result.meta.technique)
    picture.supxlabel(f"{technique}  ·  {told}" if technique else told, fontsize=8, color=draw.FAINT)
    return picture


def _page(ax: Axes, page: Sequence[Placed], height: float, title: str, bound: float) -> None:
    """One text; the axes are measured in points from their upper left."""
    ax.set_xlim(-6, 72 * WIDTH - 6)
    ax.set_ylim(height, 0)
    ax.text(0, 0.75 * SIZE, draw.short(title, 60), size=8.5, color=draw.FAINT, va="center")
    for one in page:
        middle = SIZE * (2.2 + LINE * one.line)
        opacity = one.token.opacity(bound)
        if opacity:
            box = FancyBboxPatch(
                (one.left + 0.4, middle - 0.72 * SIZE),
                one.width - 0.8,
                1.44 * SIZE,
                boxstyle=f"round,pad=0,rounding_size={0.2 * SIZE}",
                facecolor=(*to_rgb(one.token.colour), opacity),
                linewidth=0,
            )
            ax.add_patch(box)
        ink = "white" if opacity > 0.55 else draw.FAINT if one.token.special else draw.INK
        middle_x = one.left + one.width / 2
        # All tokens stand on one line of writing, whether or not they have letters that go below it.
        ax.text(
            middle_x,
            middle + 0.36 * SIZE,
            draw.literal(one.token.text),
            fontproperties=_font(one.token),
            color=ink,
            ha="center",
            va="baseline",
        )


def _bar(ax: Axes, height: float, bound: float) -> None:
    """The scale of colours at the right of a text's first line."""
    left, width, top = 72 * (WIDTH - 0.95), 48.0, 1.85 * SIZE
    levels = np.linspace(-1, 1, 65)
    strip = np.ones((1, len(levels), 4))
    strip[0, :, :3] = [to_rgb(draw.FOR if level > 0 else draw.AGAINST) for level in levels]
    strip[0, :, 3] = STRONGEST * np.abs(levels)
    ax.imshow(strip, extent=(left, left + width, top + 0.5 * SIZE, top), aspect="auto", interpolation="bilinear")
    ax.set_xlim(-6, 72 * WIDTH - 6)
    ax.set_ylim(height, 0)
    for at, text in ((left, f"−{bound:.2g}"), (left + width / 2, "0"), (left + width, f"{bound:.2g}")):
        ax.text(at, top + 0.7 * SIZE, text, size=6.5, color=draw.FAINT, ha="center", va="top")
