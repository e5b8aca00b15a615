"""Optimisation: a copy of the model, rewritten for speed, with what that changes measured."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pellucid.adapter import Adapter
from pellucid.engine.guard import Kept
from pellucid.engine.outputs import first_tensor, tensors_in
from pellucid.engine.parts import Parts, parts_of
from pellucid.engine.passes import Engine
from pellucid.errors import ModelError
from pellucid.protocol.leaves import tensors_of
from pellucid.protocol.sample import Sample
from pellucid.results import Check

MOST_CHANGE = 1e-3
"""By how much an output may change, as a share of the greatest."""


@dataclass(frozen=True, eq=False)
class Optimised:
    """A rewritten copy of a model.

    Attributes:
        module: the copy.
        parts: its parts.
        folded: the layers that no longer give what they gave: convolutions that took in their BatchNorm, and paddings
            that went into their convolution.
        change: the greatest change of an output, as a share of the greatest output.
        buffers: what the buffers that a pass of the copy may change were when it was made.
    """

    module: nn.Module
    parts: Parts
    folded: frozenset[str]
    change: float
    buffers: Kept

    @property
    def check(self) -> Check:
        """What the results say of the rewriting."""
        note = f"greatest change of an output, as a share of the greatest output; {len(self.folded)} layers folded"
        return Check.bound("optimised outputs", self.change, MOST_CHANGE, note)


def optimise(engine: Engine, sample: Sample, keep: frozenset[str]) -> Check:
    """Lets an engine run on a rewritten copy of its model, made at the first use and kept with the adapter.

    Args:
        engine: its module is exchanged.
        sample: inputs on which the copy is compared with the model.
        keep: layers that are asked about, which are left as they are.
    """
    module = engine.adapter.module
    own = engine.own
    # Inputs of another form may take another way through the model.
    form = [(leaf.shape[1:], leaf.dtype) for leaf in tensors_of(sample.inputs)]
    state = (own.structure, own.state, own.attributes, _numbers(own), engine.adapter.output, form)
    known = engine.adapter.cache.get(("optimised", keep))
    if known is None or known[0] != state:
        one = sample[0]

        def run(shown: nn.Module) -> Tensor:
            args, kwargs = one.frame.build(pytree.tree_map(torch.clone, one.inputs), one.frame.extras)
            return _scores(engine.adapter, shown, lambda: shown(*args, **kwargs))

        known = (state, _rewritten(module, run, keep))
        engine.adapter.cache[("optimised", keep)] = known
    optimised: Optimised = known[1]
    optimised.buffers.restore()
    engine.use(optimised.module, optimised.parts, optimised.folded)
    return optimised.check


def _numbers(parts: Parts) -> list[bytes]:
    """Numbers by which changes of tensors are seen that autograd does not count.

    Vectors, such as a BatchNorm's, are compared whole; of larger tensors eight numbers, since all of them would take a
    tenth of a small pass.
    """
    numbers: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for tensor in (*parts.parameters, *parts.buffers):
            if tensor.is_floating_point() and tensor.layout is torch.strided and tensor.numel():
                numbers.setdefault(tensor.device, []).append(tensor if tensor.dim() == 1 else _some(tensor))
        return [torch.cat(several).double().cpu().numpy().tobytes() for several in numbers.values()]


def _some(tensor: Tensor) -> Tensor:
    """Eight of the numbers of a tensor, or one of few."""
    reach = tensor.numel() - 1
    if not tensor.is_contiguous():
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((8,) if reach > 7 else (1,), (reach // 7,))


def _scores(adapter: Adapter, module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a model and its copy are compared by: its scores, or what a detector makes its detections of.

    The detections themselves cannot be compared one by one, since rounding may change their order and number.

    Raises:
        ModelError: when there are no scores, and no layer is known that detections are made of.
    """
    kept: list[Tensor | None] = []
    place = dict[str | None, nn.Module](module.named_modules()).get(adapter.layer)
    handle = place and place.register_forward_hook(lambda _, __, output: kept.append(first_tensor(output)))
    try:
        with torch.no_grad():
            raw = run()
    finally:
        if handle:
            handle.remove()
    try:
        return adapter.logits(raw)
    except ModelError as error:
        if kept and kept[0] is not None:
            return kept[0]
        raise ModelError(
            f"optimize=True compares the rewritten copy with the model by its scores, and {error} Or name a layer to "
            "compare by with adapt(model, layer=...), or adapt the model without optimize"
        ) from error


def _rewritten(module: nn.Module, run: Callable[[nn.Module], Tensor], keep: frozenset[str]) -> Optimised:
    try:
        made = copy.deepcopy(module).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied, as optimize=True needs ({error}); adapt the model without it"
        ) from error
    names = {part: name for name, part in made.named_modules()}
    uses, buffers = _Uses(made), Kept(made.buffers())
    with uses.noted():
        run(made)
    folded: list[str] = []
    convolutions = uses.convolutions()
    for norm, conv in uses.norms(convolutions):
        if keep.isdisjoint({names[norm], names[conv]}):
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            _pass_on(norm)
            folded.append(names[conv])
    for padding, conv in uses.paddings(convolutions):
        if names[padding] not in keep:
            conv.padding = (padding.padding[2], padding.padding[0])
            _pass_on(padding)
            folded.append(names[padding])
    before, change = run(module), math.inf
    # A model that steps through memory by itself needs its maps contiguous.
    for memory_format in (torch.channels_last, torch.contiguous_format):
        if not change <= MOST_CHANGE:
            for conv in convolutions.values():
                conv.weight.data = conv.weight.data.contiguous(memory_format=memory_format)
            buffers.restore()
            change = float((run(made) - before).abs().max() / before.abs().max().clamp_min(1e-12))
    buffers.restore()
    # A pass can change the buffers of those alone that still do anything.
    own = (part for part in made.modules() if part.__dict__.get("forward") is not _as_given)
    left = Kept(buffer for part in own for buffer in part._buffers.values() if buffer is not None)
    return Optimised(made, parts_of(made), frozenset(folded), change, left)


def _pass_on(part: nn.Module) -> None:
    """Lets a module give what it is given. It stays where it is, since the model may read its attributes."""
    part.__dict__["forward"] = _as_given


def _as_given(input: Tensor) -> Tensor:
    return input


@dataclass(frozen=True)
class _Call:
    """One call of a function: the identities of its tensors, `id(None)` where there is none, and its result's.

    Attributes:
        given: the tensors.
        result: what was made of them.
        padding: what a convolution was told to pad by.
    """

    given: tuple[int, ...]
    result: int
    padding: int | None = None


class _Uses(TorchFunctionMode):
    """Notes what one forward pass does with each tensor, and what modules make of what they are given.

    Attributes:
        counts: how many functions take each tensor, by its identity; being a part of the model's output is a use, too.
        convolved: each convolution's input, weight and bias.
        normalised: the input, mean, variance, weight and bias of each BatchNorm that uses them.
        called: what each module was given and gave, call by call.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.counts: Counter[int] = Counter()
        self.convolved: list[_Call] = []
        self.normalised: list[_Call] = []
        self.called: dict[nn.Module, list[_Call]] = {part: [] for part in module.modules()}
        self.alive: list[Any] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Notes what the block does, by a hook on all modules: the model may copy or pickle its own parts."""
        handle = nn.modules.module.register_module_forward_hook(self._note)
        try:
            with self:
                yield
        finally:
            handle.remove()

    def _note(self, part: nn.Module, given: Any, output: Any) -> None:
        if part in self.called:  # and no copy that the model makes of a part
            self.called[part].append(_Call(tuple(map(id, given)), id(output)))
        if part is self.module:
            self.counts.update({id(leaf) for leaf in tensors_in(output)})
        self.alive.append((part, given, output))

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            self.counts.update({id(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
            if function is torch.conv2d and len(args) > 2:
                padding = id(args[4]) if len(args) > 4 else None
                self.convolved.append(_Call(tuple(map(id, args[:3])), id(result), padding))
            elif function is F.batch_norm and (given := _of_batch_norm(*args, **(kwargs or {}))) is not None:
                self.normalised.append(_Call(tuple(map(id, given)), id(result)))
            # Identities stay true only while the tensors live.
            self.alive.append((args, kwargs, result))
        return result

    def convolutions(self) -> dict[_Call, Any]:
        """The calls that convolve by a module's own parameters, which nothing else uses, and do nothing more."""
        found: dict[_Call, Any] = {}
        for part in self.called:
            if not isinstance(part, nn.Conv2d):
                continue
            own = (id(part._parameters.get("weight")), id(part._parameters.get("bias")))
            mine = [call for call in self.convolved if call.given[1] == own[0]]
            if len(mine) == 1 and mine[0].given[1:] == own:
                alone = all(self.counts[id(parameter)] == 1 for parameter in part.parameters(recurse=False))
                if alone and self._gives(part, mine[0].result) is not None:
                    found[mine[0]] = part
        return found

    def norms(self, convolutions: dict[_Call, Any]) -> Iterator[tuple[Any, Any]]:
        """BatchNorms, each with the convolution whose result it alone takes."""
        convolved = {call.result: part for call, part in convolutions.items()}
        for part in self.called:
            if type(part) is not nn.BatchNorm2d:
                continue
            own = (part._buffers["running_mean"], part._buffers["running_var"], part.weight, part.bias)
            for call in self.normalised:
                given, mine = call.given[0], call.given[1:] == tuple(map(id, own))
                if mine and given in convolved and self.counts[given] == 1 and self._gives(part, call.result) == given:
                    yield part, convolved[given]

    def paddings(self, convolutions: dict[_Call, Any]) -> Iterator[tuple[Any, Any]]:
        """Paddings by as many zeros at both ends, each with the convolution that alone takes them and pads nothing."""
        for call, conv in convolutions.items():
            # The convolution pads by what its attribute says, and not by something that only equals it.
            given, told = call.given[0], call.padding == id(conv.padding) and conv.padding_mode == "zeros"
            if not told or tuple(conv.padding) != (0, 0) or self.counts[given] != 1:
                continue
            for part in self.called:
                if _pads_alike(part) and self._gives(part, given) not in (None, given):
                    yield part, conv

    def _gives(self, part: nn.Module, result: int) -> int | None:
        """What a module was given that ran once, without hooks, and gave the result; None where it did otherwise."""
        calls = self.called[part]
        hooked = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        if hooked or "forward" in part.__dict__ or len(calls) != 1 or calls[0].result != result:
            return None
        return calls[0].given[0] if calls[0].given else None


def _of_batch_norm(
    input: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, *_: Any, **__: Any
) -> tuple[Any, ...] | None:
    """Input, mean, variance, weight and bias, where they are what normalises."""
    return None if training or mean is None or var is None else (input, mean, var, weight, bias)


def _pads_alike(part: nn.Module) -> bool:
    if type(part) not in (nn.ConstantPad2d, nn.ZeroPad2d) or part.value != 0:
        return False
    left, right, top, bottom = part.padding  # type: ignore[misc]
    return bool(left == right >= 0 and top == bottom >= 0)
