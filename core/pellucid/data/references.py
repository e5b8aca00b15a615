"""References to models and pictures, such as "torchvision:resnet50?weights=DEFAULT" and "demo:cat"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pellucid.errors import BadReference, nearest

if TYPE_CHECKING:
    from pellucid.adapter import Adapter

# Only for "did you mean": plugins add schemes through the hook `pellucid_load`, which cannot be asked for its names.
USUAL_SCHEMES = ("torchvision", "timm", "hf", "demo", "python")

_FORM = "scheme:name?option=value&option=value, as in 'torchvision:resnet50?weights=DEFAULT'"
_SCHEME = re.compile(r"[a-z][a-z0-9_+-]+")  # two letters at least, so that C:\photos is a path
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Reference:
    """Names a model or a picture by where it comes from.

    Attributes:
        scheme: who provides it, such as "torchvision".
        name: what it is called there; it may hold colons and slashes.
        options: numbers, true, false and none are converted, everything else is text. `%` escapes are undone.
    """

    scheme: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads `scheme:name?key=value&key=value`.

        Raises:
            BadReference: the text has another form.
        """
        location, _, query = text.strip().partition("?")
        scheme, colon, name = location.partition(":")
        if not colon:
            raise BadReference(f"'{text}' is no reference: expected {_FORM}.{_with_scheme(location)}")
        if not _SCHEME.fullmatch(scheme) or not name:
            raise BadReference(f"'{text}' is no reference: expected {_FORM}.")
        return cls(scheme, unquote(name), _options(query, text))

    def __str__(self) -> str:
        query = "&".join(f"{key}={_text(value)}" for key, value in self.options.items())
        return f"{self.scheme}:{self.name}" + (f"?{query}" if query else "")


def looks_like_reference(text: str) -> bool:
    """Says whether a text starts with a scheme, so that it is no path."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and _SCHEME.fullmatch(scheme) is not None


def load_model(model: object, *, trust: bool = False) -> Adapter:
    """Loads the model that a reference names and adapts it.

    Options common to the schemes: `weights=DEFAULT` (the usual, downloaded once), the name of a set of weights,
    `none` (random ones, the same each time), or a file (.safetensors, or what `torch.load(weights_only=True)` reads).

    Args:
        model: a reference, as text or parsed; anything else goes to `pellucid.adapt` as it is.
        trust: whether files that need unpickling, which can run any code, may be read.

    Raises:
        BadReference: nobody provides the scheme, or it has no such model.
        Unavailable: the package that the scheme needs is not installed.
        ModelError: the weights do not fit, or the model cannot be adapted.
    """
    from pellucid.adapter import Adapter
    from pellucid.api import adapt

    if isinstance(model, str):
        model = Reference.parse(model)
    if not isinstance(model, Reference):
        return model if isinstance(model, Adapter) else adapt(model)

    options = dict(model.options)
    path = None
    if "weights" in options:
        from pellucid.data.weights import weights_file

        path = weights_file(options["weights"])
        if path is not None:
            options["weights"] = None
    if options.get("weights", "") is None and path is None:
        import torch

        # What is drawn at random depends on the reference alone, and not on what ran before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = resolve("model", model, options)
    else:
        found = resolve("model", model, options)
    adapter = found if isinstance(found, Adapter) else adapt(found)
    if path is not None:
        from pellucid.data.weights import load_weights

        load_weights(adapter.module, path, trust=trust)
        adapter.notes = (*adapter.notes, f"weights read from {path}")
    elif "weights" in options and options["weights"] is None:
        adapter.notes = (*adapter.notes, "random weights, as weights=none asks")
    adapter.name = str(model)
    return adapter


def resolve(kind: str, reference: Reference, options: Mapping[str, Any] | None = None) -> object:
    """Asks the plugins for what a reference names.

    Args:
        kind: "model" or "images".
        reference: what to load.
        options: instead of the reference's own.

    Raises:
        BadReference: no plugin provides the scheme.
    """
    from pellucid.registry import registry

    found = registry().hook.pellucid_load(
        kind=kind,
        scheme=reference.scheme,
        name=reference.name,
        options=dict(reference.options if options is None else options),
    )
    if found is None:
        what = "a model" if kind == "model" else "pictures"
        raise BadReference(
            f"nobody provides {what} for '{reference}': the usual schemes are {', '.join(USUAL_SCHEMES)}."
            + nearest(reference.scheme, set(USUAL_SCHEMES) - {reference.scheme})
        )
    return found


def _options(query: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise BadReference(f"'{pair}' in '{text}' is no option: expected key=value, joined by '&'.")
        if key in options:
            raise BadReference(f"'{text}' gives the option '{key}' twice.")
        options[key] = _value(unquote(value))
    return options


def _value(text: str) -> Any:
    if text.casefold() in _WORDS:
        return _WORDS[text.casefold()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("%", "%25").replace("&", "%26")


def _with_scheme(name: str) -> str:
    return f" Did you mean 'torchvision:{name}' or 'timm:{name}'?" if name.isidentifier() else ""
