"""Optimisation: a copy of the model, rewritten for speed, with what that changes measured."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pellucid.adapter import Adapter
from pellucid.engine.outputs import first_tensor
from pellucid.engine.parts import Parts, parts_of
from pellucid.engine.passes import Engine
from pellucid.errors import ModelError
from pellucid.protocol.sample import Sample
from pellucid.results import Check


@dataclass(frozen=True, eq=False)
class Optimised:
    """A rewritten copy of a model.

    Attributes:
        module: the copy.
        parts: its parts.
        folded: the layers that no longer give what they gave: convolutions that took in their BatchNorm, and paddings
            that went into their convolution.
        change: the greatest change of an output, as a share of the greatest output.
    """

    module: nn.Module
    parts: Parts
    folded: frozenset[str]
    change: float

    @property
    def check(self) -> Check:
        """What the results say of the rewriting."""
        note = f"greatest change of an output, as a share of the greatest output; {len(self.folded)} layers folded"
        return Check.bound("optimised outputs", self.change, 1e-3, note)


def optimise(engine: Engine, sample: Sample, keep: frozenset[str]) -> Check:
    """Lets an engine run on a rewritten copy of its model, made at the first use and kept with the adapter.

    Args:
        engine: its module is exchanged.
        sample: inputs on which the copy is compared with the model.
        keep: layers that are asked about, which are left as they are.
    """
    module = engine.adapter.module
    state = (engine.own.structure, engine.own.state)
    known = engine.adapter.cache.get(("optimised", keep))
    if known is None or known[0] != state:
        one = sample[0]

        def run(shown: nn.Module) -> Tensor:
            args, kwargs = one.frame.build(pytree.tree_map(torch.clone, one.inputs), one.frame.extras)
            return _scores(engine.adapter, shown, lambda: shown(*args, **kwargs))

        known = (state, _rewritten(module, run, keep))
        engine.adapter.cache[("optimised", keep)] = known
    optimised: Optimised = known[1]
    engine.use(optimised.module, optimised.parts, optimised.folded)
    return optimised.check


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
    norms, paddings = _pairs(made, run)
    norms = [(conv, norm) for conv, norm in norms if conv not in keep and norm not in keep]
    paddings = [(padding, conv) for padding, conv in paddings if padding not in keep]
    for conv_name, norm_name in norms:
        conv: Any = made.get_submodule(conv_name)
        norm: Any = made.get_submodule(norm_name)
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        made.set_submodule(norm_name, nn.Identity().eval())
    for padding_name, conv_name in paddings:
        padding: Any = made.get_submodule(padding_name)
        conv = made.get_submodule(conv_name)
        conv.padding = (padding.padding[2], padding.padding[0])
        made.set_submodule(padding_name, nn.Identity().eval())
    made.to(memory_format=torch.channels_last)
    before, after = run(module), run(made)
    change = float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))
    folded = frozenset([conv for conv, _ in norms] + [padding for padding, _ in paddings])
    return Optimised(made, parts_of(made), folded, change)


class _Uses(TorchFunctionMode):
    """Counts how many functions take each tensor, and notes what is convolved by what.

    Attributes:
        counts: by a tensor's identity.
        convolved: the identities of each convolution's input and weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.convolved: list[tuple[int, int]] = []
        self.alive: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            self.counts.update({id(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
            if function is torch.conv2d and len(args) > 1:
                self.convolved.append((id(args[0]), id(args[1])))
            # Identities stay true only while the tensors live.
            self.alive.append((args, kwargs, result))
        return result


def _pairs(
    module: nn.Module, run: Callable[[nn.Module], Tensor]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What can be folded, as one forward pass shows it.

    Returns:
        Convolutions, each with the BatchNorm that alone takes its result; and paddings by as many zeros at both ends,
        each with the convolution that alone takes its result and pads nothing itself.
    """
    names = {part: name for name, part in module.named_modules()}
    calls: Counter[str] = Counter()
    made_by: dict[int, str] = {}
    taken: list[tuple[int, str]] = []
    owners = Counter(id(parameter) for part in names for parameter in part.parameters(recurse=False))
    convolutions = {
        id(part.weight): name
        for part, name in names.items()
        if isinstance(part, nn.Conv2d) and all(owners[id(parameter)] == 1 for parameter in part.parameters())
    }
    handles = []

    def note_made(part: nn.Module, _: Any, output: Any) -> None:
        calls[names[part]] += 1
        made_by[id(output)] = names[part]

    def note_taken(part: nn.Module, inputs: Any) -> None:
        calls[names[part]] += 1
        taken.append((id(inputs[0]), names[part]))

    for part, name in names.items():
        if name in convolutions.values() or _pads_alike(part):
            handles.append(part.register_forward_hook(note_made))
        elif isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            handles.append(part.register_forward_pre_hook(note_taken))
    uses = _Uses()
    try:
        with uses:
            run(module)
    finally:
        for handle in handles:
            handle.remove()
    alone = {tensor: name for tensor, name in made_by.items() if uses.counts[tensor] == 1 and calls[name] == 1}
    norms = [
        (alone[tensor], norm)
        for tensor, norm in taken
        if alone.get(tensor) in convolutions.values() and calls[norm] == 1
    ]
    convolved = [
        (alone[given], convolutions[weight])
        for given, weight in uses.convolved
        if given in alone and weight in convolutions
    ]
    paddings = [
        (padding, conv)
        for padding, conv in convolved
        if padding not in convolutions.values() and calls[conv] == 1 and _pads_nothing(module.get_submodule(conv))
    ]
    return norms, paddings


def _pads_alike(part: nn.Module) -> bool:
    if not isinstance(part, nn.ConstantPad2d) or part.value != 0:  # ZeroPad2d is one of them
        return False
    left, right, top, bottom = part.padding
    return left == right >= 0 and top == bottom >= 0


def _pads_nothing(part: Any) -> bool:
    return part.padding_mode == "zeros" and tuple(part.padding) == (0, 0)
