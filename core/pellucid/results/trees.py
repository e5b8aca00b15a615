"""How surrogates are drawn: trees and graphs in layers, coefficients as bars."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.results.surrogate import Node, Surrogate

MOST = 6


def surrogate(result: Surrogate, output: int | None) -> draw.Picture:
    """The tree or graph, or the coefficients, or the predictions against the model's."""
    if result.nodes:
        return _layers(result)
    if result.coefficients is not None:
        return _coefficients(result, result.coefficients, output)
    return _agreement(result)


def _coefficients(result: Surrogate, table: Tensor, output: int | None) -> draw.Picture:
    if output is not None and not -len(table) <= output < len(table):
        raise InputError(f"output {output} does not exist; there are {len(table)}")
    shown = list(range(min(len(table), MOST))) if output is None else [output % len(table)]
    names = result.feature_names()

    def one(ax: Axes, place: int) -> None:
        draw.bars(ax, table[shown[place]].detach().cpu().float(), names)
        title = result.meta.category(shown[place]) or f"output {shown[place]}"
        draw.tidy(ax, draw.short(title), x="coefficient")

    return draw.panels(len(shown), one)


def _agreement(result: Surrogate) -> draw.Picture:
    picture, ((ax,),) = draw.grid(1, 1, 4.2, 3.8)
    mine = draw.finite(result.values.detach().cpu().double().flatten().numpy())
    if result.outputs is None:
        ax.hist(mine[np.isfinite(mine)], bins=30, color=draw.SERIES[0])
        draw.tidy(ax, draw.literal(result.description), x="surrogate's prediction", y="examples")
        return picture
    theirs = draw.finite(result.outputs.detach().cpu().double().flatten().numpy())
    ax.axline((0, 0), slope=1, color="#d0d7de", linewidth=1, zorder=1)
    ax.scatter(theirs, mine, s=14, color=draw.SERIES[0], alpha=0.6, linewidths=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    draw.tidy(ax, draw.literal(result.description), x="the model's output", y="the surrogate's")
    return picture


def _layers(result: Surrogate) -> draw.Picture:
    """Nodes from the root downwards: a parent stands over the middle of its children."""
    places = layout(result.nodes)
    wide = max(x for x, _ in places) + 1
    deep = max(y for _, y in places) + 1
    picture, ((ax,),) = draw.grid(1, 1, min(28.0, max(4.0, 1.75 * wide)), max(2.2, 1.15 * deep))
    biggest = max((node.size for node in result.nodes), default=0.0)
    for place, node in enumerate(result.nodes):
        x, y = places[place]
        for rank, child in enumerate(node.children):
            to_x, to_y = places[child]
            share = result.nodes[child].size / biggest if biggest > 0 else 0.2
            ax.plot(
                [x, to_x], [-y, -to_y], color="#b6bcc2", linewidth=0.8 + 4 * share, zorder=1, solid_capstyle="round"
            )
            if node.labels:
                ax.text(
                    (x + to_x) / 2,
                    -(y + to_y) / 2,
                    draw.short(node.labels[rank], 14),
                    fontsize=7.5,
                    color=draw.FAINT,
                    ha="center",
                    va="center",
                    zorder=2,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
                )
        leaf = not node.children
        ax.text(
            x,
            -y,
            _caption(node),
            fontsize=8,
            color="white" if leaf else draw.INK,
            ha="center",
            va="center",
            zorder=3,
            bbox={
                "boxstyle": "round,pad=0.45",
                "facecolor": draw.SERIES[0] if leaf else "#f3f6f9",
                "edgecolor": draw.SERIES[0] if leaf else "#b6bcc2",
            },
        )
    ax.set_xlim(-0.7, wide - 0.3)
    ax.set_ylim(-deep + 0.4, 0.6)
    draw.plain(ax, draw.literal(result.description))
    return picture


def _caption(node: Node) -> str:
    told = [f"n = {node.size:g}"] if node.size else []
    if node.value is not None:
        told.append(f"{node.value:.3g}")
    return "\n".join(filter(None, ("\n".join(textwrap.wrap(draw.literal(node.text), 18)), ", ".join(told))))


def layout(nodes: tuple[Node, ...]) -> list[tuple[float, float]]:
    """Places (x, depth): leaves side by side, parents over the middle of their children.

    A node that several lead to, as in a graph, stands at its least depth; a cycle is cut where it closes.
    """
    depth: dict[int, int] = {}
    order: list[int] = []
    for root in range(len(nodes)):
        queue = [] if root in depth else [root]
        depth.setdefault(root, 0)
        for place in queue:
            order.append(place)
            for child in nodes[place].children:
                if child not in depth:
                    depth[child] = depth[place] + 1
                    queue.append(child)
    owned: dict[int, list[int]] = {place: [] for place in order}
    taken: set[int] = set()
    for place in order:
        for child in nodes[place].children:
            if child not in taken and depth[child] == depth[place] + 1:
                owned[place].append(child)
                taken.add(child)
    across: dict[int, float] = {}
    free = 0.0
    stack = [(place, False) for place in reversed(order) if place not in taken]
    while stack:
        place, ready = stack.pop()
        if not owned[place]:
            across[place], free = free, free + 1
        elif ready:
            ends = [across[child] for child in owned[place]]
            across[place] = (ends[0] + ends[-1]) / 2
        else:
            stack.append((place, True))
            stack.extend((child, False) for child in reversed(owned[place]))
    return [(across[place], float(depth[place])) for place in range(len(nodes))]
