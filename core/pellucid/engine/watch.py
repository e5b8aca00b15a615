"""Watching a forward pass: the outputs of modules and of plain functions, by the places where they appear."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pellucid.errors import ModelError
from pellucid.protocol.look import Layer


@dataclass(frozen=True)
class Place:
    """Where in a forward pass a layer's output appears.

    Attributes:
        layer: the layer, as techniques see it.
        module: the module's name, or None for the result of a plain function.
        call: the how-manieth call it is, of the module, or of all functions that return a tensor.
        function: the function's name, by which a changed control flow is noticed.
    """

    layer: Layer
    module: str | None
    call: int
    function: str = ""


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for an output: itself, or the first of a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def _with_first(value: Any, replaced: Tensor, tensor: Tensor) -> Any:
    """The same output with its first tensor exchanged."""
    if value is replaced:
        return tensor
    if isinstance(value, dict):
        new = type(value)()
        new.update({key: _with_first(part, replaced, tensor) for key, part in value.items()})
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_first(part, replaced, tensor) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_with_first(part, replaced, tensor) for part in value)
    return value


class Functions(TorchFunctionMode):
    """Counts the functions of torch that return a tensor and hands each result to a callback, which may exchange it."""

    def __init__(self, callback: Callable[[int, str, Any], Any]) -> None:
        super().__init__()
        self.callback = callback
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function, and the callback with its index, name and result."""
        result = function(*args, **(kwargs or {}))
        if first_tensor(result) is None:
            return result
        index, self.count = self.count, self.count + 1
        return self.callback(index, function_name(function), result)


def function_name(function: Any) -> str:
    """The short name of a function of torch: "relu", "add", "getitem"."""
    name = resolve_name(function) or getattr(function, "__name__", "function")
    return name.rsplit(".", 1)[-1].strip("_") or "function"


class Watch:
    """Keeps the outputs at some places of one forward pass, ready for gradients.

    What is kept is the output itself; the model goes on with a copy, so that in-place functions further on cannot
    corrupt it. With `start_graph`, an output that has no graph yet becomes the graph's start: what lies before it is
    then never recorded and costs no memory and no backward pass.

    Attributes:
        kept: the outputs by place.
    """

    def __init__(self, module: nn.Module, places: list[Place], *, start_graph: bool) -> None:
        self.module = module
        self.places = places
        self.start_graph = start_graph
        self.kept: dict[Place, Tensor] = {}

    def _keep(self, place: Place, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None:
            raise ModelError(f"layer '{place.layer.name}' returned no tensor this time; its control flow changed")
        kept = tensor
        if self.start_graph and not tensor.requires_grad and tensor.is_floating_point():
            # A clone: the tensor itself may be another module's buffer, or changed in place behind our back.
            kept = tensor.detach().clone().requires_grad_()
        self.kept[place] = kept
        return _with_first(output, tensor, kept.clone())

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Watches while the block runs the model."""
        modules = dict(self.module.named_modules(remove_duplicate=False))
        calls: dict[str, int] = {}
        wanted = {(place.module, place.call): place for place in self.places if place.module is not None}
        functions = {place.call: place for place in self.places if place.module is None}

        def hook(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            def keep(_: nn.Module, inputs: Any, output: Any) -> Any:
                call = calls[name] = calls.get(name, -1) + 1
                place = wanted.get((name, call))
                return None if place is None else self._keep(place, output)

            return keep

        def callback(index: int, name: str, result: Any) -> Any:
            place = functions.get(index)
            if place is None:
                return result
            if place.function != name:
                raise ControlFlowChanged(f"layer '{place.layer.name}' was '{place.function}' and is now '{name}'")
            return self._keep(place, result)

        handles = []
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [handle.remove() for handle in handles])
            handles.extend(modules[name].register_forward_hook(hook(name)) for name in {name for name, _ in wanted})
            if functions:
                stack.enter_context(Functions(callback))
            yield
        missing = [place.layer.name for place in self.places if place not in self.kept]
        if missing:
            raise ControlFlowChanged(f"the layers {missing} did not run this time")


class ControlFlowChanged(ModelError):
    """A forward pass took another way than when the model's layers were found."""


def same_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A copy in the given memory format where the tensor is an image batch, else a plain copy."""
    if tensor.dim() == 4 and tensor.is_floating_point():
        return tensor.clone(memory_format=memory_format)
    return tensor.clone(memory_format=torch.contiguous_format)
