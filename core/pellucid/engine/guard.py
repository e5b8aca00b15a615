"""The guard: whatever happens during a run, the model and the process are as they were before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def guarded(module: nn.Module, seed: int) -> Iterator[None]:
    """Runs a block with the model in eval mode, its parameters locked and every random state seeded; then undoes it.

    Modes (mixed ones too), buffers, `requires_grad` flags, gradients and random states are put back, also when the
    block ends by an error or by Ctrl-C. Parameters are locked, so that no gradient is ever computed for them.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(_random_states(module, seed))
        stack.enter_context(_modes(module))
        stack.enter_context(_locked(module))
        stack.enter_context(_buffers(module))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            # cuDNN's recurrent layers refuse a backward pass in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if _is_compiled(module):
            # A compiled module does not call the hooks of its parts.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def _random_states(module: nn.Module, seed: int) -> Iterator[None]:
    devices = {tensor.device for tensor in module.parameters() if tensor.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _modes(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        # Modules that run in one mode only override `train`; the flag alone is enough for all others, and faster.
        if any(training for _, training in modes):
            module.eval()
        yield
    finally:
        for part, training in modes:
            if part.training is not training:
                part.training = training


@contextlib.contextmanager
def _locked(module: nn.Module) -> Iterator[None]:
    flags = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.is_leaf]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in flags:
            parameter.requires_grad_(True)
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextlib.contextmanager
def _buffers(module: nn.Module) -> Iterator[None]:
    owned: list[tuple[nn.Module, str, Tensor, Tensor, int]] = [
        (part, name, buffer, buffer.detach().clone(), buffer._version)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, before, version in owned:
                if part._buffers.get(name) is not buffer:
                    part._buffers[name] = buffer
                if buffer._version != version:
                    buffer.copy_(before)


def _is_compiled(module: nn.Module) -> bool:
    return any(
        getattr(part, "_compiled_call_impl", None) is not None or type(part).__name__ == "OptimizedModule"
        for part in module.modules()
    )
