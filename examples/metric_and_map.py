"""An evaluator and a projector, as one plugin that needs no package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le

from pellucid import (
    Attribution,
    Evaluator,
    InputError,
    Look,
    Passes,
    Projection,
    Projector,
    Sample,
    Scores,
    Technique,
    Unsuitable,
    hookimpl,
    register,
    together,
)


@dataclass(frozen=True, eq=False)
class DropWithoutTop(Evaluator):
    """How much of the score is lost when the most relevant pixels are zero.

    Attributes:
        share: of the pixels that are hidden.
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.1

    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores]:
        """Looks at the images, and at the images without their most relevant pixels."""
        if not isinstance(explanation, Attribution):
            raise Unsuitable("drop_without_top scores attributions; other results have no relevant pixels")
        size = tuple(sample.inputs.shape[-2:])
        relevance = explanation.heatmap(size).flatten(1).to(sample.inputs)
        top = relevance.topk(max(1, round(self.share * relevance.shape[1])), dim=1).indices
        shown = torch.ones_like(relevance).scatter(1, top, 0.0).reshape(-1, 1, *size)
        hidden = sample.at(sample.inputs * shown)
        before, after = yield from together(Look(at=sample), Look(at=hidden))
        return Scores.single(metric="drop_without_top", values=before.scores - after.scores, better="higher")


@dataclass(frozen=True, eq=False)
class TwoPoles(Projector):
    """Places states by their distances from two that are far apart."""

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Takes the state furthest from the mean, and the one furthest from that; nothing is drawn at random."""
        points = torch.as_tensor(states).double()
        if points.dim() not in (2, 3) or not points.numel() or not bool(points.isfinite().all()):
            raise InputError("the states are not finite points; expected (n, d), or (T, n, d) through time")
        every = points.flatten(0, -2)
        first = every[(every - every.mean(dim=0)).norm(dim=1).argmax()]
        second = every[(every - first).norm(dim=1).argmax()]
        return Projection(torch.stack([(points - pole).norm(dim=-1) for pole in (first, second)], dim=-1))


class Mine:
    """A plugin can be any object with hooks."""

    @hookimpl
    def pellucid_techniques(self) -> Iterator[Technique]:
        """A metric and a map."""
        yield Technique(
            "drop_without_top",
            kind="evaluator",
            summary="How much of the score is lost when the most relevant pixels are zero.",
            target=f"{__name__}:DropWithoutTop",
            explains="explanation",
            output="scores",
            uses={"outputs"},
            better="higher",
        )
        yield Technique(
            "two_poles",
            kind="projector",
            summary="Places states by their distances from two that are far apart.",
            target=f"{__name__}:TwoPoles",
            explains="data",
            output="projection",
        )


register(Mine(), name="metric_and_map")
