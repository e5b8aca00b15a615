"""What torchvision's detection models have in common: inputs within [0, 1], and lists of detections."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from pellucid import ModelError


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of torchvision's detection models, or inherits from one."""
    return any(each.__module__.startswith("torchvision.models.detection") for each in type(model).__mro__)


def facts(model: nn.Module) -> dict[str, Any]:
    """What is known of any detection model.

    They take a batch (B, 3, H, W) of values within [0, 1], and resize and normalise it themselves.
    """
    known: dict[str, Any] = {"output": _no_scores, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    layer = _common_layer(model)
    return known if layer is None else {**known, "layer": layer}


def classes(model: nn.Module) -> int | None:
    """How many classes a detection model tells apart, the background among them, or None where it cannot be told."""
    for name, part in model.named_modules():
        if name.endswith("cls_score") and isinstance(part, nn.Linear):
            return part.out_features
        if name.endswith("classification_head"):
            count = getattr(part, "num_classes", getattr(part, "num_columns", None))
            return count if isinstance(count, int) else None
    return None


def _common_layer(model: nn.Module) -> str | None:
    """The last layer on which the detections of all sizes depend.

    Behind it the network has a map for each size of objects, and a detection comes from one of them: the gradient by
    another is zero. In a feature pyramid it is the coarsest map of its body, which goes into every level; in SSD, the
    map that the coarser ones are made of.
    """
    backbone = getattr(model, "backbone", None)
    body, features = getattr(backbone, "body", None), getattr(backbone, "features", None)
    if isinstance(body, nn.Module) and (stages := [name for name, _ in body.named_children()]):
        return f"backbone.body.{stages[-1]}"
    if isinstance(features, nn.Sequential):
        lite = len(features) == 2 and all(isinstance(part, nn.Sequential) for part in features)
        return "backbone.features.0" if lite else "backbone.features"
    return None


def _no_scores(raw: Any) -> NoReturn:
    raise ModelError(
        "a detection model returns a list of detections, not scores of classes. Give the target as an object, "
        "target=Detected(class, box) or Detected.of(model(images)), or as a function of the list; or say with "
        "adapt(model, output=...) which function of it gives a tensor (B, classes)."
    )
