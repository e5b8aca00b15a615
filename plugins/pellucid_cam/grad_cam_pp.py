"""Grad-CAM++."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid_cam.weighted import WeightedMaps


@dataclass(frozen=True, eq=False)
class GradCAMPlusPlus(WeightedMaps):
    """Weights a layer's maps by their positive gradients, so that several objects count alike.

    w_c = sum over positions of a relu(g), with g = df/dA and a = g^2 / (2 g^2 + g^3 sum A_c): the closed form of the
    paper for the score exp(f), whose positive factor exp(f) is left out since it is the same everywhere.

    Chattopadhay et al., 2018, "Grad-CAM++: generalized gradient-based visual explanations for deep convolutional
    networks". Here a is 1 / (2 + g sum A_c), which is the same, needs no small number in the denominator and so keeps
    its meaning however small the gradients are. Where maps are negative the denominator may vanish: such positions
    get no weight.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept, as in the paper.
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """The sum of each channel's positive gradients, each by its coefficient."""
        denominator = 2 + slopes * maps.sum(dim=(2, 3), keepdim=True)
        coefficients = torch.where(denominator == 0, 0, 1 / denominator)
        return (coefficients * slopes.relu()).sum(dim=(2, 3), keepdim=True)
