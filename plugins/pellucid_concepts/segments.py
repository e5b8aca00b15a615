"""Parts of photos: segments at several resolutions, and the patches that show one part alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid import InputError, ParameterError, Sample, Unavailable

GREY = 117 / 255
"""What surrounds a part, as a share of a photo's range: about the mean of photographs."""
OVERLAP = 0.5
"""Of two segments of an image whose intersection is a greater share of their union, one is kept."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of an image.

    Attributes:
        image: the image's place.
        top: its first row; `left` its first column.
        left: its first column.
        mask: (h, w) which pixels of its box belong to it.
    """

    image: int
    top: int
    left: int
    mask: Tensor

    @classmethod
    def of(cls, image: int, mask: Tensor) -> Segment:
        """The segment of a mask (H, W) that covers something."""
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        return cls(image, top, left, mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1])


@dataclass(frozen=True, eq=False)
class Cutter:
    """Cuts photos into segments, and segments out of photos.

    Attributes:
        photos: (n, C, H, W) as the model is given them.
        low: (C, 1, 1) black, and `high` white, in the model's numbers.
        high: (C, 1, 1) white.
        how: "slic", or a function of one photo (C, H, W) that gives maps (H, W) of whole numbers, one or several; a
            negative number is no segment.
        resolutions: of SLIC, about how many segments.
        resized: whether a patch shows its part as large as the photo, rather than in its place.
    """

    photos: Tensor
    low: Tensor
    high: Tensor
    how: Any
    resolutions: Sequence[int]
    resized: bool

    @classmethod
    def of(cls, photos: Tensor, sample: Sample, how: Any, resolutions: Sequence[int], resized: bool) -> Cutter:
        """For photos of the sample's form.

        Raises:
            InputError: when they are no photos.
        """
        if photos.dim() != 4:
            raise InputError(f"ace is for photos (n, C, H, W); the inputs are {tuple(photos.shape)}")
        if sample.mean is not None and sample.std is not None and len(sample.mean) == photos.shape[1]:
            mean, std = (torch.tensor(one).to(photos).reshape(-1, 1, 1) for one in (sample.mean, sample.std))
            low, high = -mean / std, (1 - mean) / std
        else:
            inputs: Tensor = sample.inputs
            low, high = (end.to(photos).reshape(1, 1, 1).expand(photos.shape[1], 1, 1) for end in inputs.aminmax())
        return cls(photos, low, high, how, resolutions, resized)

    def segments(self, image: int) -> list[Segment]:
        """All segments of one photo at all resolutions, without near duplicates; the coarse ones come first."""
        masks = torch.cat([self._masks(image, place) for place in range(self._maps(image))])
        flat = masks.flatten(1).double()
        shared = flat @ flat.T
        sizes = shared.diagonal()
        alike = shared / (sizes[:, None] + sizes - shared) > OVERLAP
        kept: list[int] = []
        for place in range(len(masks)):
            if not bool(alike[place, kept].any()):
                kept.append(place)
        return [Segment.of(image, masks[place]) for place in kept]

    def one_of(self, image: int, generator: torch.Generator) -> Segment:
        """A random segment of one photo, at a random resolution."""

        def drawn(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        masks = self._masks(image, drawn(self._maps(image)))
        return Segment.of(image, masks[drawn(len(masks))])

    def patches(self, segments: Sequence[Segment]) -> Tensor:
        """(n, C, H, W) each part alone, surrounded by grey."""
        grey = self.low + GREY * (self.high - self.low)
        patches = []
        for one in segments:
            height, width = one.mask.shape
            box = (slice(one.top, one.top + height), slice(one.left, one.left + width))
            part = torch.where(one.mask.to(self.photos.device), self.photos[one.image][:, *box], grey)
            if self.resized:
                patch = F.interpolate(part[None], self.photos.shape[2:], mode="bilinear", align_corners=False)[0]
            else:
                patch = grey.expand_as(self.photos[0]).clone()
                patch[:, *box] = part
            patches.append(patch)
        return torch.stack(patches)

    def covered(self, segments: Sequence[Segment]) -> Tensor:
        """(n, H, W) which pixels of each photo belong to one of the segments."""
        masks = torch.zeros(len(self.photos), *self.photos.shape[2:], dtype=torch.bool)
        for one in segments:
            height, width = one.mask.shape
            masks[one.image, one.top : one.top + height, one.left : one.left + width] |= one.mask
        return masks

    def _maps(self, image: int) -> int:
        return len(self.resolutions) if self.how == "slic" else len(self._given(image))

    def _masks(self, image: int, place: int) -> Tensor:
        """(s, H, W) the segments of one photo at one resolution; every label is one, the last as well as the first."""
        labels = self._slic(image, self.resolutions[place]) if self.how == "slic" else self._given(image)[place]
        names = torch.unique(labels)
        names = names[names >= 0]
        if not len(names):
            raise InputError(f"the segments of image {image} cover nothing; expected a label of 0 or more somewhere")
        masks: Tensor = labels == names[:, None, None]
        return masks

    def _given(self, image: int) -> list[Tensor]:
        function: Callable[[Tensor], Any] = self.how
        given = function(self.photos[image])
        maps = [torch.as_tensor(one).cpu() for one in (given if isinstance(given, (list, tuple)) else [given])]
        for one in maps:
            if one.shape != self.photos.shape[2:] or one.is_floating_point() or one.dtype == torch.bool:
                raise ParameterError(
                    f"segments gave a map of {one.dtype} of shape {tuple(one.shape)}; expected whole numbers of shape "
                    f"{tuple(self.photos.shape[2:])}"
                )
        if not maps:
            raise ParameterError("segments gave no map; expected one, or a list of them")
        return [one.long() for one in maps]

    def _slic(self, image: int, count: int) -> Tensor:
        try:
            from skimage.segmentation import slic
        except ImportError as error:
            raise Unavailable(
                "segments='slic' needs scikit-image: pip install 'pellucid[images]'; or give a function"
            ) from error
        photo = ((self.photos[image] - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1)
        photo = photo.expand(3, -1, -1) if len(photo) == 1 else photo  # what has one channel only is no colour to SLIC
        made = slic(photo.permute(1, 2, 0).double().cpu().numpy(), n_segments=count, compactness=20, sigma=1)
        return torch.from_numpy(made).long()
