"""Guided Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from pellucid import Attribution, Check, Explainer, Passes, Sample, Unsuitable, create, together


@dataclass(frozen=True, eq=False)
class GuidedGradCAM(Explainer):
    """Grad-CAM's map, upsampled to the image, times guided backpropagation.

    Where the map says that a position speaks for the target, guided backpropagation says which pixels there. The map
    is upsampled bilinearly, corners not aligned.

    Selvaraju et al., 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization". What is
    sharp in it is guided backpropagation, which depends little on the class; only the map does.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.

    Raises:
        Unsuitable: if the input is no image (B, C, H, W).
    """

    layer: str = "auto"

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})
    known_failures: ClassVar[dict[str, str]] = {
        "explains the layer that it is given": "the layer gives the map; the values are over the input",
    }

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """A forward and a backward pass for the map, and a rule pass."""
        image = sample.inputs
        if not isinstance(image, Tensor) or image.dim() != 4:
            raise Unsuitable(
                "guided_grad_cam multiplies a map with one image (B, C, H, W), and this model's input is another; use "
                "guided_backprop, which takes any input"
            )
        cam, guided = yield from together(
            create("grad_cam", layer=self.layer).explain(sample), create("guided_backprop").explain(sample)
        )
        weights = F.interpolate(cam.values[:, None], image.shape[2:], mode="bilinear", align_corners=False)
        checks: tuple[Check, ...] = (*cam.checks, *guided.checks)
        return Attribution(weights * guided.values, over="input", checks=checks)
