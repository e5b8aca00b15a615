"""XGrad-CAM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid_cam.weighted import WeightedMaps


@dataclass(frozen=True, eq=False)
class XGradCAM(WeightedMaps):
    """Weights a layer's maps by the mean gradient where each map is active.

    relu(sum over c of w_c A_c), with w_c = sum of A_c df/dA_c over the sum of A_c: the weights that come nearest to
    sensitivity and conservation at once. Without the ReLU it sums to the same as `hires_cam`.

    Fu et al., 2020, "Axiom-based Grad-CAM: towards accurate visualization and explanation of CNNs". The paper's maps
    are behind a ReLU. For maps of both signs a channel's sum can come near zero and its weight grow without bound;
    a channel whose sum is zero gets none.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept.
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """Each channel's gradient, averaged by its activation."""
        active = maps.sum(dim=(2, 3), keepdim=True)
        return torch.where(active == 0, 0, (maps * slopes).sum(dim=(2, 3), keepdim=True) / active)
