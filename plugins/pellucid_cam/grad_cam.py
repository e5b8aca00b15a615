"""Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pellucid_cam.weighted import WeightedMaps


@dataclass(frozen=True, eq=False)
class GradCAM(WeightedMaps):
    """Weights a layer's maps by the target's mean gradient.

    relu(sum over c of w_c A_c), with w_c the mean over the positions of df/dA_c. Behind the last maps of a network with
    average pooling and a linear head it is `cam` up to the factor 1 / (h w); elsewhere the mean gradient can give a
    position credit that it did not have (`hires_cam` does not).

    Selvaraju et al., 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization".

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept, as in the paper.
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """The mean gradient of each channel."""
        return slopes.mean(dim=(2, 3), keepdim=True)
