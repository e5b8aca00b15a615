"""Models inside wrappers that hide their layers: compiled and data-parallel ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from pellucid import Adapter
from pellucid import adapt as adapt_model

# Hooks on the layers of such a model are ignored, or run on copies of it; what it wraps is the model itself.
WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod", "torch.compile"),
    "torch.nn.parallel.data_parallel.DataParallel": ("module", "DataParallel"),
    "torch.nn.parallel.distributed.DistributedDataParallel": ("module", "DistributedDataParallel"),
}


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts what a wrapper wraps and notes it; None where there is no wrapper."""
    inner, wrapper = unwrapped(model)
    if not wrapper:
        return None
    adapter: Adapter = adapt_model(inner, **options)
    return replace(adapter, notes=(f"{wrapper} was taken off: the model runs as it was before", *adapter.notes))


def unwrapped(model: object) -> tuple[object, str]:
    """Takes off one wrapper; gives what is inside and the wrapper's name, "" if there is none."""
    for each in type(model).__mro__:
        attribute, wrapper = WRAPPERS.get(f"{each.__module__}.{each.__name__}", ("", ""))
        if wrapper:
            return getattr(model, attribute), wrapper
    is_module = any(each.__module__ == "torch.nn.modules.module" for each in type(model).__mro__)
    if is_module and getattr(model, "_compiled_call_impl", None) is not None:
        # model.compile() compiles in place. A shallow copy leaves that behind and shares layers and parameters.
        return copy.copy(model), "model.compile()"
    return model, ""
