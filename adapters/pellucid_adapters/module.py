"""Any `torch.nn.Module`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pellucid import Adapter, ModelError
from pellucid_adapters.settings import settled
from pellucid_adapters.wrapped import unwrapped

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.")


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a module as it is."""
    return adapted(model, options) if isinstance(model, nn.Module) else None


def adapted(module: nn.Module, options: dict[str, Any], **known: Any) -> Adapter:
    """Adapts a module of which something is known, after checking that it can run.

    A quantised module offers outputs only; a ScriptModule gives gradients of its inputs but has no layers to look at.

    Raises:
        ModelError: the module has no forward, its parameters are not there yet, are on the meta device or were made
            in inference mode, or a part of it is compiled.
        ParameterError: an option is unknown.
    """
    _check(module)
    settings = settled(options, **known)
    notes = tuple(settings.pop("notes", ()))
    if isinstance(module, torch.jit.ScriptModule):
        settings["offers"] = frozenset({"outputs", "gradients"})
        notes = (*notes, "a ScriptModule: its layers cannot be looked at")
    elif _quantised(module):
        settings["offers"] = frozenset({"outputs"})
        notes = (*notes, "a quantised model: neither gradients nor activations can be had of it")
    return Adapter(module, notes=notes, **settings)


def _check(module: nn.Module) -> None:
    who = type(module).__name__
    if not isinstance(module, torch.jit.ScriptModule) and type(module).forward is nn.Module.forward:
        raise ModelError(f"{who} has no `forward`, so it computes nothing. Give the model that it is a part of.")
    for name, part in module.named_modules():
        if name and unwrapped(part)[1]:
            raise ModelError(
                f"the part '{name}' of {who} is wrapped by {unwrapped(part)[1]}, which hides its layers. Give the "
                "model without it."
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"'{name}' of {who} has no shape yet. Run one batch through the model first.")
        if tensor.is_meta:
            raise ModelError(f"'{name}' of {who} is on the meta device, without values. Load the weights first.")
        if tensor.is_inference():
            raise ModelError(
                f"'{name}' of {who} was made in inference mode and can have no gradients. Make or load the model "
                "outside of torch.inference_mode(), or give copy.deepcopy(model)."
            )


def _quantised(module: nn.Module) -> bool:
    parts = [*module.modules(), *module.parameters(), *module.buffers()]
    return any(type(part).__module__.startswith(_QUANTISED) for part in parts)
