"""LayerCAM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pellucid_cam.weighted import WeightedMaps


@dataclass(frozen=True, eq=False)
class LayerCAM(WeightedMaps):
    """Multiplies a layer's maps by the target's positive gradient, position by position.

    relu(sum over c of relu(df/dA_c) * A_c). Made for early layers, whose maps are fine and whose channels' gradients
    differ from place to place.

    Jiang et al., 2021, "LayerCAM: exploring hierarchical class activation maps for localization".

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept, as in the paper.
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """The positive part of the gradient."""
        return slopes.relu()
