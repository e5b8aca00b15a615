"""Eigen-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pellucid import Attribution, Check, Explainer, Look, Passes, Sample


@dataclass(frozen=True, eq=False)
class EigenCAM(Explainer):
    """The first principal component of a layer's maps, whatever the class.

    With the maps as a matrix A (positions x channels) = U S V', the projection A v_1. It needs no gradient and no
    target, so that it says what stands out to the network, not why it decided for a class.

    Muhammad and Yeasin, 2020, "Eigen-CAM: class activation map using principal components". A singular vector has no
    sign of its own: the one is taken that agrees with the channels' mean map. The paper does not centre the maps;
    some libraries do.

    Attributes:
        layer: the layer whose maps are projected; `"auto"` is the last one with positions before the head.
        centre: whether each channel's mean over the positions is taken off first.
    """

    layer: str = "auto"
    centre: bool = False

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Centred and not."""
        return [cls(), cls(centre=True)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One forward pass."""
        seen = yield Look(at=sample, activations=[self.layer])
        maps = seen.maps(self.layer)
        points = maps.flatten(2).transpose(1, 2)
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        if self.centre:
            points = points - points.mean(dim=1, keepdim=True)
        left, sizes, _ = torch.linalg.svd(points, full_matrices=False)
        component = left[:, :, 0] * sizes[:, :1]
        agreement = (component * maps.mean(dim=1).flatten(1)).sum(dim=1, keepdim=True)
        values = torch.where(agreement < 0, -component, component).reshape(len(maps), *maps.shape[2:])
        energy = (sizes**2).sum(dim=1).clamp_min(torch.finfo(sizes.dtype).tiny)
        share = Check.info("share", sizes[:, 0] ** 2 / energy, "of the maps' energy that the component holds")
        return Attribution(values, over=self.layer, checks=(share,))
