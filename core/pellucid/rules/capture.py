"""Capture: a model recorded as a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.nn.attention import SDPBackend, sdpa_kernel

from pellucid.engine.batching import is_out_of_memory
from pellucid.errors import PellucidError, Unsuitable
from pellucid.rules.graph import Graph
from pellucid.rules.record import DataDependent, Recorder


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
            if is_out_of_memory(error):
                raise
            problem = problem or error
            # Functions with a backward pass of their own and some checkpoints do not run under `functionalize`, of
            # which torch tells by these. Others are the model's, which is not run again as if nothing had been.
            if not isinstance(error, (RuntimeError, TypeError, AssertionError)):
                break
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


def own_backwards(outputs: Iterable[Tensor]) -> tuple[str, ...]:
    """The names of the autograd functions written in Python that tensors come from, torch's own aside.

    Their backward passes need not be the derivatives of what their forward passes do, which is all that a graph has.
    """
    found: set[str] = set()
    known: set[Any] = set()
    waiting: list[Any] = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            written = getattr(type(node), "_forward_cls", type(node))
            if written.__module__.partition(".")[0] != "torch":
                found.add(written.__qualname__.rpartition(".")[2])
        waiting += [source for source, _ in node.next_functions]
    return tuple(sorted(found))
