"""The parts of a model, found in one walk: deep models have hundreds, and each walk takes a share of a small pass."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.engine.watch import versions_of

PLAIN = frozenset({bool, int, float, str, tuple, types.NoneType, types.FunctionType})


class Attributes(list[Any]):
    """Values that are equal to others when they are the same objects, which is found out faster than what they are."""

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Attributes:
        """The plain attributes of modules."""
        return cls(value for part in modules for value in part.__dict__.values() if type(value) in PLAIN)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and len(self) == len(other) and all(map(is_, self, other))


@dataclass(frozen=True, eq=False)
class Parts:
    """What a model is made of, each thing once.

    Attributes:
        modules: by name, in the order of `named_modules`.
    """

    modules: dict[str, nn.Module]

    @cached_property
    def kinds(self) -> frozenset[type[nn.Module]]:
        """The classes of the modules."""
        return frozenset(map(type, self.modules.values()))

    @cached_property
    def parameters(self) -> list[Tensor]:
        """All parameters, as they were when first asked."""
        return _distinct(part._parameters for part in self.modules.values() if part._parameters)

    @cached_property
    def buffers(self) -> list[Tensor]:
        """All buffers, as they were when first asked."""
        return _distinct(part._buffers for part in self.modules.values() if part._buffers)

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """What changes when a module is added, removed, renamed or exchanged."""
        return tuple(self.modules), tuple(map(id, self.modules.values()))

    @cached_property
    def attributes(self) -> Attributes:
        """The plain attributes of the modules, such as a stride or a flag that a forward pass asks."""
        return Attributes.of(self.modules.values())

    @cached_property
    def switches(self) -> Attributes:
        """Those of modules that are not torch's own: by them a forward pass may take another way."""
        return Attributes.of(
            part for part in self.modules.values() if not type(part).__module__.startswith("torch.nn.modules.")
        )

    @cached_property
    def state(self) -> tuple[Any, ...]:
        """What changes when a parameter or buffer is exchanged, moved, or changed in place; as it was when first asked.

        A change in place through `.data` does not show: autograd does not count it.
        """
        tensors = [*self.parameters, *self.buffers]
        return tuple(map(id, tensors)), _addresses(tensors), tuple(versions_of(tensors))


def parts_of(module: nn.Module) -> Parts:
    """Walks through a model once."""
    modules: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    waiting = [("", module)]
    while waiting:
        name, part = waiting.pop()
        if part in seen:
            continue
        seen.add(part)
        modules[name] = part
        if children := part._modules:
            prefix = f"{name}." if name else ""
            waiting += [(prefix + key, child) for key, child in reversed(children.items()) if child is not None]
    return Parts(modules)


def _addresses(tensors: list[Tensor]) -> tuple[int, ...]:
    try:
        return tuple(map(Tensor.data_ptr, tensors))
    except RuntimeError:  # sparse tensors have none
        return tuple(one.data_ptr() if one.layout is torch.strided else 0 for one in tensors)


def _distinct(groups: Iterable[dict[str, Any]]) -> list[Any]:
    return list({id(tensor): tensor for own in groups for tensor in own.values() if tensor is not None}.values())
