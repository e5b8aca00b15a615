"""The guard: whatever happens during a run, the model and the process are as they were before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.engine.parts import Parts, parts_of

SMALL = 2**16
"""Of how many numbers a buffer is kept together with others."""


@contextlib.contextmanager
def guarded(module: nn.Module, seed: int, parts: Parts | None = None) -> Iterator[bool]:
    """Runs a block with the model in eval mode, its parameters locked and every random state seeded; then undoes it.

    Modes (mixed ones too), buffers, `requires_grad` flags, gradients and random states are put back, also when the
    block ends by an error or by Ctrl-C. Parameters are locked, so that no gradient is ever computed for them.

    Modes, flags and random states are the process's, not the thread's: explain one model in one thread at a time.

    Args:
        module: the model.
        seed: what the random states start from.
        parts: the model's, where they are known already.

    Yields:
        Whether a part of the model was in train mode.
    """
    parts = parts or parts_of(module)
    modules, parameters = list(parts.modules.values()), parts.parameters
    modes = [part.training for part in modules]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(random_states(parameters, seed))
        stack.enter_context(_modes(module, modules, modes))
        stack.enter_context(_locked(parameters))
        stack.enter_context(_buffers(modules))
        if any(issubclass(kind, nn.RNNBase) for kind in parts.kinds):
            # cuDNN's recurrent layers refuse a backward pass in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if any(map(_is_compiled, modules)):
            # A compiled module does not call the hooks of its parts.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield any(modes)


@contextlib.contextmanager
def random_states(parameters: Sequence[Tensor], seed: int) -> Iterator[None]:
    """Runs a block with the random states of torch, NumPy and Python seeded; then puts them back."""
    devices = {tensor.device for tensor in parameters if tensor.is_cuda}
    # Not `torch.manual_seed`, which seeds every accelerator, also those that are not restored.
    generators = [torch.default_generator, *(torch.cuda.default_generators[device.index] for device in devices)]
    states = [generator.get_state() for generator in generators]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextlib.contextmanager
def _modes(module: nn.Module, parts: Sequence[nn.Module], modes: Sequence[bool]) -> Iterator[None]:
    try:
        # Through `eval` rather than by the flags, since a module may do more when its mode changes.
        if any(modes):
            module.eval()
        yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            if part.training is not training and type(part).train is not nn.Module.train:
                part.train(training)  # undoes what a module of its own kind did when its mode changed
        for part, training in zip(parts, modes, strict=True):
            if part.training is not training:
                part.training = training


@contextlib.contextmanager
def _locked(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad and parameter.is_leaf, parameter.grad) for parameter in parameters]
    try:
        for parameter, free, _ in before:
            if free:
                parameter.requires_grad_(False)
        yield
    finally:
        for parameter, free, gradient in before:
            if free:
                parameter.requires_grad_(True)
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextlib.contextmanager
def _buffers(parts: Sequence[nn.Module]) -> Iterator[None]:
    owned = [(part, dict(part._buffers)) for part in parts if part._buffers]
    kept = Kept(buffer for _, buffers in owned for buffer in buffers.values() if buffer is not None)
    without = [part for part in parts if not part._buffers]
    try:
        yield
    finally:
        kept.restore()
        for part, buffers in [*owned, *((part, {}) for part in without if part._buffers)]:
            now = part._buffers
            if now.keys() == buffers.keys() and all(map(is_, now.values(), buffers.values())):
                continue
            for name in set(part._buffers.keys()) - set(buffers):
                del part._buffers[name]
            for name, owner in buffers.items():
                part._buffers[name] = owner


class Kept:
    """The values of tensors, to be put back.

    What was changed is seen by the values: torch counts neither what is changed through `.data` nor the running
    statistics that a BatchNorm in train mode changes. Small tensors are copied and compared together, since each
    operation takes longer to start than to run.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        groups: dict[Any, list[Tensor]] = {}
        for tensor in {id(tensor): tensor for tensor in tensors if not tensor.is_inference()}.values():
            small = tensor.numel() <= SMALL and _comparable(tensor)
            groups.setdefault((tensor.dtype, tensor.device) if small else id(tensor), []).append(tensor)
        self.groups = [(several, [one.shape for one in several], _joined(several)) for several in groups.values()]
        self.versions = {id(one): one._version for several in groups.values() for one in several if len(several) == 1}

    def restore(self) -> None:
        """Puts back the values that have changed."""
        for several, shapes, before in self.groups:
            if _same(_joined(several) if len(several) > 1 else several[0], before):
                continue
            pieces = torch.split(before, [shape.numel() for shape in shapes]) if len(several) > 1 else [before]
            for tensor, shape, piece in zip(several, shapes, pieces, strict=True):
                value = piece.reshape(shape) if len(several) > 1 else piece
                if (tensor.shape, tensor.dtype) != (shape, value.dtype):
                    tensor.data = value.clone()
                elif self._changed(tensor, value):
                    with torch.no_grad():
                        tensor.copy_(value)

    def _changed(self, tensor: Tensor, value: Tensor) -> bool:
        return not _same(tensor, value) if _comparable(tensor) else tensor._version != self.versions[id(tensor)]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        if len(tensors) == 1:
            return tensors[0].clone()
        return torch.cat([tensor if tensor.dim() == 1 else tensor.flatten() for tensor in tensors])


def _comparable(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be compared, unlike those of a sparse or quantised one."""
    return tensor.layout is torch.strided and not tensor.is_quantized


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one type and have the same values, not-a-number in the same places."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or not _comparable(one):
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _is_compiled(part: nn.Module) -> bool:
    return getattr(part, "_compiled_call_impl", None) is not None or type(part).__name__ == "OptimizedModule"
