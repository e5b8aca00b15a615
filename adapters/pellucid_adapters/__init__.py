"""Adapters: which kinds of model Pellucid takes, and what can be loaded by reference.

One module per kind, imported when a model of that kind comes. A model is recognised by the modules that its classes
come from, so that no library is imported just to look.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from pellucid import hookimpl

if TYPE_CHECKING:
    from pellucid import Adapter

# The package that a model's class comes from, and who adapts it.
KINDS = {
    "torchvision.models": "torchvision",
    "timm": "timm",
    "transformers": "hf",
    "sklearn": "sklearn",
}

# (kind, scheme) of a reference, and who loads it.
LOADERS = {
    ("model", "torchvision"): "torchvision",
    ("model", "timm"): "timm",
    ("model", "hf"): "hf",
    ("model", "demo"): "demo",
    ("model", "python"): "python",
    ("images", "demo"): "demo",
}


class _Kind(Protocol):
    def adapt(self, model: object, options: dict[str, Any]) -> Adapter | None: ...


class _Loader(Protocol):
    def load(self, kind: str, name: str, options: dict[str, Any]) -> object: ...


@hookimpl(specname="pellucid_adapt", tryfirst=True)
def adapt_wrapped(model: object, options: dict[str, Any]) -> Adapter | None:
    """Takes off what `torch.compile` and data parallelism put around a model."""
    return _kind("wrapped").adapt(model, options)


@hookimpl
def pellucid_adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a model of a library whose preprocessing and class names are known."""
    for package, name in KINDS.items():
        if comes_from(model, package):
            adapter = _kind(name).adapt(model, options)
            if adapter is not None:
                return adapter
    return None


@hookimpl(specname="pellucid_adapt", trylast=True)
def adapt_any(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts any module, and any other callable as a black box."""
    name = "module" if comes_from(model, "torch.nn.modules.module") else "callable"
    return _kind(name).adapt(model, options)


@hookimpl
def pellucid_load(kind: str, scheme: str, name: str, options: dict[str, Any]) -> object | None:
    """Loads models of torchvision, timm and Hugging Face, one's own functions, and the demonstration."""
    loader = LOADERS.get((kind, scheme))
    if loader is None:
        return None
    return cast("_Loader", import_module(f"{__name__}.{loader}")).load(kind, name, options)


def comes_from(model: object, package: str) -> bool:
    """Says whether a class of the object, or one that it inherits from, is defined in a package."""
    return any(f"{each.__module__}.".startswith(f"{package}.") for each in type(model).__mro__)


def _kind(name: str) -> _Kind:
    return cast("_Kind", import_module(f"{__name__}.{name}"))
