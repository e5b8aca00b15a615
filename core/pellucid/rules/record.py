"""The recorder: writes down, as a graph, every operation that runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.errors import Unsuitable
from pellucid.rules.graph import Graph, Op, Slot, base_name, exchanged, slots_in

DATA_DEPENDENT = frozenset(
    {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim",
     "unique_consecutive", "repeat_interleave"}
)  # fmt: skip
"""Operations whose result, as a Python value or in its shape, depends on the numbers in a tensor."""

RANDOM = frozenset(
    {"bernoulli", "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal",
     "uniform", "multinomial", "native_dropout", "exponential", "rrelu_with_noise", "poisson", "empty", "empty_like",
     "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}
)  # fmt: skip
"""Operations that do not give the same every time."""

BY_FORM = frozenset(
    {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "new_empty", "empty_like",
     "new_empty_strided"}
)  # fmt: skip
"""Operations that look at the form of a tensor only, not at its numbers."""


class Recorder(TorchDispatchMode):
    """Writes down every operation that runs below autograd.

    Attributes:
        graph: what has been recorded.
        layer: the module that runs now.
        cuts: whether operations that run where gradients are off are marked as cut.
    """

    def __init__(self, inputs: Sequence[Tensor], *, cuts: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.layer = ""
        self.cuts = cuts
        self._slots: dict[int, int] = {}
        self._alive: list[Any] = []  # identities stay true only while the tensors live
        self._depends: set[int] = set()
        self._values: dict[int, Tensor] = {}
        self._apart: set[int] = set()  # of views, those that torch promises to be used in the place of what they are of
        for tensor in inputs:
            self.graph.inputs.append(self.slot(tensor))
        self._depends.update(self.graph.inputs)

    def slot(self, tensor: Tensor) -> int:
        """The slot of a tensor; one that is not known yet is a constant."""
        known = self._slots.get(id(tensor))
        if known is None:
            known = self._new(tensor)
            if known not in self.graph.inputs:
                self.graph.constants[known] = tensor
        return known

    def _new(self, tensor: Tensor) -> int:
        slot = self._slots[id(tensor)] = len(self.graph.shapes)
        self._alive.append(tensor)
        self.graph.shapes.append(tuple(tensor.shape))
        self.graph.dtypes.append(tensor.dtype)
        return slot

    def finish(self, outputs: Sequence[Any]) -> Graph:
        """The graph that makes the given outputs of the inputs."""
        graph = self.graph
        graph.outputs = [self.slot(output) for output in outputs]
        for slot in graph.inputs:
            graph.constants.pop(slot, None)
        graph.prune()
        self._fold()
        self._alive.clear()
        return graph

    def _fold(self) -> None:
        """Keeps the results of operations that depend on nothing, such as `arange`, in place of the operations."""
        graph, bound = self.graph, set(self.graph.inputs) | set(self.graph.constants)
        kept = []
        for op in graph.ops:
            name = base_name(op.target)
            if name not in BY_FORM and (name in RANDOM or bound.intersection(slots_in((op.args, op.kwargs)))):
                bound.update(op.out)
                kept.append(op)
            else:
                graph.constants.update({slot: self._values[slot] for slot in op.out if slot in self._values})
        graph.ops = kept
        graph.prune()
        self._values.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and writes it down."""
        kwargs = kwargs or {}
        if func._can_decompose():
            # What `functionalize` hands on whole, such as recurrent layers, changes its own tensors in place.
            # A BatchNorm in eval mode changes none, and torch ends the process where a functional one has strided maps.
            quiet = base_name(func) == "native_batch_norm" and (not args[5] or args[3] is None)
            run = functionalize(func.decompose, remove="mutations") if self.cuts and not quiet else func.decompose
            with self:
                return run(*args, **kwargs)
        name = base_name(func)
        template = exchanged((args, kwargs), Tensor, lambda tensor: Slot(self.slot(tensor)))
        depends = set() if name in BY_FORM else self._depends.intersection(slots_in(template))
        if depends and (name in DATA_DEPENDENT or (name == "index" and _by_mask(args, self))):
            raise DataDependent(name, self.layer)
        before: list[int] = []
        if changed := _writes(func):
            exchanged((args, kwargs), Tensor, lambda tensor: before.append(id(tensor)))
            for slot in slots_in(template):
                if slot in self._values:
                    self._values[slot] = self._values[slot].clone()
        result = func(*args, **kwargs)
        if changed:
            return self._changed(func, name, template, result, depends, before)
        self._add(func, template, result, bool(depends))
        return result

    def _add(self, func: Any, template: Any, result: Any, depends: bool) -> None:
        results = result if isinstance(result, (tuple, list)) else (result,)
        tensors = [one if isinstance(one, Tensor) else None for one in results]
        if not any(one is not None for one in tensors):
            return
        out = tuple(-1 if one is None else self._new(one) for one in tensors)
        if depends:
            self._depends.update(out)
        else:
            self._values.update({slot: one for slot, one in zip(out, tensors, strict=True) if one is not None})
        cut = (self.cuts and not torch.is_grad_enabled()) or base_name(func) == "detach"
        if base_name(func).startswith("unsafe_"):
            self._apart.update(id(one) for one in tensors)
        single = not isinstance(result, (tuple, list))
        self.graph.ops.append(Op(func, template[0], template[1], out, single, self.layer, cut))

    def _changed(self, func: Any, name: str, template: Any, result: Any, depends: set[int], given: list[int]) -> Any:
        """An operation in place, which is only left where nothing else can see the change."""
        functional = _functional(func)
        slots = slots_in(template)
        target = slots[0] if slots else -1
        if functional is None or not isinstance(result, Tensor) or id(result) != given[0]:
            if depends:
                raise Unsuitable(
                    f"the operation '{name}'{_where(self.layer)} changes tensors in place in a way that cannot be "
                    "captured; write it as a function, or choose a technique without rules"
                )
            return result
        alone = torch.Tag.inplace_view in func.tags or id(result) in self._apart
        shared = [] if alone else self._sharing(result, target)
        if shared and (depends or any(self._slots[id(one)] in self._depends for one in shared)):
            raise Unsuitable(
                f"the operation '{name}'{_where(self.layer)} changes a view in place that cannot be captured; write it "
                "as a function, or choose a technique without rules"
            )
        self._slots.pop(id(result), None)
        self._add(functional, template, result, bool(depends))
        if shared:
            self._written(name, result, shared)
        return result

    def _written(self, name: str, part: Tensor, shared: list[Tensor]) -> None:
        """Lets all that lies in the memory of a changed part see the change, where nothing of it is the input's."""
        aten = torch.ops.aten
        known = [one for one in shared if id(one) in self._slots]
        size = part.untyped_storage().nbytes()
        whole = next((one for one in known if one.is_contiguous() and one.numel() * one.element_size() == size), None)
        if whole is None:
            raise Unsuitable(
                f"the operation '{name}'{_where(self.layer)} changes a view in place that cannot be captured; write it "
                "as a function, or choose a technique without rules"
            )

        def place(tensor: Tensor) -> tuple[list[int], list[int], int]:
            return list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset())

        slots = Slot(self.slot(whole)), Slot(self.slot(part))
        self._add(aten.as_strided_scatter.default, ((*slots, *place(part)), {}), whole, False)
        for one in known:
            if one is not whole:
                self._add(aten.as_strided.default, ((Slot(self.slot(whole)), *place(one)), {}), one, False)

    def _sharing(self, tensor: Tensor, slot: int) -> list[Tensor]:
        """The other tensors known that lie in the same memory."""
        storage = tensor.untyped_storage().data_ptr()
        others = [one for one in self._alive if one is not tensor and self._slots.get(id(one)) != slot]
        return [one for one in others if storage and one.untyped_storage().data_ptr() == storage]


@cache
def _writes(func: Any) -> bool:
    """Whether an operation changes any of its arguments in place."""
    return any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)


@cache
def _functional(func: Any) -> Any:
    """The operation that does without in place what `func` does in place."""
    packet = getattr(torch.ops.aten, base_name(func).removesuffix("_"), None)
    wanted = [str(argument.type) for argument in func._schema.arguments]
    for overload in [] if packet is None else packet.overloads():
        found = getattr(packet, overload)
        if [str(argument.type) for argument in found._schema.arguments] == wanted:
            return found
    return None


def _by_mask(args: tuple[Any, ...], recorder: Recorder) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _where(layer: str) -> str:
    return f" in '{layer}'" if layer else ""


class DataDependent(Unsuitable):
    """The model asks for a number of its input while it runs."""

    def __init__(self, name: str, layer: str) -> None:
        super().__init__(
            f"the model's control flow or a shape depends on its input's values (operation '{name}'{_where(layer)}), "
            "so that one graph cannot stand for it; choose a technique without rules, such as integrated_gradients"
        )
