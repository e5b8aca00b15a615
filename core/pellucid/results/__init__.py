"""Results: one class per shape of answer, with provenance, certificates, slicing, saving and pictures."""

from typing import Any

from pellucid.results.attribution import Attribution, Top
from pellucid.results.base import ENTRY_PER_EXAMPLE, ONLY_FOR_PLOTS, Explanation, load, per_example, record
from pellucid.results.checks import Check, Checks
from pellucid.results.concepts import Concepts
from pellucid.results.exemplars import Exemplars
from pellucid.results.influence import Influence
from pellucid.results.meta import Meta, TargetRecord
from pellucid.results.projection import Projection
from pellucid.results.scores import Curves, Rank, Row, Scores
from pellucid.results.surrogate import Node, Surrogate
from pellucid.results.synthesis import Synthesis

__all__ = [
    "ENTRY_PER_EXAMPLE",
    "ONLY_FOR_PLOTS",
    "Attribution",
    "Check",
    "Checks",
    "Concepts",
    "Curves",
    "Exemplars",
    "Explanation",
    "Influence",
    "Meta",
    "Node",
    "Projection",
    "Rank",
    "Row",
    "Scores",
    "Surrogate",
    "Synthesis",
    "TargetRecord",
    "Top",
    "load",
    "per_example",
    "record",
]

_DRAW = {"colour_bar_png", "draw_heatmap", "draw_overlay", "image_png", "overlay_png", "photos"}


def __getattr__(name: str) -> Any:
    """The helpers that draw, which need matplotlib, when they are first used."""
    if name not in _DRAW:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from pellucid.results import draw

    return getattr(draw, name)
