"""Who plays: the inputs' features, put together into segments that are shown or hidden as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import ParameterError, Sample, Unavailable
from pellucid_perturbation.leafwise import by_name, formed_like

WORDS = ("auto", "features", "grid", "slic")

ABSENT = torch.iinfo(torch.long).max
"""Stands in a map for the segment of what an example does not have, such as the padding of a text."""


@dataclass(frozen=True, eq=False)
class Players:
    """The segments of every example, numbered from 0 over all of its inputs.

    Attributes:
        groups: by input, the number of the segment that each feature is in: (1 or B, ...) with as many axes as the
            input, each of its size or 1; -1 for a feature that plays no part, such as the padding of a text.
        counts: (B,) how many segments each example has.
    """

    groups: dict[str, Tensor]
    counts: Tensor

    @classmethod
    def of(cls, sample: Sample, segments: Any, cells: int) -> Players:
        """Makes the segments of a sample.

        Args:
            sample: what is cut into segments.
            segments: `"auto"`: each feature of a table, each token of a text, and a grid else; `"features"`: each
                position, with its channels; `"grid"`: cells of nearly equal size; `"slic"`: superpixels of a photo,
                each example its own; whole numbers that name the segment of each feature, of a shape that broadcasts
                to one example, such as (H, W) or (d,), or to the batch, (B, H, W) or (B, 1, H, W); or a function of
                one example (C, H, W) that returns such a map. With several inputs a mapping from their names to
                these; a segment that is named in several maps spans their inputs.
            cells: the grid's cells along each axis; SLIC makes at most about as many segments.

        Raises:
            ParameterError: when the segments do not fit the inputs, are not whole numbers, or are an unknown word.
            Unavailable: when SLIC is asked and scikit-image is not installed.
        """
        leaves = by_name(sample.inputs)
        maps: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        for name, given in _by_leaf(segments, leaves).items():
            spec = "auto" if given is None else given
            if isinstance(spec, str):
                maps[name] = _by_word(spec, leaves[name], sample, cells)
            elif callable(spec):
                maps[name] = _called(spec, leaves[name])
            else:
                shared[name] = _fitted(spec, leaves[name])
        if sample.frame.mask is not None:
            mask = sample.frame.mask(sample.frame.extras).cpu()
            maps, shared = ({k: torch.where(mask, one, ABSENT) for k, one in some.items()} for some in (maps, shared))
        groups, counts = _numbered(shared)
        for name, one in maps.items():
            own, more = _numbered({name: one})
            groups[name] = torch.where(own[name] < 0, -1, own[name] + counts.reshape(-1, *(1,) * (one.dim() - 1)))
            counts = counts + more
        return cls({name: groups[name] for name in leaves}, counts.expand(len(sample)))

    def shown(self, coalitions: Tensor, examples: Tensor) -> dict[str, Tensor]:
        """By input, the masks of rows of examples that show the segments in each row's coalition, (rows, d)."""
        masks = {}
        # What plays no part is always shown: its number, -1, is that of the last column.
        coalitions = torch.cat([coalitions, coalitions.new_ones(len(coalitions), 1)], dim=1)
        for name, group in self.groups.items():
            group = group % coalitions.shape[1]
            if len(group) == 1:
                mask = coalitions.index_select(1, group.flatten())
            else:
                mask = coalitions.gather(1, group[examples].flatten(1))
            masks[name] = mask.reshape(len(coalitions), *group.shape[1:])
        return masks

    def painted(self, values: Tensor, inputs: Any) -> Any:
        """Values (B, d) of the segments at each of their features: of the inputs' form and shape."""
        leaves, painted = by_name(inputs), {}
        values = torch.cat([values, values.new_zeros(len(values), 1)], dim=1)
        for name, group in self.groups.items():
            places = (group % values.shape[1]).to(values.device).expand(len(values), *group.shape[1:])
            one = values.gather(1, places.flatten(1)).reshape(places.shape)
            painted[name] = one.expand(leaves[name].shape).clone()
        return formed_like(inputs, painted)

    @property
    def together(self) -> bool:
        """Whether every segment holds all channels of its positions."""
        return all(group.dim() < 3 or group.shape[1] == 1 for group in self.groups.values())

    def map(self, inputs: Any) -> Tensor | None:
        """(B, H, W) the segment of each pixel; None for other inputs than photos, and where channels differ."""
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not self.together:
            return None
        (group,) = self.groups.values()
        return group[:, 0].expand(len(inputs), *inputs.shape[2:])


def _by_leaf(segments: Any, leaves: dict[str, Tensor]) -> dict[str, Any]:
    """What is asked of each input."""
    if isinstance(segments, Mapping):
        if unknown := set(segments) - set(leaves):
            raise ParameterError(f"segments for {sorted(unknown)}, but the inputs are {sorted(leaves)}")
        return {name: segments.get(name, "auto") for name in leaves}
    if segments is not None and not isinstance(segments, str) and len(leaves) > 1:
        raise ParameterError(f"one map of segments, but several inputs; expected a mapping from {sorted(leaves)}")
    return dict.fromkeys(leaves, segments)


def _numbered(maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Maps (1 or B, ...) with their names replaced by numbers from 0, and how many (1 or B,) there are in each row.

    What is absent gets -1, and is not counted.
    """
    rows = max((len(one) for one in maps.values()), default=1)
    wide = {name: one.expand(rows, *one.shape[1:]) for name, one in maps.items()}
    numbers, counts = [], []
    for row in range(rows):
        flat = torch.cat([one[row].flatten() for one in wide.values()]) if wide else torch.zeros(0, dtype=torch.long)
        names, number = torch.unique(flat, return_inverse=True)
        count = int((names != ABSENT).sum())
        numbers.append(torch.where(number < count, number, -1))
        counts.append(count)
    sizes = [one[0].numel() for one in wide.values()]
    parts = torch.tensor_split(torch.stack(numbers), torch.tensor(sizes).cumsum(0)[:-1], dim=1) if wide else ()
    return (
        {name: part.reshape(one.shape) for (name, one), part in zip(wide.items(), parts, strict=True)},
        torch.tensor(counts),
    )


def _by_word(word: str, leaf: Tensor, sample: Sample, cells: int) -> Tensor:
    if word not in WORDS:
        raise ParameterError(f"segments='{word}' is unknown; expected one of {WORDS}, a map or a function")
    if word == "slic":
        return _slic(leaf, sample, cells)
    # What stands for the words of a text has an axis of them last, and is presented to the user as words.
    alone = leaf.dim() < 3 or (leaf.dim() == 3 and sample.frame.present is not None)
    return _grid(tuple(leaf.shape[1:]), None if word == "features" or (word == "auto" and alone) else cells)


def _grid(shape: tuple[int, ...], cells: int | None) -> Tensor:
    """The number of the cell that each position lies in, (1, ...); None makes each position a cell."""
    if len(shape) < 2:
        return torch.arange(shape[0]).unsqueeze(0) if shape else torch.zeros(1, dtype=torch.long)
    number = torch.zeros((1, *(1,) * len(shape)), dtype=torch.long)
    for axis, size in enumerate(shape[1:], start=1):
        count = size if cells is None else min(cells, size)
        place = torch.arange(size) * count // size
        number = number * count + place.reshape(-1, *(1,) * (len(shape) - axis - 1))
    return number


def _slic(leaf: Tensor, sample: Sample, cells: int) -> Tensor:
    """Superpixels of each photo by itself, (B, 1, H, W)."""
    if leaf.dim() != 4:
        raise ParameterError(f"segments='slic' is for photos (B, C, H, W); the inputs are {tuple(leaf.shape)}")
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise Unavailable(
            "segments='slic' needs scikit-image: pip install 'pellucid[images]'; or take segments='grid'"
        ) from error
    photos = leaf.detach().cpu().double()
    if sample.mean is not None and sample.std is not None and len(sample.mean) == leaf.shape[1]:
        mean, std = (torch.tensor(one, dtype=torch.float64).reshape(-1, 1, 1) for one in (sample.mean, sample.std))
        photos = (photos * std + mean).clamp(0, 1)
    else:
        low, high = photos.amin((1, 2, 3), keepdim=True), photos.amax((1, 2, 3), keepdim=True)
        photos = (photos - low) / (high - low).clamp_min(1e-12)
    maps = [torch.from_numpy(slic(photo.permute(1, 2, 0).numpy(), n_segments=cells * cells)) for photo in photos]
    return torch.stack(maps).long().unsqueeze(1)


def _called(function: Callable[[Tensor], Any], leaf: Tensor) -> Tensor:
    """The map that a function makes of each example by itself."""
    return torch.cat([_fitted(function(one), one.unsqueeze(0)) for one in leaf])


def _fitted(segments: Any, leaf: Tensor) -> Tensor:
    """A given map as (1 or B, ...) whole numbers with as many axes as the input."""
    try:
        given = torch.as_tensor(segments).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ParameterError(
            f"the segments are a {type(segments).__name__}; expected one of {WORDS}, whole numbers, or a function"
        ) from None
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ParameterError(f"the segments have type {given.dtype}; expected whole numbers, one for each feature")
    shape = tuple(given.shape)
    if given.dim() == 3 and leaf.dim() == 4 and len(given) == len(leaf) > 1:
        if len(given) == leaf.shape[1]:
            raise ParameterError(
                f"the segments {shape} may be one map for each example or for each channel; expected "
                f"{(len(given), 1, *shape[1:])} or {(1, *shape)}"
            )
        given = given.unsqueeze(1)
    if given.dim() < leaf.dim():
        given = given.reshape(*(1,) * (leaf.dim() - given.dim()), *given.shape)
    try:
        given.expand(leaf.shape)
    except RuntimeError:
        raise ParameterError(
            f"the segments have shape {shape}, which does not broadcast to the inputs' {tuple(leaf.shape)}"
        ) from None
    return given.long()
