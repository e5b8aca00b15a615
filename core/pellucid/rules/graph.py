"""Graphs: a model's forward pass as a list of functional ATen operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """A value of the graph, by its number."""

    index: int


@dataclass(frozen=True, eq=False)
class Op:
    """One operation of the graph.

    Attributes:
        target: the ATen operation.
        args: its positional arguments, with a `Slot` for each tensor.
        kwargs: its keyword arguments, likewise.
        out: the slots of its results, -1 for one that is no tensor.
        single: whether it returns one tensor rather than several.
        layer: the module that ran it, "" at the top.
        cut: whether it ran where gradients were switched off, so that nothing is carried back through it.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[int, ...]
    single: bool
    layer: str
    cut: bool


@dataclass(eq=False)
class Graph:
    """A model's forward pass for inputs of one form.

    Attributes:
        ops: the operations, each after those it needs.
        inputs: the slots of the inputs' leaves and of the extras.
        outputs: the slots of what the function returned; -1 for a constant that no operation made.
        constants: the tensors that no operation makes: the model's parameters and buffers themselves.
        shapes: the shape of every slot.
        dtypes: the type of every slot.
        seconds: how long the capture took.
    """

    ops: list[Op] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    seconds: float = 0.0

    def prune(self) -> None:
        """Drops what no output needs."""
        needed = set(self.outputs)
        kept: list[Op] = []
        for op in reversed(self.ops):
            if needed.intersection(op.out):
                kept.append(op)
                needed.update(slots_in((op.args, op.kwargs)))
        self.ops = kept[::-1]
        self.constants = {slot: tensor for slot, tensor in self.constants.items() if slot in needed}


def slots_in(value: Any) -> list[int]:
    """The numbers of all slots in an operation's arguments, in order."""
    found: list[int] = []
    _gather((value,), found)
    return found


def _gather(parts: Iterable[Any], found: list[int]) -> None:
    for part in parts:
        if isinstance(part, Slot):
            found.append(part.index)
        elif isinstance(part, (tuple, list)):
            _gather(part, found)
        elif isinstance(part, dict):
            _gather(part.values(), found)


def exchanged(value: Any, kind: type[T], exchange: Callable[[T], Any]) -> Any:
    """An operation's arguments with everything of one kind exchanged."""
    if isinstance(value, kind):
        return exchange(value)
    if isinstance(value, (tuple, list)):
        return type(value)([exchanged(part, kind, exchange) for part in value])
    if isinstance(value, dict):
        return {name: exchanged(part, kind, exchange) for name, part in value.items()}
    return value


@cache
def base_name(target: Any) -> str:
    """An operation's name without namespace and overload: "relu" of `aten.relu.default`."""
    return str(target._schema.name).rpartition("::")[2]


def replay(
    graph: Graph,
    inputs: Sequence[Tensor],
    change: Callable[[Op, Any, Any], Any] | None = None,
    values: dict[int, Any] | None = None,
) -> list[Tensor]:
    """Runs a graph.

    Args:
        graph: the graph.
        inputs: its inputs.
        change: runs an operation in another way, given its arguments.
        values: is filled with all values by slot.
    """
    values = {} if values is None else values
    values.update(graph.constants)
    values.update(zip(graph.inputs, inputs, strict=True))
    for op in graph.ops:
        args, kwargs = filled((op.args, op.kwargs), values)
        result = op.target(*args, **kwargs) if change is None else change(op, args, kwargs)
        values.update(zip(op.out, (result,) if op.single else result, strict=False))
    return [values[slot] for slot in graph.outputs]


def filled(template: Any, values: Mapping[int, Any] | Sequence[Any]) -> Any:
    """An operation's arguments with the tensors in the slots' places."""
    return exchanged(template, Slot, lambda slot: values[slot.index])
