"""Score-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from pellucid import Attribution, Explainer, Look, Passes, Sample, Unsuitable, together


@dataclass(frozen=True, eq=False)
class ScoreCAM(Explainer):
    """Weights a layer's maps by the score of the input seen through each of them.

    relu(sum over k of w_k A_k), with w_k the softmax over the channels of f(x * M_k) - f(0), where the mask M_k is A_k,
    upsampled (bilinear, corners not aligned) and scaled to [0, 1]. No gradient is needed. The softmax makes every
    weight positive, and nearly all of them alike where the scores are; `weights="increase"` keeps the differences.

    Wang et al., 2020, "Score-CAM: score-weighted visual explanations for convolutional neural networks". A flat map
    has no scaled mask and gets no weight, as in the authors' code.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        channels: how many maps to use, those of the greatest energy of each example; None uses all.
        weights: `"softmax"` as in the paper, or `"increase"`, the differences themselves.

    Raises:
        Unsuitable: if the input is no image (B, C, H, W).
    """

    layer: str = "auto"
    channels: Annotated[int, Ge(1)] | None = None
    weights: Literal["softmax", "increase"] = "softmax"

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Both weightings, and few channels."""
        return [cls(), cls(weights="increase"), cls(channels=2)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """A forward pass for the maps, and one for each channel."""
        image = sample.inputs
        if not isinstance(image, Tensor) or image.dim() != 4:
            raise Unsuitable(
                "score_cam masks one image (B, C, H, W), and this model's input is another; use grad_cam, which does "
                "not mask the input"
            )
        seen = yield Look(at=sample, activations=[self.layer])
        maps = self._strongest(seen.maps(self.layer))
        count = maps.shape[1]

        def masks(draws: Tensor, examples: Tensor) -> Tensor:
            chosen = maps[examples.to(maps.device), draws.to(maps.device), None]
            return _scale_(F.interpolate(chosen, image.shape[2:], mode="bilinear", align_corners=False))

        through, nothing = yield from together(
            Look(at=sample.masked(count, masks, "zero")),
            Look(at=sample.along("zero", [0.0])),
        )
        increase = (through.scores - nothing.scores).T.to(maps)
        flat = maps.amax(dim=(2, 3)) == maps.amin(dim=(2, 3))
        weights = increase.masked_fill(flat, -torch.inf).softmax(dim=1) if self.weights == "softmax" else increase
        weights = weights.masked_fill(flat, 0.0)
        return Attribution((weights[:, :, None, None] * maps).sum(dim=1).relu(), over=self.layer)

    def _strongest(self, maps: Tensor) -> Tensor:
        if self.channels is None or self.channels >= maps.shape[1]:
            return maps
        top = maps.square().sum(dim=(2, 3)).topk(self.channels, dim=1).indices
        return maps.take_along_dim(top[:, :, None, None], dim=1)


def _scale_(maps: Tensor) -> Tensor:
    """Scales each map to [0, 1], in its own memory; zero where it is flat."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return maps.sub_(low).div_(torch.where(high > low, high - low, 1))
