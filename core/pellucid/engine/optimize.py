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
        folded: the convolutions whose BatchNorm was folded into them, which no longer give what they gave.
        change: the greatest change of an output, as a share of the greatest output.
    """

    module: nn.Module
    parts: Parts
    folded: frozenset[str]
    change: float

    @property
    def check(self) -> Check:
        """What the results say of the rewriting."""
        note = f"greatest change of an output, as a share of the greatest output; {len(self.folded)} BatchNorms folded"
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
            with torch.no_grad():
                return engine.adapter.logits(shown(*args, **kwargs))

        known = (state, _rewritten(module, run, keep))
        engine.adapter.cache[("optimised", keep)] = known
    optimised: Optimised = known[1]
    engine.use(optimised.module, optimised.parts, optimised.folded)
    return optimised.check


def _rewritten(module: nn.Module, run: Callable[[nn.Module], Tensor], keep: frozenset[str]) -> Optimised:
    try:
        made = copy.deepcopy(module).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied, as optimize=True needs ({error}); adapt the model without it"
        ) from error
    pairs = [(conv, norm) for conv, norm in _pairs(made, run) if conv not in keep and norm not in keep]
    for conv_name, norm_name in pairs:
        conv: Any = made.get_submodule(conv_name)
        norm: Any = made.get_submodule(norm_name)
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        made.set_submodule(norm_name, nn.Identity().eval())
    made.to(memory_format=torch.channels_last)
    before, after = run(module), run(made)
    change = float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))
    return Optimised(made, parts_of(made), frozenset(conv for conv, _ in pairs), change)


class _Uses(TorchFunctionMode):
    """Counts how many functions take each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.alive: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            self.counts.update({id(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
            # Identities stay true only while the tensors live.
            self.alive.append((args, kwargs, result))
        return result


def _pairs(module: nn.Module, run: Callable[[nn.Module], Tensor]) -> list[tuple[str, str]]:
    """Convolutions, each with the BatchNorm that alone takes its result, as one forward pass shows them."""
    names = {part: name for name, part in module.named_modules()}
    calls: Counter[str] = Counter()
    made_by: dict[int, str] = {}
    taken: list[tuple[int, str]] = []
    owners = Counter(id(parameter) for part in names for parameter in part.parameters(recurse=False))
    handles = []

    def note_made(part: nn.Module, _: Any, output: Any) -> None:
        calls[names[part]] += 1
        made_by[id(output)] = names[part]

    def note_taken(part: nn.Module, inputs: Any) -> None:
        calls[names[part]] += 1
        taken.append((id(inputs[0]), names[part]))

    for part in names:
        if isinstance(part, nn.Conv2d) and all(owners[id(parameter)] == 1 for parameter in part.parameters()):
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
    return [
        (made_by[tensor], norm)
        for tensor, norm in taken
        if tensor in made_by and uses.counts[tensor] == 1 and calls[norm] == 1 and calls[made_by[tensor]] == 1
    ]
