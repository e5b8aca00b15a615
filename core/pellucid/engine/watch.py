"""Watching a forward pass: the outputs of modules and of plain functions, by the places where they appear."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pellucid.engine.outputs import first_tensor, tensors_in, with_first
from pellucid.errors import ModelError
from pellucid.protocol.look import Layer


@dataclass(frozen=True)
class Place:
    """Where in a forward pass a layer's output appears.

    Attributes:
        layer: the layer, as techniques see it; the same place may go by several names.
        module: the module's name, or None for the result of a plain function.
        call: the how-manieth call it is, of the module, or of all functions that return a tensor.
        function: the function's name, by which a changed control flow is noticed.
    """

    layer: Layer = field(compare=False)
    module: str | None
    call: int
    function: str = ""


class Functions(TorchFunctionMode):
    """Counts the functions of torch that return a tensor and hands each result to a callback, which may exchange it.

    Attributes:
        callback: takes the index, the function's name, its result, and the versions of its arguments before.
        watched: the indices of which it matters what they were given.
        paused: whether functions go uncounted, such as our own.
    """

    def __init__(self, callback: Callable[[int, str, Any, dict[int, int]], Any], watched: Container[int] = ()) -> None:
        super().__init__()
        self.callback = callback
        self.watched = watched
        self.paused = False
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function, and the callback with its index, name and result."""
        given = versions((args, kwargs)) if self.count in self.watched and not self.paused else {}
        result = function(*args, **(kwargs or {}))
        tensor = None if self.paused else first_tensor(result)
        if tensor is None:
            return result
        index, self.count = self.count, self.count + 1
        return self.callback(index, function_name(function), result, given)


def versions(value: Any) -> dict[int, int]:
    """How often each of the tensors was changed in place, by identity."""
    if type(value) is Tensor:  # by far the commonest, which needs no walk
        return {id(value): version_of(value)}
    return {id(tensor): version_of(tensor) for tensor in tensors_in(value)}


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; those made under inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """As `version_of`, for many."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # some were made under inference mode, and have none
        return [version_of(tensor) for tensor in tensors]


def function_name(function: Any) -> str:
    """The short name of a function of torch: "relu", "add", "getitem"."""
    name = resolve_name(function) or getattr(function, "__name__", "function")
    return name.rsplit(".", 1)[-1].strip("_") or "function"


class Watch:
    """Keeps the outputs at some places of one forward pass, ready for gradients.

    What is kept is the output itself; the model goes on with a copy, so that in-place functions further on cannot
    corrupt it. An output in `starts` that has no graph yet becomes the graph's start: what lies before it is then never
    recorded and costs no memory and no backward pass.

    Attributes:
        module: the model.
        places: where to look.
        starts: the places at which a graph may start.
        careful: the places whose output the model changes in place by another name, so that a copy is kept.
        kept: the outputs by place.
    """

    def __init__(
        self,
        module: nn.Module,
        places: Sequence[Place],
        *,
        starts: Container[Place] = (),
        careful: Container[Any] = (),
    ) -> None:
        self.module = module
        self.places = places
        self.starts = starts
        self.careful = careful
        self.kept: dict[Place, Tensor] = {}
        self._versions: dict[Place, int] = {}

    def _keep(self, place: Place, output: Any, given: Mapping[int, int]) -> Any:
        tensor = first_tensor(output)
        if tensor is None:
            raise ControlFlowChanged(f"layer '{place.layer.name}' returned no tensor this time")
        kept, now = tensor, version_of(tensor)
        changed = given.get(id(tensor), now) != now
        if place in self.starts and not tensor.requires_grad and tensor.is_floating_point():
            # A clone: the tensor itself may be another module's buffer, or changed in place behind our back.
            kept = tensor.detach().clone().requires_grad_()
        elif place in self.careful or (id(tensor) in given and not changed):
            # What is given back as it came, by an Identity or by Dropout, may be used elsewhere by its other name.
            kept = tensor.clone()
        self.kept[place], self._versions[place] = kept, version_of(kept)
        if changed and kept is not tensor:
            # The model may go on with the argument that it changed rather than with the result, which is the same.
            tensor.copy_(kept)
            return output
        return with_first(output, tensor, kept.clone())

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Watches while the block runs the model.

        Raises:
            ControlFlowChanged: when a place did not come by.
            Overwritten: when an output was changed in place after it was kept.
        """
        calls: dict[str, int] = {}
        arguments: dict[str, list[dict[int, int]]] = {}
        wanted = {(place.module, place.call): place for place in self.places if place.module is not None}
        functions = {place.call: place for place in self.places if place.module is None}

        def before(name: str) -> Callable[[nn.Module, Any, Any], None]:
            noted = arguments.setdefault(name, [])

            def note(_: nn.Module, args: Any, kwargs: Any) -> None:
                noted.append(versions(args[0] if len(args) == 1 and not kwargs else (args, kwargs)))

            return note

        def after(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            def keep(_: nn.Module, inputs: Any, output: Any) -> Any:
                call = calls[name] = calls.get(name, -1) + 1
                place, given = wanted.get((name, call)), arguments[name].pop()
                if place is None:
                    return None
                mode.paused = True
                try:
                    return self._keep(place, output, given)
                finally:
                    mode.paused = False

            return keep

        def callback(index: int, name: str, result: Any, given: dict[int, int]) -> Any:
            place = functions.get(index)
            if place is None:
                return result
            if place.function != name:
                raise ControlFlowChanged(f"layer '{place.layer.name}' was '{place.function}' and is now '{name}'")
            return self._keep(place, result, given)

        mode = Functions(callback, functions)
        with contextlib.ExitStack() as stack:
            for name in {name for name, _ in wanted}:
                part = self.module.get_submodule(name)
                stack.callback(part.register_forward_pre_hook(before(name), with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(after(name)).remove)
            if functions:
                stack.enter_context(mode)
            yield
        missing = [place.layer.name for place in self.places if place not in self.kept]
        if missing:
            raise ControlFlowChanged(f"the layers {missing} did not run this time")
        for place, kept in self.kept.items():
            if version_of(kept) != self._versions[place]:
                raise Overwritten(place)


class ControlFlowChanged(ModelError):
    """A forward pass took another way than when the model's layers were found."""


class Overwritten(ModelError):
    """A layer's output was changed in place by another name, so that what was kept is not what it gave.

    Attributes:
        place: the layer.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        super().__init__(f"the output of layer '{place.layer.name}' was changed in place after it was kept")


def same_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A copy in the given memory format where the tensor is an image batch, else a plain copy."""
    if tensor.dim() == 4 and tensor.is_floating_point():
        return tensor.clone(memory_format=memory_format)
    return tensor.clone(memory_format=torch.contiguous_format)
