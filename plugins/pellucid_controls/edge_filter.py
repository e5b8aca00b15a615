"""The control that looks at the image's edges only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid import Attribution, Explainer, Sample, Unsuitable

LUMA = (0.299, 0.587, 0.114)
"""The shares of red, green and blue in brightness (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class EdgeFilter(Explainer):
    """The image's edges: the size of its Sobel gradient.

    sqrt(gx^2 + gy^2) of the luminance, the same in every channel. Many attributions look convincing because they look
    like edges; Adebayo et al., 2018, "Sanity checks for saliency maps", hold them against an edge detector. The
    luminance is the photo's own where the model's normalisation is known; with other than three channels it is their
    mean. The border repeats its pixels, so that it is no edge.

    Raises:
        Unsuitable: if the input is no image (B, C, H, W).
    """

    def explain(self, sample: Sample) -> Attribution:
        """No look at the model."""
        image = sample.inputs
        if not isinstance(image, Tensor) or image.dim() != 4:
            raise Unsuitable(
                "edge_filter needs one image (B, C, H, W), and this model's input is another; use input_magnitude or "
                "random as a control"
            )
        padded = F.pad(_luminance(image, sample), (1, 1, 1, 1), mode="replicate")
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(image) / 8
        edges = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None]).square().sum(dim=1, keepdim=True).sqrt()
        return Attribution(edges.expand_as(image).clone(), over="input")


def _luminance(image: Tensor, sample: Sample) -> Tensor:
    """The brightness of each pixel, (B, 1, H, W)."""
    if image.shape[1] != len(LUMA):
        return image.mean(dim=1, keepdim=True)
    shares = torch.tensor(LUMA)
    if sample.std is not None:
        # The mean only shifts the brightness, and edges do not see that.
        shares = shares * torch.tensor(sample.std)
    return (image * shares.to(image).reshape(1, -1, 1, 1)).sum(dim=1, keepdim=True)
