"""HiResCAM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pellucid_cam.weighted import WeightedMaps


@dataclass(frozen=True, eq=False)
class HiResCAM(WeightedMaps):
    """Multiplies a layer's maps by the target's gradient, position by position.

    relu(sum over c of df/dA_c * A_c). Without the ReLU the values sum to f less its bias wherever the head is
    piecewise linear, so that a position has just the credit that it had. Not averaged, unlike `grad_cam`.

    Draelos and Carin, 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks". The paper leaves the ReLU to the plot.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept.
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """The gradient itself."""
        return slopes
