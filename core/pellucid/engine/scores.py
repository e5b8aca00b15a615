"""Scores: what the targets make of a pass's outputs, and what each sample gets of its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pellucid.adapter import Adapter
from pellucid.engine.outputs import cut, mapped
from pellucid.engine.segment import By, Segment, Taken
from pellucid.engine.watch import Place
from pellucid.errors import LayerError, ModelError, TargetError, Unsuitable
from pellucid.protocol.leaves import each
from pellucid.protocol.target import Score

ScoredRows: TypeAlias = tuple[Segment, Any, Tensor | None, list[Tensor], int]
"""A segment, its rows of the outputs, their logits where a target needed them, the scores by target, the first row."""

DETACHED = (
    "the score does not depend differentiably on the model's {} (it is detached, or computed under no_grad, before "
    "them or by other means than torch); choose a technique that needs outputs only: "
    "pellucid.techniques(works_with=model)"
)


def score(
    adapter: Adapter, segments: Sequence[Segment], raw: Any, kept: dict[Place, Tensor], rows: int
) -> list[ScoredRows]:
    """Scores every segment's rows; the graphs are still there."""
    logits: Tensor | None = None

    def all_logits() -> Tensor:
        nonlocal logits
        if logits is None:
            logits = adapter.logits(raw)
            if logits.dim() == 0 or logits.shape[0] != rows:
                reason = "A model that mixes its batch cannot be explained example by example"
                if rows == 1:
                    reason = "A model that drops the axis of a single example, by `squeeze()`, is to name the axis"
                raise ModelError(
                    f"the model returned scores of shape {tuple(logits.shape)} for {rows} examples; expected one "
                    f"row for each. {reason}"
                )
        return logits

    scored = []
    start = 0
    for segment in segments:
        stop = start + segment.rows

        def here(start: int = start, stop: int = stop) -> Tensor:
            return all_logits()[start:stop]

        part = cut(raw, start, stop, rows)
        scores = []
        for target, base in zip(segment.targets, segment.base, strict=True):
            given = Score(
                raw=part,
                logits=here,
                examples=segment.examples,
                activations={name: kept[place][start:stop] for name, place in target.layers.items()},
                base=scattered(here().detach(), segment.examples) if isinstance(base, str) else base,
                derived=segment.derived,
            )
            scores.append(_checked(target.target.score(given), segment.rows))
        scored.append((segment, part, None if logits is None else here(), scores, start))
        start = stop
    return scored


def shares(
    segments: Sequence[Segment],
    scored: list[ScoredRows],
    kept: dict[Place, Tensor],
    by_target: list[dict[By, Any]],
    backwards: int,
) -> list[Taken]:
    """Cuts what a pass gave into what each segment gets of it."""
    results = []
    for segment, raw, logits, scores, start in scored:
        span = slice(start, start + segment.rows)
        whole = len(segments) == 1
        results.append(
            Taken(
                raw=mapped(Tensor.detach, raw),
                logits=None if logits is None else logits.detach(),
                scores=[score.detach() for score in scores],
                activations={p: t.detach() if whole else t.detach()[span] for p, t in kept.items()},
                gradients=[
                    {one: g if whole else each(lambda leaf, span=span: leaf[span], g) for one, g in found.items()}
                    for found in by_target
                ],
                backwards=backwards,
            )
        )
    return results


def check_rows(kept: Mapping[Place, Tensor], rows: int) -> None:
    """Refuses layers whose outputs do not have the examples on their first axis."""
    for place, one in kept.items():
        if one.dim() == 0 or one.shape[0] != rows:
            raise LayerError(
                f"layer '{place.layer.name}' gives {tuple(one.shape)} for {rows} examples; expected the examples on "
                "the first axis. Name the layer around it"
            )


def scattered(logits: Tensor, examples: Tensor) -> Tensor:
    """Rows of the base sample itself, placed by example, so that a target finds the base of each of them."""
    spread = logits.new_zeros((int(examples.max()) + 1, *logits.shape[1:]))
    return spread.index_copy_(0, examples.to(logits.device), logits)


def by_inputs(gradients: list[Tensor | None], leaves: Any) -> Any:
    """Gradients by the inputs, in their form."""
    if all(gradient is None for gradient in gradients):
        raise Unsuitable(DETACHED.format("inputs"))
    # One of several inputs may not matter for a target: then its gradient is zero.
    parts = iter(gradients)
    return each(lambda leaf: torch.zeros_like(leaf) if (part := next(parts)) is None else part.contiguous(), leaves)


def by_layer(gradient: Tensor | None, place: Place) -> Tensor:
    """The gradient by a layer's output."""
    if gradient is None:
        raise LayerError(
            f"the target does not depend on layer '{place.layer.name}'; choose a layer between the inputs and the "
            "target"
        )
    return gradient.contiguous()


def _checked(score: Any, rows: int) -> Tensor:
    if not isinstance(score, Tensor):
        raise TargetError(f"the target's score is a {type(score).__name__}; expected a tensor ({rows},)")
    if score.shape != (rows,):
        raise TargetError(
            f"the target's score has shape {tuple(score.shape)}; expected ({rows},), one for each example"
        )
    return score.float() if not score.is_floating_point() else score
