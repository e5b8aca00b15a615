"""Capture: a model's forward pass as a list of functional ATen operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.errors import PellucidError, Unsuitable

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


def slots_in(value: Any) -> Iterator[int]:
    """The numbers of all slots in an operation's arguments, in order."""
    if isinstance(value, Slot):
        yield value.index
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from slots_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from slots_in(part)


def base_name(target: Any) -> str:
    """An operation's name without namespace and overload: "relu" of `aten.relu.default`."""
    return str(target._schema.name).rpartition("::")[2]


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
            run = functionalize(func.decompose, remove="mutations") if self.cuts else func.decompose
            with self:
                return run(*args, **kwargs)
        name = base_name(func)
        template = pytree.tree_map_only(Tensor, lambda tensor: Slot(self.slot(tensor)), (args, kwargs))
        depends = set() if name in BY_FORM else self._depends.intersection(slots_in(template))
        if depends and (name in DATA_DEPENDENT or (name == "index" and _by_mask(args, self))):
            raise DataDependent(name, self.layer)
        changed = [
            argument.name for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write
        ]
        before = [id(value) for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if changed:
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
        slots = list(slots_in(template))
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
        return result

    def _sharing(self, tensor: Tensor, slot: int) -> list[Tensor]:
        """The other tensors known that lie in the same memory."""
        storage = tensor.untyped_storage().data_ptr()
        others = [one for one in self._alive if one is not tensor and self._slots.get(id(one)) != slot]
        return [one for one in others if storage and one.untyped_storage().data_ptr() == storage]


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


def capture(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], module: nn.Module) -> Graph:
    """Records a function of tensors that runs a module.

    What the function changes in place becomes functional first; attention is taken apart into its products, and
    recurrent layers into their steps.

    Args:
        function: takes the inputs and returns tensors.
        inputs: what it is recorded with.
        module: whose parts are noted as the operations' layers.

    Raises:
        Unsuitable: with the reason, when no graph can stand for the function.
    """
    problem: Exception | None = None
    for functional in (True, False):
        recorder = Recorder(inputs, cuts=functional)
        run = functionalize(function, remove="mutations") if functional else function
        try:
            with torch.enable_grad(), _plain_kernels(module), _layers(module, recorder), recorder:
                outputs = run(*inputs)
            return recorder.finish(outputs)
        except Unsuitable as error:
            if isinstance(error, DataDependent) or problem is not None:
                raise
            problem = error
        except PellucidError:
            raise
        except Exception as error:  # whatever the model raises
            # Functions with a backward pass of their own and some checkpoints do not run under `functionalize`.
            problem = problem or error
    raise Unsuitable(
        f"the model cannot be captured as a graph ({type(problem).__name__}: {str(problem).splitlines()[0]}); choose a "
        "technique without rules, such as integrated_gradients"
    ) from problem


@contextmanager
def _plain_kernels(module: nn.Module) -> Iterator[None]:
    """Keeps attention and recurrent layers from running as one opaque kernel."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_fast_path_off())
        stack.enter_context(quiet())
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch speaks of an accelerator that is not there
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield
        # The flags are put back by the stack, where torch may speak again.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stack.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Runs a model whose inputs need no gradients without the warning that checkpoints give then."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        yield


@contextmanager
def _fast_path_off() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _layers(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Tells the recorder which module runs."""
    stack: list[str] = []

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def enter(_: nn.Module, __: Any) -> None:
            stack.append(recorder.layer)
            recorder.layer = name

        return enter

    def after(_: nn.Module, __: Any, ___: Any) -> None:
        recorder.layer = stack.pop()

    handles = []
    try:
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(before(name)))
            handles.append(part.register_forward_hook(after, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    return pytree.tree_map_only(Slot, lambda slot: values[slot.index], template)
