"""Models of torchvision: preprocessing and class names come from the metadata of its weights."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import Any

from torch import hub, nn
from torchvision import models

from pellucid import Adapter, BadReference, ParameterError, nearest
from pellucid_adapters.detection import classes, facts, is_detector
from pellucid_adapters.module import adapted

IMAGENET = "ResNet50_Weights.IMAGENET1K_V1"
"""A set of weights whose metadata hold ImageNet's class names."""


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a model of torchvision.

    The option `weights` (a member of a weights enum, or its full name) says which weights the model has. Without it a
    model of 1000 outputs is taken for one of ImageNet, and a note says so. A detection model is explained with a
    `Detected` object as its target, or with a function of its list of detections.
    """
    if not isinstance(model, nn.Module):
        return None
    options = dict(options)
    weights = options.pop("weights", None)
    if isinstance(weights, str):
        weights = _full_name(weights)
    elif weights is not None and not isinstance(weights, models.WeightsEnum):
        raise ParameterError(
            f"weights={weights!r}: expected a member of a weights enum of torchvision, or its full name."
        )
    if is_detector(model):
        return adapted(model, options, **_of_weights(weights, classes(model)), **facts(model))
    if weights is not None:
        return adapted(model, options, **_of_weights(weights, outputs(model)))
    if outputs(model) == 1000:
        note = "class names are ImageNet's, assumed because this torchvision model has 1000 outputs"
        return adapted(model, options, categories=imagenet_categories(), notes=(note,))
    return adapted(model, options)


def load(kind: str, name: str, options: dict[str, Any]) -> Adapter:
    """Loads "torchvision:NAME"; options other than `weights` go to the builder, such as `num_classes`.

    Raises:
        BadReference: no such model or set of weights, a wrong option, or the weights cannot be downloaded.
    """
    if name not in models.list_models():
        raise BadReference(f"torchvision has no model '{name}'." + nearest(name, models.list_models()))
    options = dict(options)
    weights = _weights(name, options.pop("weights", "DEFAULT"))
    model = _built(name, weights, options).eval()
    # Random weights, or those of a file, want the input size of the usual ones.
    usual = weights if weights is not None else next(iter(models.get_model_weights(name)), None)
    if is_detector(model):
        return adapted(model, {}, **_of_weights(usual, classes(model)), **facts(model))
    return adapted(model, {}, **_of_weights(usual, outputs(model)))


def imagenet_categories() -> list[str]:
    """The names of ImageNet's 1000 classes, in the usual order."""
    return list(models.get_weight(IMAGENET).meta["categories"])


def outputs(model: nn.Module) -> int | None:
    """How many outputs the last linear or convolutional layer has."""
    last = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not last:
        return None
    return last[-1].out_features if isinstance(last[-1], nn.Linear) else last[-1].out_channels


def _of_weights(weights: Any, count: int | None) -> dict[str, Any]:
    """What the metadata of weights say, if any; the class names only where there are as many as outputs."""
    if weights is None:
        return {}
    transform = weights.transforms()
    categories = weights.meta.get("categories")
    facts = {"transform": transform}
    if categories and len(categories) == count:
        facts["categories"] = list(categories)
    for channels in ("mean", "std"):
        if hasattr(transform, channels):
            facts[channels] = tuple(getattr(transform, channels))
    return facts


def _full_name(name: str) -> Any:
    try:
        return models.get_weight(name)
    except ValueError as error:
        raise BadReference(f"torchvision has no weights '{name}': expected a full name, as in '{IMAGENET}'.") from error


def _weights(name: str, wanted: Any) -> Any:
    if wanted is None:
        return None
    known = models.get_model_weights(name)
    if not list(known) and wanted == "DEFAULT":
        raise BadReference(f"torchvision has no weights for '{name}'. Say weights=none, or name a file.")
    if str(wanted) not in known.__members__:
        names = list(known.__members__)
        raise BadReference(
            f"torchvision's {name} has no weights '{wanted}': expected {', '.join(names)}, none or a file "
            "(.safetensors, .pth)." + nearest(str(wanted), names)
        )
    return known[wanted]


def _built(name: str, weights: Any, options: dict[str, Any]) -> nn.Module:
    builder = models.get_model_builder(name)
    if weights is None:
        if "weights_backbone" in inspect.signature(builder).parameters:
            options.setdefault("weights_backbone", None)  # otherwise the builder downloads a backbone
        if name in ("googlenet", "inception_v3"):
            options.setdefault("init_weights", True)  # says the default, which is deprecated when it isn't said
    else:
        _download(name, weights)
    try:
        model: nn.Module = builder(weights=weights, **options)
    except (TypeError, ValueError) as error:
        raise BadReference(f"torchvision's {name} refuses its options {options}: {error}.") from error
    return model


def _download(name: str, weights: Any) -> None:
    """Fetches weights into torch's cache and sees that they can be read without unpickling.

    The builder, which reads them unguarded, then finds a file that is known to hold nothing but tensors.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch tells of downloads on stdout, where JSON may be printed
            hub.load_state_dict_from_url(
                weights.url, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # network, disk, hash and pickle all fail in ways of their own
        raise BadReference(
            f"the weights {weights.name} of torchvision's {name} cannot be had from {weights.url} ({error}). "
            "Say weights=none for random ones, or weights=FILE."
        ) from error
