"""One pass through the model: a forward of some rows, and a backward for each target whose gradients are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pellucid.adapter import Adapter
from pellucid.engine.batching import is_out_of_memory
from pellucid.engine.layers import Trace, trace
from pellucid.engine.watch import Place, Watch, same_format
from pellucid.errors import LayerError, ModelError, PellucidError, TargetError, Unsuitable
from pellucid.protocol.leaves import each, tensors_of
from pellucid.protocol.sample import Frame, Sample
from pellucid.protocol.target import Score, Target

INPUT = "input"


@dataclass(frozen=True, eq=False)
class Scored:
    """One target of a pass, and what its score is differentiated by.

    Attributes:
        target: the target.
        layers: the places of the target's own layers, by name.
        by: what the gradient is wanted by: places, and "input".
    """

    target: Target
    layers: Mapping[str, Place]
    by: tuple[Place | str, ...]


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows of one pass that belong to one sample, with its targets.

    Attributes:
        inputs: (rows, ...).
        extras: further model inputs, by name, (rows, ...).
        examples: (rows,) which example each row is.
        targets: the targets; all segments of a pass have equally many.
        base: for each target, the logits at its base sample, or None; "here" where these rows are that sample's.
        draws: (rows,) which draw of the derived sample each row is.
    """

    inputs: Any
    extras: dict[str, Tensor]
    examples: Tensor
    targets: tuple[Scored, ...]
    base: tuple[Tensor | str | None, ...]
    draws: Tensor

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.examples)


@dataclass(frozen=True, eq=False)
class Taken:
    """What one pass gave for a segment.

    Attributes:
        raw: what the model returned for these rows.
        logits: the part of it that holds the scores, or None where it was not needed.
        scores: a tensor (rows,) for each target.
        activations: by place.
        gradients: for each target, by place or "input".
        backwards: how many backward passes it took.
    """

    raw: Any
    logits: Tensor | None
    scores: list[Tensor]
    activations: dict[Place, Tensor]
    gradients: list[dict[Place | str, Any]]
    backwards: int


@dataclass(eq=False)
class Engine:
    """Runs passes on one model.

    Attributes:
        adapter: the model.
        module: what runs: the model, or an optimised copy of it.
        memory_format: the memory format of image inputs; convolutions are faster with the channels last.
        folded: the layers of an optimised copy that no longer give what they gave.
    """

    adapter: Adapter
    module: torch.nn.Module = field(init=False)
    memory_format: torch.memory_format = field(init=False)
    folded: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.module = self.adapter.module
        convolves = any(isinstance(part, torch.nn.Conv2d) for part in self.adapter.module.modules())
        last = convolves and not self.adapter.cache.get("needs contiguous inputs")
        self.memory_format = torch.channels_last if last else torch.contiguous_format

    @cached_property
    def _structure(self) -> tuple[tuple[str, int], ...]:
        """The model's parts, by which a change of the model between runs is noticed."""
        return tuple((name, id(part)) for name, part in self.module.named_modules())

    def use(self, module: torch.nn.Module, folded: frozenset[str]) -> None:
        """Runs on an optimised copy from now on."""
        self.module, self.folded = module, folded
        vars(self).pop("_structure", None)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((tensor.device for tensor in _state(self.adapter)), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type of the model's parameters, or None where it has none."""
        return next((tensor.dtype for tensor in _state(self.adapter) if tensor.is_floating_point()), None)

    def _call(self, frame: Frame, inputs: Any, extras: dict[str, Tensor]) -> Any:
        args, kwargs = frame.build(inputs, extras)
        try:
            return self.module(*args, **kwargs)
        except PellucidError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or _needs_contiguous(error):
                raise
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors_of(inputs))
            raise ModelError(
                f"{self.adapter.name} failed on inputs of shape {shapes}: {type(error).__name__}: {error}"
            ) from error

    def find(self, sample: Sample, layer: str) -> Place:
        """The place of a layer by its name.

        Raises:
            LayerError: when there is none, or an optimisation took it away.
        """
        place = self.trace(sample.frame, sample.inputs, sample.frame.extras).find(layer)
        if place.module in self.folded:
            raise LayerError(
                f"layer '{layer}' was folded into its BatchNorm by optimize=True; adapt the model without it, or name "
                "the layer as a technique's parameter"
            )
        return place

    def trace(self, frame: Frame, inputs: Any, extras: dict[str, Tensor]) -> Trace:
        """The places of the model, found once for each form of inputs and kept with the adapter."""
        module = self.module
        key = (
            "trace",
            self.folded,
            tuple((tuple(leaf.shape[1:]), leaf.dtype) for leaf in tensors_of(inputs)),
            tuple((name, tuple(extra.shape[1:])) for name, extra in extras.items()),
        )
        structure = self._structure
        known = self.adapter.cache.get(key)
        if known is None or known[0] != structure:
            one = each(lambda leaf: self._fresh(leaf[:1]).requires_grad_(leaf.is_floating_point()), inputs)
            shown = each(lambda leaf: leaf.clone(), one)
            few = {name: extra[:1] for name, extra in extras.items()}

            def run() -> Tensor:
                return self.adapter.logits(self._call(frame, shown, few))

            found = self._contiguous_if_needed(lambda: trace(module, run, tensors_of(shown)))
            self.adapter.cache[key] = known = (structure, found)
        return known[1]  # type: ignore[no-any-return]

    def _fresh(self, leaf: Tensor) -> Tensor:
        return same_format(leaf.detach(), self.memory_format)

    def _contiguous_if_needed(self, function: Any) -> Any:
        """Runs a function; where a model cannot take channels-last inputs, again with contiguous ones."""
        try:
            return function()
        except RuntimeError as error:
            if self.memory_format is torch.contiguous_format or not _needs_contiguous(error):
                raise
            self.memory_format = torch.contiguous_format
            self.adapter.cache["needs contiguous inputs"] = True
            return function()

    def run(self, frame: Frame, segments: Sequence[Segment], places: Sequence[Place]) -> list[Taken]:
        """Runs one forward pass over the segments' rows, and a backward pass for each target that wants gradients."""
        return self._contiguous_if_needed(lambda: self._run(frame, segments, places))  # type: ignore[no-any-return]

    def _run(self, frame: Frame, segments: Sequence[Segment], places: Sequence[Place]) -> list[Taken]:
        wanted = {by for segment in segments for scored in segment.targets for by in scored.by}
        rows = sum(segment.rows for segment in segments)
        joined = segments[0].inputs if len(segments) == 1 else _joined([segment.inputs for segment in segments])
        leaves = each(self._fresh, joined)
        extras = {
            name: torch.cat([segment.extras[name] for segment in segments]).clone() for name in segments[0].extras
        }
        if INPUT in wanted:
            leaves = each(_differentiable, leaves)
        # The model gets a copy, since it may change its inputs in place, which autograd forbids for leaves.
        shown = each(lambda leaf: leaf.clone() if leaf.requires_grad else leaf, leaves)
        watch = Watch(self.module, list(places), start_graph=bool(wanted))
        with torch.set_grad_enabled(bool(wanted)), watch():
            raw = self._call(frame, shown, extras)
        for place, kept in watch.kept.items():
            if kept.dim() == 0 or kept.shape[0] != rows:
                raise LayerError(
                    f"layer '{place.layer.name}' gives {tuple(kept.shape)} for {rows} examples; expected the examples "
                    "on the first axis. Name the layer around it"
                )
        taken = self._score(segments, raw, watch.kept, rows)
        return self._differentiate(segments, taken, watch.kept, leaves)

    def _score(
        self, segments: Sequence[Segment], raw: Any, kept: dict[Place, Tensor], rows: int
    ) -> list[tuple[Segment, Any, Tensor | None, list[Tensor], int]]:
        """Scores every segment's rows; the graphs are still there."""
        logits: Tensor | None = None

        def all_logits() -> Tensor:
            nonlocal logits
            if logits is None:
                logits = self.adapter.logits(raw)
                if logits.dim() == 0 or logits.shape[0] != rows:
                    raise ModelError(
                        f"the model returned scores of shape {tuple(logits.shape)} for {rows} examples; expected one "
                        "row for each. A model that mixes its batch cannot be explained example by example"
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
                    base=_scattered(here().detach(), segment.examples) if isinstance(base, str) else base,
                )
                scores.append(_checked(target.target.score(given), segment.rows))
            scored.append((segment, part, None if logits is None else here(), scores, start))
            start = stop
        return scored

    def _differentiate(
        self,
        segments: Sequence[Segment],
        scored: list[tuple[Segment, Any, Tensor | None, list[Tensor], int]],
        kept: dict[Place, Tensor],
        leaves: Any,
    ) -> list[Taken]:
        by_target: list[dict[Place | str, Any]] = []
        backwards = 0
        wanting = [
            (index, sorted({by for segment in segments for by in segment.targets[index].by}, key=_order))
            for index in range(len(segments[0].targets))
        ]
        last = max((index for index, by in wanting if by), default=-1)
        for index, by in wanting:
            if not by:
                by_target.append({})
                continue
            total = torch.stack([scores[index].sum() for *_, scores, _ in scored]).sum()
            if not total.requires_grad:
                raise Unsuitable(
                    "the score does not depend differentiably on the model's inputs or layers (it is detached, "
                    "computed under no_grad or by other means than torch); choose a technique that needs outputs only: "
                    "pellucid.techniques(works_with=model)"
                )
            backwards += 1
            tensors = [t for one in by for t in (tensors_of(leaves) if one == INPUT else [kept[one]])]  # type: ignore[index]
            gradients = list(torch.autograd.grad(total, tensors, retain_graph=index != last, allow_unused=True))
            found: dict[Place | str, Any] = {}
            for one in by:
                if one == INPUT:
                    parts = iter([gradients.pop(0) for _ in tensors_of(leaves)])
                    found[one] = each(lambda leaf, parts=parts: _known(next(parts), INPUT, leaf), leaves)
                else:
                    assert isinstance(one, Place)
                    found[one] = _known(gradients.pop(0), one.layer.name, None)
            by_target.append(found)
        results = []
        for segment, raw, logits, scores, start in scored:
            span = slice(start, start + segment.rows)
            whole = len(segments) == 1
            results.append(
                Taken(
                    raw=pytree.tree_map_only(Tensor, torch.Tensor.detach, raw),
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


def _scattered(logits: Tensor, examples: Tensor) -> Tensor:
    """Rows of the base sample itself, placed by example, so that a target finds the base of each of them."""
    spread = logits.new_zeros((int(examples.max()) + 1, *logits.shape[1:]))
    return spread.index_copy_(0, examples.to(logits.device), logits)


def _order(by: Place | str) -> str:
    return by if isinstance(by, str) else by.layer.name


def _needs_contiguous(error: BaseException) -> bool:
    """Whether a model failed on channels-last inputs: `Tensor.view` is what works on one memory format only."""
    return isinstance(error, RuntimeError) and "view size is not compatible" in str(error)


def _state(adapter: Adapter) -> Any:
    yield from adapter.module.parameters()
    yield from adapter.module.buffers()


def _differentiable(leaf: Tensor) -> Tensor:
    if not leaf.is_floating_point():
        raise Unsuitable(
            f"gradients by an input of type {leaf.dtype} do not exist; ask for a layer's gradient, such as "
            "the embedding's"
        )
    return leaf.requires_grad_()


def _known(gradient: Tensor | None, name: str, leaf: Tensor | None) -> Tensor:
    if gradient is not None:
        return gradient.contiguous()
    if leaf is not None:
        # One of several inputs may not matter for a target: then its gradient is zero.
        return torch.zeros_like(leaf)
    raise LayerError(f"the target does not depend on layer '{name}'; choose a layer between the inputs and the target")


def _checked(score: Tensor, rows: int) -> Tensor:
    if score.shape != (rows,):
        raise TargetError(
            f"the target's score has shape {tuple(score.shape)}; expected ({rows},), one for each example"
        )
    return score.float() if not score.is_floating_point() else score


def _joined(inputs: Sequence[Any]) -> Any:
    return each(lambda *leaves: torch.cat(leaves), *inputs)


def cut(raw: Any, start: int, stop: int, rows: int) -> Any:
    """The part of what a model returned that belongs to some of the rows."""
    if start == 0 and stop == rows:
        return raw
    if isinstance(raw, list) and len(raw) == rows and not isinstance(raw[0], Tensor):
        return raw[start:stop]  # a detection model's results, one entry for each image

    def part(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.dim() and tensor.shape[0] == rows else tensor

    return pytree.tree_map_only(Tensor, part, raw)
