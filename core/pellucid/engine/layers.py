"""Finding layers: every place of a model by name, and the one that `layer="auto"` means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.engine.outputs import first_tensor
from pellucid.engine.watch import Functions, Place
from pellucid.errors import LayerError, nearest
from pellucid.protocol.look import Layer

SPATIAL_FUNCTIONS = frozenset(
    {"conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
     "lp_pool2d", "max_pool2d_with_indices", "boolean_dispatch", "interpolate", "pixel_unshuffle"}
)  # fmt: skip
"""Functions whose four-dimensional results are maps with the channels first, beyond doubt."""

TURNS = frozenset({"transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "adjoint", "get"})
"""Functions that exchange axes; the properties of a tensor go by the name "get"."""

MOST_PREFIX_TOKENS = 16
"""A class token, a distillation token and registers: no known vision transformer has more before its grid."""


@dataclass(frozen=True, eq=False)
class Traced:
    """One event of a traced forward pass.

    Attributes:
        place: where it is.
        output: its tensor, of one example.
        event: its place in the order of all events.
        late: whether the model used the tensor before it came by here, so that a gradient taken here would miss that.
        given: the events whose tensors a function was given.
    """

    place: Place
    output: Tensor
    event: int
    late: bool = False
    given: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward pass of one example showed of a model.

    Attributes:
        places: every module call and function call that returned a tensor with the batch first, by name.
        calls: how often each module ran.
        modules: the names of all modules.
        aliases: the further names of modules that are registered more than once.
        auto: the layer that "auto" means, or the reason why there is none.
        bytes: what all outputs take together, for one example.
    """

    places: dict[str, Place]
    calls: dict[str, int]
    modules: tuple[str, ...]
    aliases: dict[str, str]
    auto: Place | str
    bytes: int

    def find(self, name: str) -> Place:
        """The place of a layer by its name.

        Raises:
            LayerError: when there is none, the module does not run, or runs more than once.
        """
        if name == "auto":
            if isinstance(self.auto, str):
                raise LayerError(self.auto)
            return self.auto
        base, colon, call = name.partition(":")
        name = self.aliases.get(base, base) + colon + call
        if name in self.places:
            return self.places[name]
        if name in self.calls:
            if self.calls[name] > 1:
                calls = [f"{name}:{call}" for call in range(self.calls[name])]
                raise LayerError(
                    f"layer '{name}' runs {len(calls)} times in one forward pass; say which call is meant: "
                    + ", ".join(f"'{call}'" for call in calls[:6])
                )
            raise LayerError(
                f"layer '{name}' returns no tensor with one row for each example, so that it cannot be looked at"
            )
        if name in self.modules:
            raise LayerError(f"layer '{name}' exists but never runs in a forward pass of these inputs")
        known = [*self.places, *self.modules]
        raise LayerError(
            f"the model has no layer '{name}'.{nearest(name, known)} `pellucid doctor` lists a model's layers; 'auto' "
            "finds the last map of positions before the head"
        )

    def with_auto(self, name: str) -> Trace:
        """The same, where "auto" means a layer by its name."""
        try:
            return replace(self, auto=self.find(name))
        except LayerError as error:
            return replace(self, auto=f"layer='auto' means '{name}' of this model, but {error}")


def trace(module: nn.Module, run: Callable[[], Sequence[Tensor]], inputs: list[Tensor]) -> Trace:
    """Runs a model once on one example and notes every place where a tensor appears.

    Args:
        module: the model.
        run: runs it on the example, whose leaves require gradients where they can, and returns the logits, or, where
            they cannot be told, all tensors of the output.
        inputs: the example's tensors.
    """
    names = {part: name for name, part in module.named_modules()}
    stack: list[str] = []
    events: list[Traced] = []
    producer: dict[int, int] = {}
    counts: dict[str, int] = {}
    used: set[int] = set()

    def add(place: Place, tensor: Tensor, given: tuple[int, ...] = ()) -> None:
        producer[id(tensor)] = len(events)
        used.discard(id(tensor))
        events.append(Traced(place, tensor, len(events), given=given))

    def before(part: nn.Module, _: Any) -> None:
        stack.append(names[part])

    def after(part: nn.Module, _: Any, output: Any) -> None:
        name = names[part]
        while stack.pop() != name:
            pass  # modules that failed, and whose error the model caught
        call = counts[name] = counts.get(name, -1) + 1
        tensor = first_tensor(output)
        if tensor is None:
            return
        place = Place(_layer(f"{name}:{call}", tensor), name, call)
        made_by = producer.get(id(tensor))
        if made_by is None:
            add(place, tensor)
        else:
            events.append(Traced(place, tensor, made_by, late=id(tensor) in used))

    within: dict[str, int] = {}
    spatial: set[int] = set()

    def function(index: int, name: str, result: Any, given: dict[int, int]) -> Any:
        tensor = first_tensor(result)
        assert tensor is not None
        used.update(given)
        path = f"{stack[-1] if stack else ''}/{name}"
        call = within[path] = within.get(path, -1) + 1
        if name in SPATIAL_FUNCTIONS:
            spatial.add(len(events))
        sources = tuple(producer[one] for one in given if one in producer)
        add(Place(_layer(f"{path}:{call}", tensor), None, index, name), tensor, sources)
        return result

    handles = [part.register_forward_pre_hook(before) for part in names]
    handles += [part.register_forward_hook(after) for part in names]
    try:
        with Functions(function, range(sys.maxsize)):
            roots = run()
    finally:
        for handle in handles:
            handle.remove()

    events = [event for event in events if event.output.dim() > 0 and event.output.shape[0] == 1]
    grids = {tuple(event.output.shape[2:]) for event in events if event.event in spatial and event.output.dim() == 4}
    shapes = [tuple(tensor.shape[2:]) for tensor in inputs if tensor.dim() == 4]
    reader = _Reader({(int(h), int(w)) for h, w in grids}, shapes[0] if shapes else None)
    events = reader.read_all(events)
    calls = {name: count + 1 for name, count in counts.items()}
    places: dict[str, Place] = {}
    for event in events:
        name = event.place.layer.name
        base = name.rpartition(":")[0]
        alone = calls.get(base) == 1 if event.place.module is not None else within[base] == 0
        places[name] = event.place
        if alone:
            places[base] = _renamed(event.place, base)
    unique = {event.output.untyped_storage().data_ptr(): event.output for event in events}
    return Trace(
        places=places,
        calls=calls,
        modules=tuple(names.values()),
        aliases={
            name: names[part] for name, part in module.named_modules(remove_duplicate=False) if name != names[part]
        },
        auto=_auto(events, places, roots, {id(tensor) for tensor in inputs}),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in unique.values()),
    )


def _renamed(place: Place, name: str) -> Place:
    return replace(place, layer=replace(place.layer, name=name))


def _layer(name: str, tensor: Tensor) -> Layer:
    return Layer(name, tuple(tensor.shape[1:]))


@dataclass(frozen=True)
class _Reader:
    """Reads from shapes alone how an output's positions lie.

    Attributes:
        grids: the sizes (h, w) of all maps that convolutions and poolings made.
        image: the inputs' (H, W), or None where they are no images.
    """

    grids: set[tuple[int, int]]
    image: tuple[int, ...] | None

    def read_all(self, events: Sequence[Traced]) -> list[Traced]:
        """Notes the layouts of all outputs that have one, in the order in which they were made."""
        layers: dict[int, Layer] = {}
        sideways: set[int] = set()
        read = []
        for event in events:
            layer = event.place.layer
            if event.event in sideways or self._is_sideways(event, layers, sideways):
                sideways.add(event.event)
            else:
                layer = self.read(layer, event.output)
            layers[event.event] = layer
            read.append(replace(event, place=replace(event.place, layer=layer)))
        return read

    def _is_sideways(self, event: Traced, layers: Mapping[int, Layer], sideways: Container[int]) -> bool:
        """Whether an output (C, n) has the positions last, as its making shows, and is no sequence of C tokens."""
        shape = event.place.layer.shape
        for index in event.given if len(shape) == 2 else ():
            source = layers.get(index)
            if source is None:
                continue
            turned = source.layout == "tokens" and source.shape == shape[::-1] and event.place.function in TURNS
            flat = source.layout == "channels_first" and shape == (source.shape[0], source.grid[0] * source.grid[1])
            if turned or flat or (index in sideways and source.shape == shape):
                return True
        return False

    def read(self, layer: Layer, tensor: Tensor) -> Layer:
        """Notes the layout of a layer's output, where it has one."""
        if self.image is None or not tensor.is_floating_point():
            return layer
        shape = layer.shape
        if len(shape) == 3:
            if self._is_grid(shape[1], shape[2]):
                return replace(layer, layout="channels_first", grid=(shape[1], shape[2]))
            if self._is_grid(shape[0], shape[1]):
                return replace(layer, layout="channels_last", grid=(shape[0], shape[1]))
        if len(shape) == 2 and shape[1] > 1 and (found := self._tokens(shape[0])):
            return replace(layer, layout="tokens", grid=found, prefix=shape[0] - found[0] * found[1])
        return layer

    def _is_grid(self, h: int, w: int) -> bool:
        if h * w < 2:
            return False
        return any(h == _shrunk(a, k) and w == _shrunk(b, k) for a, b in self._known() for k in range(4))

    def _known(self) -> set[tuple[int, int]]:
        assert self.image is not None
        return self.grids or {(_shrunk(self.image[0], k), _shrunk(self.image[1], k)) for k in range(7)}

    def _tokens(self, count: int) -> tuple[int, int] | None:
        """The largest known grid, or one made of a known grid by merging patches, that the tokens can be."""
        fits = [
            (_shrunk(a, k), _shrunk(b, k))
            for a, b in self._known()
            for k in range(4)
            if 0 <= count - _shrunk(a, k) * _shrunk(b, k) <= MOST_PREFIX_TOKENS and _shrunk(a, k) * _shrunk(b, k) > 1
        ]
        # A token grid fills its sequence: of 64 tokens, 8 x 8 without a prefix rather than 7 x 7 with 15.
        return max(fits, key=lambda grid: grid[0] * grid[1], default=None)


def _shrunk(size: int, halvings: int) -> int:
    return (size + (1 << halvings) - 1) >> halvings


def _auto(events: list[Traced], places: dict[str, Place], roots: Sequence[Tensor], inputs: set[int]) -> Place | str:
    """The last map of positions before the head.

    It is found on tensors, not on module names: the last one with a known grid through which the output depends on
    more than one position. So the result of a functional ReLU counts as that of a module does; the final tokens of a
    transformer that reads its class token only do not count, and neither do class maps, which belong to the head, nor
    the queries, keys, values and hidden units within a transformer's blocks, which are of another width than its tokens
    or the results of a linear function.
    """
    roots = [root for root in roots if root.requires_grad]
    if not roots:
        return (
            "layer='auto' needs an output that depends differentiably on the inputs, and this model's does not (it is "
            "detached, or computed under no_grad or by other means than torch); name a layer instead"
        )
    candidates = [
        event
        for event in events
        if event.place.layer.layout and event.output.requires_grad and id(event.output) not in inputs
    ]
    if not candidates:
        return (
            "layer='auto' found no map of positions: expected a layer with maps (B, C, h, w), (B, h, w, C) or tokens "
            "(B, n, C) of an image's positions; name a layer instead"
        )
    last = {event.event: event for event in candidates}
    ordered = [last[event] for event in sorted(last)]
    # Not-a-number spreads backwards along every path there is, whatever the weights, zero ones too; what stays finite
    # has no path to the output.
    tracers = [torch.full_like(root, torch.nan) for root in roots]
    try:
        gradients = torch.autograd.grad(roots, [event.output for event in ordered], tracers, allow_unused=True)
    except RuntimeError as error:
        return f"layer='auto' needs a backward pass through the model, which failed ({error}); name a layer instead"
    widths = [event.place.layer.channels for event in ordered]
    classes = roots[0].shape[1] if len(roots) == 1 and roots[0].dim() > 1 else 0
    alike = widths.count(classes)
    if alike == len(widths) or alike > max(2, len(widths) / 4):
        classes = 0  # the model gives features of the same width as its maps: these are no class maps
    made_by = {event.event: event.place.function for event in events if event.place.module is None}
    best = _last(list(zip(ordered, gradients, strict=True)), made_by, classes)
    if best is None:
        return (
            "layer='auto' found maps of positions, but the output depends on none of them through more than one "
            "position; name a layer instead"
        )
    # The same tensor may be the result of a function and of several nested modules: its best-known name is the
    # outermost module's before it is used.
    same = [event.place for event in events if event.event == best.event and not event.late]
    modules = [place for place in same if place.module is not None]
    chosen = min(modules, key=lambda place: (place.module or "").count("."), default=same[0])
    short = chosen.layer.name.rpartition(":")[0]
    return _renamed(chosen, short) if short in places else chosen


def _last(found: list[tuple[Traced, Tensor | None]], made_by: Mapping[int, str], classes: int) -> Traced | None:
    """The last map that is no class map, from its gradients of not-a-number; see `_auto`."""
    widths = [event.place.layer.channels for event, _ in found if event.place.layer.layout == "tokens"]
    reached: list[tuple[Traced, int]] = []
    for event, gradient in found:
        layer = event.place.layer
        if gradient is not None and (layer.layout != "tokens" or layer.channels == widths[-1]):
            reached.append((event, int(layer.maps(gradient).isnan().any(dim=1).sum())))
    if not any(count for _, count in reached):
        reached = [(event, 2) for event, _ in reached]  # every unit is dead, so that nothing tells positions apart
    maps = [event for event, count in reached if count > 1]
    features = [event for event in maps if event.place.layer.channels != classes] or maps
    # Of tokens, a linear function's are the queries, keys and values of a block or its hidden units.
    stream = [e for e in features if e.place.layer.layout != "tokens" or made_by.get(e.event) != "linear"]
    return next(reversed(stream or features), None)
