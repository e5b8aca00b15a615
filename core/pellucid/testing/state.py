"""Checks that a technique leaves everything as it found it."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from pellucid.errors import Interrupted, PellucidError
from pellucid.testing.case import TARGETS, Case
from pellucid.testing.laws import LOOKING, Group, require
from pellucid.testing.models import Failing

state_check = Group("State", frozenset({"explainer", "evaluator"}))

_GLOBAL_HOOKS = [
    "_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs", "_global_backward_pre_hooks", "_global_backward_hooks",
    "_global_buffer_registration_hooks", "_global_module_registration_hooks", "_global_parameter_registration_hooks",
]  # fmt: skip


@dataclass
class State:
    """Everything about a model and the process that a run must not change.

    Attributes:
        model: by the words of a message, what the model is like.
        process: the same for the process, without its random states.
        randomness: the random states.
    """

    model: dict[str, Any]
    process: dict[str, Any]
    randomness: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """Takes the state as it is."""
        parts = dict(model.named_modules())
        values: dict[str, Tensor] = {f"parameter {name}": tensor for name, tensor in model.named_parameters()}
        values |= {f"buffer {name}": tensor for name, tensor in model.named_buffers()}
        parameters = dict(model.named_parameters())
        return cls(
            {
                **{f"the mode of '{name}'": part.training for name, part in parts.items()},
                **{name: tensor.detach().clone() for name, tensor in values.items()},
                **{f"which tensor {name} is": id(tensor) for name, tensor in values.items()},
                **{f"requires_grad of {name}": tensor.requires_grad for name, tensor in parameters.items()},
                **{f"grad of {name}": _copied(tensor.grad) for name, tensor in parameters.items()},
                **{f"the hooks of '{name}'": _hooks(part) for name, part in parts.items()},
                **{f"the attributes of '{name}'": sorted(vars(part)) for name, part in parts.items()},
            },
            {
                "grad mode": torch.is_grad_enabled(),
                "inference mode": torch.is_inference_mode_enabled(),
                "the default type": torch.get_default_dtype(),
                "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
                "hooks on all modules": [len(getattr(modules, name)) for name in _GLOBAL_HOOKS],
            },
            {
                "torch's random state": torch.get_rng_state(),
                "numpy's random state": _numpy_state(),
                "Python's random state": random.getstate(),
            },
        )


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was."""
    return [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]


def require_untouched(before: State, model: nn.Module, when: str = "") -> None:
    """Fails the check when anything is not as it was."""
    after = State.of(model)
    for part in ("model", "process", "randomness"):
        changed = differences(getattr(before, part), getattr(after, part))
        require(not changed, f"{when}changed: {', '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Undoes what a bad technique did to the process, so that the next check starts clean.

    One thread: the networks are too small for more, which would spend their time waiting for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hooks = {name: dict(getattr(modules, name)) for name in _GLOBAL_HOOKS}
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        for name, entries in hooks.items():
            kept = getattr(modules, name)
            kept.clear()
            kept.update(entries)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


@state_check("leaves the model and the process as they were")
def untouched(case: Case) -> None:
    """Modes (mixed ones), parameters, buffers, gradients, flags, hooks, random states, grad mode."""
    model = lived_in(case.model())
    before = State.of(model)
    case.run(model)
    require_untouched(before, model)


@state_check("leaves the model and the process as they were when the model fails or is interrupted midway", LOOKING)
def untouched_on_error(case: Case) -> None:
    """And says that it was the model."""
    for error, expected in ((ValueError("planted"), PellucidError), (KeyboardInterrupt(), Interrupted)):
        for countdown in (0, 2):
            model = lived_in(Failing(case.model(), countdown, error))
            before = State.of(model)
            try:
                case.run(model, batch_size=1)
            except expected:
                pass
            else:
                require(model.countdown >= 0, f"the model's {type(error).__name__} was swallowed")
            require_untouched(before, model, f"after {type(error).__name__}, ")


@state_check("leaves the inputs and the target that it was given as they were", once=True)
def inputs_untouched(case: Case) -> None:
    """Values, versions, gradients and flags."""
    inputs, target = case.inputs(), torch.tensor(TARGETS)
    before = [(tensor, tensor.clone(), tensor._version) for tensor in (inputs, target)]
    case.run(inputs=inputs, target=target)
    for tensor, values, version in before:
        require(torch.equal(tensor, values) and tensor._version == version, "what was given was changed in place")
        require(not tensor.requires_grad and tensor.grad is None, "what was given got a gradient")


@state_check("does not change the sample's inputs, which other techniques share")
def sample_untouched(case: Case) -> None:
    """The engine's copy of the inputs is one for all."""
    inputs = case.inputs()
    sample = case.drive(case.model(), inputs).sample
    require(torch.equal(sample.inputs, inputs), "sample.inputs were changed in place; clone them first")
    require(sample.inputs.grad is None and not sample.inputs.requires_grad, "sample.inputs got a gradient")


@state_check("reaches nothing but through its looks: without the guard, model and process stay as they were")
def untouched_without_guard(case: Case) -> None:
    """The guard puts back what a technique did behind the protocol's back; here nothing does."""
    model = lived_in(case.model(), mixed=False)
    before = State.of(model)
    case.drive(model, case.inputs())
    after = State.of(model)
    for part in ("model", "process"):
        changed = differences(getattr(before, part), getattr(after, part))
        require(not changed, f"changed: {', '.join(changed[:4])}")


@state_check("draws its random numbers from the sample's generators only")
def no_global_randomness(case: Case) -> None:
    """Global random states neither move nor matter."""
    results = []
    for seed in (0, 1):
        model = case.model()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = State.of(model).randomness
        results.append(case.drive(model, case.inputs()).result)
        changed = differences(before, State.of(model).randomness)
        require(not changed, f"{', '.join(changed)} moved; draw with sample.generator(...)")


def lived_in(model: nn.Module, mixed: bool = True) -> Any:
    """The model with everything about it that a run could lose: modes, gradients, flags and hooks."""
    for place, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if place % 2 else None
        parameter.requires_grad_(place % 3 != 0)
    for place, part in enumerate(model.modules()):
        part.training = bool(mixed and place % 2)
    model.register_forward_hook(lambda *_: None)
    return model


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, np.asarray(keys).tobytes(), *rest)


def _hooks(part: nn.Module) -> list[int]:
    return [len(hooks) for name, hooks in sorted(vars(part).items()) if name.endswith("_hooks")]


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one is other) or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other))
