"""One pass through the model: a forward of some rows, and a backward for each target whose gradients are wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from pellucid.adapter import Adapter
from pellucid.engine.batching import is_out_of_memory
from pellucid.engine.factors import ArgumentChanged, Parameters, ParameterWatch
from pellucid.engine.guard import random_states
from pellucid.engine.layers import Trace, trace
from pellucid.engine.norms import AffineNorms
from pellucid.engine.outputs import tensors_in
from pellucid.engine.parts import Parts, parts_of
from pellucid.engine.reorder import ChannelsLast
from pellucid.engine.scores import DETACHED, ScoredRows, by_inputs, by_layer, check_rows, score, shares
from pellucid.engine.segment import INPUT, By, Segment, Taken, wanted_of
from pellucid.engine.watch import ControlFlowChanged, Overwritten, Place, Watch, same_format
from pellucid.engine.weights import fitted
from pellucid.errors import LayerError, ModelError, PellucidError, Unsuitable
from pellucid.protocol.blocks import digest, plain, settings
from pellucid.protocol.factors import Factors
from pellucid.protocol.leaves import Leaves, each, tensors_of
from pellucid.protocol.sample import Frame, Sample

T = TypeVar("T")


@dataclass(eq=False)
class Engine:
    """Runs passes on one model.

    Attributes:
        adapter: the model.
        own: the model's parts, found where they are not given.
        module: what runs: the model, or an optimised copy of it.
        parts: the parts of what runs.
        folded: the layers of an optimised copy that no longer give what they gave.
        ways: how passes must run that fail otherwise, which is kept with the adapter: "contiguous" inputs (a view of
            them fails with the channels last), a "graph" from the inputs on whatever is asked (the model has a graph of
            its own, or recomputes parts of itself in the backward pass), or a place, whose output the model changes in
            place by another name, so that a copy of it is kept; or "copies" of what layers are given, which the model
            changes later.
        lent: parameters and buffers that stand for the module's own in a pass, or None.
        as_is: whether the pass is so small that preparing the module for it would take longer than it gains.
    """

    adapter: Adapter
    own: Parts = field(default=None)  # type: ignore[assignment]
    module: nn.Module = field(init=False)
    parts: Parts = field(init=False)
    folded: frozenset[str] = field(init=False)
    lent: Mapping[str, Tensor] | None = field(init=False, default=None)
    as_is: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.ways: set[str | Place] = self.adapter.cache.setdefault("ways", set())
        self.own = self.own or parts_of(self.adapter.module)
        self.use(self.adapter.module, self.own, frozenset())

    def use(self, module: nn.Module, parts: Parts, folded: frozenset[str]) -> None:
        """Runs on a module from now on: the model, or an optimised copy of it."""
        self.module, self.parts, self.folded = module, parts, folded
        self._traces: dict[Any, Trace] = {}  # those that hold, as was found out in this run
        self._weights = ChannelsLast(parts.modules.values(), self.adapter.cache)
        self._norms = AffineNorms(parts.modules.values(), self.adapter.cache)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of image inputs; convolutions are faster with the channels last."""
        last = self._weights.convolutions and "contiguous" not in self.ways and not self.as_is
        return torch.channels_last if last else torch.contiguous_format

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((tensor.device for tensor in _tensors(self.own)), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type of the model's parameters, or None where it has none."""
        return next((tensor.dtype for tensor in _tensors(self.own) if tensor.is_floating_point()), None)

    def call(self, frame: Frame, inputs: Any, extras: dict[str, Tensor]) -> Any:
        """Runs the module once.

        Raises:
            ModelError: when it fails, with the shapes of the inputs.
        """
        args, kwargs = frame.build(inputs, extras)
        try:
            if self.lent is not None:
                return torch.func.functional_call(self.module, dict(self.lent), args, kwargs)
            return self.module(*args, **kwargs)
        except PellucidError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or self._other_way(error):
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
                f"layer '{layer}' was folded into its neighbour by optimize=True; adapt the model without it, or name "
                "the layer as a technique's parameter"
            )
        return place

    def trace(self, frame: Frame, inputs: Any, extras: dict[str, Tensor]) -> Trace:
        """The places of the model, found once for each form of inputs and kept with the adapter."""
        module = self.module
        key = (
            "trace",
            self.folded,
            self.adapter.layer,
            tuple(inputs) if isinstance(inputs, Leaves) else (),
            tuple((tuple(leaf.shape[1:]), leaf.dtype) for leaf in tensors_of(inputs)),
            tuple((name, tuple(extra.shape[1:])) for name, extra in extras.items()),
        )
        if key in self._traces:
            return self._traces[key]
        # Where "auto" lies depends on which part of the output counts.
        state = (self.parts.structure, self.parts.switches, self.adapter.output)
        known = self.adapter.cache.get(key)
        if known is None or known[0] != state:
            one = each(lambda leaf: self.fresh(leaf[:1]).requires_grad_(leaf.is_floating_point()), inputs)
            shown = each(lambda leaf: leaf.clone(), one)
            few = {name: extra[:1] for name, extra in extras.items()}

            def run() -> Sequence[Tensor]:
                raw = self.call(frame, shown, few)
                try:
                    return [self.adapter.logits(raw)]
                except ModelError:  # a detection model has none, and is explained by a function of its output
                    return list(tensors_in(raw))

            with random_states(self.parts.parameters, 0):
                found = self.somehow(lambda: trace(module, run, tensors_of(shown)))
            if self.adapter.layer is not None:
                found = found.with_auto(self.adapter.layer)
            self.adapter.cache[key] = known = (state, found)
        self._traces[key] = known[1]
        return self._traces[key]

    def fresh(self, leaf: Tensor) -> Tensor:
        """A copy of inputs in the memory format that the model runs in."""
        return same_format(leaf.detach(), self.memory_format)

    def _other_way(self, error: BaseException) -> str | Place | None:
        """The way in which a pass may succeed that failed with an error; see `ways`."""
        text = str(error)
        way: str | Place | None = None
        if isinstance(error, Overwritten):
            way = error.place
        elif isinstance(error, ArgumentChanged):
            way = "copies"
        elif isinstance(error, (ControlFlowChanged, CheckpointError)) or "does not require grad" in text:
            way = "graph"
        elif isinstance(error, RuntimeError) and "view size is not compatible" in text:
            way = "contiguous"
        return None if way in self.ways else way

    def somehow(self, function: Callable[[], T]) -> T:
        """Runs a function, and again in other ways where the model needs them."""
        tried: list[str | Place] = []
        while True:
            try:
                return function()
            except Exception as error:
                way = self._other_way(error)
                if way is None:
                    self.ways.difference_update(tried)  # they did not help
                    raise
                tried.append(way)
                self.ways.add(way)

    def forget(self) -> None:
        """Forgets the model's places, after its control flow changed."""
        self._traces.clear()
        for key in [key for key in self.adapter.cache if isinstance(key, tuple) and key[0] == "trace"]:
            del self.adapter.cache[key]

    def run(
        self,
        frame: Frame,
        segments: Sequence[Segment],
        places: Sequence[Place],
        weights: Mapping[str, Tensor] | None = None,
    ) -> list[Taken]:
        """Runs one forward pass over the segments' rows, and a backward pass for each target that wants gradients.

        Args:
            frame: how the model is called.
            segments: the rows.
            places: the layers to keep.
            weights: parameters and buffers in place of the model's own, by name.
        """
        self.lent = None if weights is None else fitted(self.module, weights, self.adapter.name)

        wanted = wanted_of(segments)
        # Gradients by a norm's own parameters, and its function's place, exist only where it runs as it is.
        own = any(isinstance(by, Parameters) for by in wanted) or any(
            place.function == "batch_norm" for place in places
        )
        self.as_is = self._is_small(frame, segments, places, wanted)

        def once() -> list[Taken]:
            with self.weights_last(), contextlib.nullcontext() if own or self.as_is else self._norms():
                return self._run(frame, segments, places)

        try:
            return self._confirmed(frame, segments, places, self.somehow(once))
        finally:
            self.as_is = False

    def _is_small(self, frame: Frame, segments: Sequence[Segment], places: Sequence[Place], wanted: set[By]) -> bool:
        """Whether a pass without a graph up to the last maps has rows too few to pay for reordering large weights.

        A forward pass of resnet50 is a tenth faster with the channels last at eight rows, and not at all at one, for
        which copying the weights takes a fifteenth of it. With a backward pass it always pays.
        """
        if not places or not self._weights.convolutions or "graph" in self.ways:
            return False
        first = segments[0]
        traced = self.trace(frame, first.inputs, first.extras)
        rows = sum(segment.rows for segment in segments)
        return wanted <= {traced.auto} and rows * traced.bytes < 2 * self._weights.bytes

    def weights_last(self) -> contextlib.AbstractContextManager[None]:
        """Runs a block with the convolutions' weights in the memory format of the inputs."""
        last = self.memory_format is torch.channels_last
        return self._weights() if last else contextlib.nullcontext()

    def _confirmed(
        self, frame: Frame, segments: Sequence[Segment], places: Sequence[Place], taken: list[Taken]
    ) -> list[Taken]:
        """What was taken, without factors of layers of which it was guessed wrongly where each example's rows lie.

        One example alone leaves nothing to guess but what is the same for all of them, which shows beside another.
        Where there is a doubt, the first is run alone, or twice where it is the only one, once for each form of inputs.
        """
        found = [(one, by, g) for one in taken for all_by in one.gradients for by, g in all_by.items()]
        doubtful = [(one, by, g) for one, by, g in found if isinstance(g, Factors) and g.doubtful]
        if not doubtful:
            return taken
        forms = [tuple(leaf.shape[1:]) for leaf in tensors_of(segments[0].inputs)]
        rows = sum(one.rows for one in segments)
        key = ("rows", self.parts.structure, *forms, rows, doubtful[0][2].doubtful)
        wrong = self.adapter.cache.get(key)
        if wrong is None:
            first = segments[0].first()
            (other,) = self._run(frame, [first if rows > 1 else first.twice()], places)
            pairs = zip(taken[0].gradients, other.gradients, strict=True)
            wrong = frozenset[str]().union(
                *(g.differing(one[by]) for many, one in pairs for by, g in many.items() if isinstance(by, Parameters))
            )
            self.adapter.cache[key] = wrong
        for one in taken:
            for all_by in one.gradients:
                all_by.update({by: g.without(wrong) for by, g in all_by.items() if isinstance(g, Factors)})
        return taken

    def _run(self, frame: Frame, segments: Sequence[Segment], places: Sequence[Place]) -> list[Taken]:
        wanted = wanted_of(segments)
        rows = sum(segment.rows for segment in segments)
        joined = segments[0].inputs if len(segments) == 1 else _joined([segment.inputs for segment in segments])
        leaves = each(self.fresh, joined)
        extras = {
            name: torch.cat([segment.extras[name] for segment in segments]).clone() for name in segments[0].extras
        }
        uses = self._watch_parameters(wanted, rows)
        if INPUT in wanted:
            leaves = each(_differentiable, leaves)
        elif uses is not None or "graph" in self.ways:
            leaves = each(lambda leaf: leaf.requires_grad_(leaf.is_floating_point()), leaves)
        starts = {by for by in wanted if isinstance(by, Place)}
        # The model gets a copy, since it may change its inputs in place, which autograd forbids for leaves.
        shown = each(lambda leaf: leaf.clone() if leaf.requires_grad else leaf, leaves)
        watch = Watch(self.module, places, starts=starts, careful=self.ways)
        with torch.set_grad_enabled(bool(wanted) or "graph" in self.ways), watch(), uses or contextlib.nullcontext():
            raw = self.call(frame, shown, extras)
        if uses is not None:
            uses.check()
        check_rows(watch.kept, rows)
        taken = score(self.adapter, segments, raw, watch.kept, rows)
        return self._differentiate(segments, taken, watch.kept, leaves, uses)

    def digest(self, before: Mapping[str, str], weights: Mapping[str, Tensor] | None = None) -> str:
        """A digest of the model's structure, settings, output and weights, or of those that stand for its own.

        Args:
            before: the settings before a pass. What the pass changed, such as a count of calls, is left out.
            weights: those that stand for the model's own.
        """
        fixed = dict(before.items() & settings(self.module).items())
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers()), **(weights or {})}
        return digest(repr(self.module), plain(self.adapter.output), fixed, named)

    def _watch_parameters(self, wanted: set[Any], rows: int) -> ParameterWatch | None:
        """What notes the uses of parameters, where gradients by them are wanted."""
        patterns = [by for by in wanted if isinstance(by, Parameters)]
        if not patterns:
            return None
        named = dict(self.module.named_parameters())
        names = frozenset[str]().union(*(one.among(list(named)) for one in patterns))
        return ParameterWatch({**named, **(self.lent or {})}, names, rows, copies="copies" in self.ways)

    def _differentiate(
        self,
        segments: Sequence[Segment],
        scored: list[ScoredRows],
        kept: dict[Place, Tensor],
        leaves: Any,
        uses: ParameterWatch | None,
    ) -> list[Taken]:
        by_target: list[dict[By, Any]] = []
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
                raise Unsuitable(DETACHED.format("inputs" if INPUT in by else [_order(one) for one in by]))
            backwards += 1
            tensors = [_sources(one, leaves, kept, uses) for one in by]
            gradients = self._backward(total, [t for several in tensors for t in several], retain=index != last)
            found: dict[By, Any] = {}
            for one, several in zip(by, tensors, strict=True):
                own, gradients = gradients[: len(several)], gradients[len(several) :]
                if isinstance(one, Parameters) and uses is not None:
                    found[one] = uses.factors(own, one)
                else:
                    found[one] = by_inputs(own, leaves) if isinstance(one, str) else by_layer(own[0], one)  # type: ignore[arg-type]
            by_target.append(found)
        return shares(segments, scored, kept, by_target, backwards)

    def _backward(self, total: Tensor, tensors: list[Any], *, retain: bool) -> list[Tensor | None]:
        """The gradients of a score by tensors."""
        if not tensors:  # no use of a parameter is known
            return []
        try:
            return list(torch.autograd.grad(total, tensors, retain_graph=retain, allow_unused=True))
        except RuntimeError as error:
            if is_out_of_memory(error) or self._other_way(error):
                raise
            raise ModelError(f"the backward pass through {self.adapter.name} failed: {error}") from error


def _tensors(parts: Parts) -> Iterator[Tensor]:
    yield from parts.parameters
    yield from parts.buffers


def _order(by: By) -> str:
    return by if isinstance(by, str) else "the parameters" if isinstance(by, Parameters) else by.layer.name


def _sources(by: By, leaves: Any, kept: dict[Place, Tensor], uses: ParameterWatch | None) -> list[Any]:
    """Where in the graph something is that gradients are wanted by."""
    if isinstance(by, str):
        return tensors_of(leaves)
    if isinstance(by, Parameters):
        return [] if uses is None else uses.edges
    return [kept[by]]


def _differentiable(leaf: Tensor) -> Tensor:
    if not leaf.is_floating_point():
        raise Unsuitable(
            f"gradients by an input of type {leaf.dtype} do not exist; ask for a layer's gradient, such as "
            "the embedding's"
        )
    return leaf.requires_grad_()


def _joined(inputs: Sequence[Any]) -> Any:
    return each(lambda *leaves: torch.cat(leaves), *inputs)
