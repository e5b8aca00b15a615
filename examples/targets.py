"""What can be explained of models that do more than classify: regions, objects and values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import pellucid
from pellucid import Attribution, Detected, Region, Regression


def why_this_segment(model: nn.Module, images: Tensor, index: int) -> dict[str, Attribution]:
    """Explains a class of a segmentation where the model predicts it."""
    segment = Region(index, predicted=True)
    return pellucid.explain(model, images, ["saliency", "grad_cam", "occlusion"], segment)


def why_in_this_box(model: nn.Module, images: Tensor, index: int, box: Sequence[float]) -> Attribution:
    """Explains the sum of a class's logits over a box of the output map."""
    return pellucid.explain(model, images, "integrated_gradients", Region(index, box=box, reduce="sum"))


def why_in_the_auxiliary_map(model: nn.Module, images: Tensor, index: int) -> Attribution:
    """Explains a class of another map than the model's first."""
    adapter = pellucid.adapt(model, output="aux")
    return pellucid.explain(adapter, images, "grad_cam", Region(index))


def why_these_objects(model: nn.Module, images: Tensor) -> dict[str, Attribution]:
    """Explains the surest detection of each image; the model is in eval mode."""
    with torch.no_grad():
        objects = Detected.of(model(images))
    return pellucid.explain(model, images, ["saliency", "grad_cam"], objects)


def d_rise(model: nn.Module, images: Tensor, index: int, box: Sequence[float], n_masks: int = 2000) -> Attribution:
    """Explains an object of each image by random masks, without gradients: D-RISE."""
    rise = pellucid.create("rise", n_masks=n_masks, cells=16, baseline="black")
    return pellucid.explain(model, images, rise, Detected(index, box, required=False))


def why_this_value(model: nn.Module, inputs: Tensor, index: int) -> Attribution:
    """Explains what makes one value of a regression large."""
    return pellucid.explain(model, inputs, "integrated_gradients", Regression(index))


def why_off_the_mark(model: nn.Module, inputs: Tensor, truth: Tensor) -> Attribution:
    """Explains the squared error of a regression, against the true values (B,)."""
    return pellucid.explain(model, inputs, "occlusion", Regression(reference=truth, measure="squared"))
