"""Smooth Grad-CAM++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Attribution, Explainer, Look, Part, Passes, Sample, Sum


@dataclass(frozen=True, eq=False)
class SmoothGradCAMPP(Explainer):
    """Weighs a layer's maps as Grad-CAM++ does, with gradients averaged over noisy copies of the image.

    With D1, D2, D3 the means over the copies of the score's first three derivatives by map k, and A the map of the
    image itself, position (i, j) counts a_ij = D2_ij / (2 D2_ij + sum_ab A_ab D3_ab), map k weighs
    sum_ij a_ij relu(D1_ij), and the explanation is relu(sum_k weight_k A_k), without rescaling.

    Omeiza, Speakman, Cintas & Weldemariam, "Smooth Grad-CAM++: An enhanced inference level visualization technique for
    deep convolutional neural network models", 2019. As Grad-CAM++ shows for networks that are piecewise linear, the
    k-th derivative of exp(score) is exp(score) g^k with g the gradient of the score. We average g, g^2 and g^3: with
    the factor exp(score) one copy would decide the average wherever scores differ by more than a few units.

    Attributes:
        layer: whose maps are weighed; "auto" is the last one with positions.
        n_samples: how many noisy copies.
        noise: the noise's standard deviation, as a share of each image's range (max - min).
    """

    layer: str = "auto"
    n_samples: Annotated[int, Ge(1)] = 25
    noise: Annotated[float, Ge(0)] = 0.15

    known_failures: ClassVar[dict[str, str]] = {
        "gives other values under another seed": "before pooling and one linear layer the gradient is the same at "
        "every input, so that noise changes nothing at the layer that is chosen there",
    }

    @classmethod
    def test_instances(cls) -> list[SmoothGradCAMPP]:
        """Few copies, so that the checks are quick."""
        return [cls(n_samples=4)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Looks at the image for its maps, and at noisy copies for the gradients' powers."""
        clean = yield Look(at=sample, activations=[self.layer])
        noisy = yield Look(
            at=sample.jittered(self.n_samples, self.noise), gradients=[self.layer], fold=Sum(self._powers)
        )
        maps = clean.maps(self.layer)
        first, second, third = (noisy.layers[self.layer].maps(power / self.n_samples) for power in noisy.folded)
        denominator = 2 * second + (maps * third).sum(dim=(2, 3), keepdim=True)
        shares = torch.where(denominator != 0, second / denominator, torch.zeros_like(second))
        weights = (shares * first.relu()).sum(dim=(2, 3), keepdim=True)
        return Attribution((weights * maps).sum(dim=1).relu(), over=self.layer)

    def _powers(self, part: Part) -> tuple[Tensor, ...]:
        slopes = part.gradients[self.layer]
        return slopes, slopes**2, slopes**3
