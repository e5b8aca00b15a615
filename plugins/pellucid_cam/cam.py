"""CAM, the original class activation map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pellucid import Attribution, Check, Explainer, Look, Passes, Sample, Unsuitable, together

CONSTANT = 1e-3
"""How far a linear head's gradient may vary, as a share of its greatest value: rounding, half precision included."""


@dataclass(frozen=True, eq=False)
class CAM(Explainer):
    """The head's own weights on the last maps: exact where pooling and one linear layer follow.

    sum over c of w_c A_c, with w_c the weight of the target in the linear layer behind the global average pooling: the
    mean of the map is the target's logit less its bias. The weights are found without looking for the layer: w_c is
    the derivative of the logit by the channel's mean, the sum over positions of df/dA_c. That is exact if and
    only if the gradient is the same at every position and for every input. Both are checked, the second at the input
    halved; a head that fails is refused, and `grad_cam` is its generalisation.

    Zhou et al., 2016, "Learning deep features for discriminative localization". Like the paper's, the map keeps its
    sign and leaves the bias out.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept.

    Raises:
        Unsuitable: if anything but average pooling and a linear layer follows the maps.
    """

    layer: str = "auto"
    relu: bool = False

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """A forward and a backward pass at the sample, and at its half; the latter only through the head."""
        seen, halved = yield from together(
            Look(at=sample, activations=[self.layer], gradients=[self.layer]),
            Look(at=sample.along("zero", [0.5]), gradients=[self.layer]),
        )
        maps, slopes, others = seen.maps(self.layer), seen.map_gradients(self.layer), halved.map_gradients(self.layer)
        weights = slopes.mean(dim=(2, 3), keepdim=True)
        checks = tuple(
            Check.bound(f"constant_over_{what}", _deviation(gradient, weights), CONSTANT, note)
            for what, gradient, note in (
                ("positions", slopes, "the head pools by the mean, so that the weights are exact"),
                ("inputs", others[0], "the head is linear, so that the weights are exact"),
            )
        )
        if not all(check.passed for check in checks):
            raise Unsuitable(
                f"cam needs global average pooling and one linear layer behind layer '{seen.layers[self.layer].name}', "
                "but the gradient of the target there varies with the position or the input. Use grad_cam or "
                "hires_cam, which need neither, or give the layer before the pooling"
            )
        values = (weights * maps).sum(dim=1) * maps[0, 0].numel()
        return Attribution(values.relu() if self.relu else values, over=self.layer, checks=checks)


def _deviation(gradient: Tensor, weights: Tensor) -> Tensor:
    """The greatest deviation of each example's gradient from its weights, as a share of the greatest weight."""
    size = weights.abs().amax(dim=(1, 2, 3)).clamp_min(torch.finfo(weights.dtype).tiny)
    return (gradient - weights).abs().amax(dim=(1, 2, 3)) / size
