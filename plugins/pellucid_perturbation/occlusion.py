"""Occlusion: a window that hides what it covers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Attribution, Explainer, Look, ParameterError, Passes, Sample
from pellucid_perturbation.leafwise import by_name, formed_like

Side = Annotated[int, Ge(1)]


@dataclass(frozen=True, eq=False)
class Occlusion(Explainer):
    """Slides a window over the input and measures how much the score drops where it hides.

    The attribution of a feature is the mean of f(x) - f(x with the window replaced by the baseline) over the windows
    that cover it. The last window of an axis is cut at the border, so that everything is covered.

    Zeiler & Fergus, "Visualizing and understanding convolutional networks", 2014, show the score at the window's
    centre; the mean over the covering windows has the input's resolution and is what captum computes.

    Attributes:
        window: the window's side. An int holds for every axis but the channels, which are always hidden together; a
            tuple holds for the last axes, so that (1, 8, 8) slides over the channels too. None is a seventh of each
            side (32 at 224, with the default stride 13 x 13 windows), and single features in a table.
        stride: the steps between windows, as for `window` and never larger than it; None is half the window.
        baseline: what is shown in place of the hidden features, see `Sample.baseline`.

    Raises:
        ParameterError: when the window does not fit into the input, or the stride leaves features uncovered.
    """

    window: Side | tuple[Side, ...] | None = None
    stride: Side | tuple[Side, ...] | None = None
    baseline: Any = "zero"

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Occlusion]:
        """Coarse windows, that do and do not overlap."""
        return [cls(window=8, stride=8), cls(window=10, stride=6, baseline="mean")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Looks at the sample once, and once more for every window."""
        windows: dict[str, _Windows] = {}
        starts: dict[str, int] = {}
        count = 0
        for name, leaf in by_name(sample.inputs).items():
            windows[name], starts[name] = self._windows(tuple(leaf.shape[1:])), count
            count += len(windows[name])

        def masks(draws: Tensor, examples: Tensor) -> Any:
            return formed_like(sample.inputs, {name: windows[name].shown(draws - starts[name]) for name in windows})

        whole = yield Look(at=sample)
        hidden = yield Look(at=sample.masked(count, masks, self.baseline))
        drops = whole.scores - hidden.scores
        values = {name: one.spread(drops[starts[name] : starts[name] + len(one)]) for name, one in windows.items()}
        together = all(windows[name].whole(leaf.shape[1:]) for name, leaf in by_name(sample.inputs).items())
        return Attribution(formed_like(sample.inputs, values), over="input", reduce="once" if together else "sum")

    def _windows(self, shape: tuple[int, ...]) -> _Windows:
        spatial = shape[1:] if len(shape) > 1 else shape
        window = _sides("window", self.window, [max(1, side // 7) for side in spatial] if shape[1:] else [1], spatial)
        window = (*shape[: len(shape) - len(window)], *window)
        strides = [max(1, side // 2) for side in window[-len(spatial) :]]
        stride = _sides("stride", self.stride, strides, spatial)
        stride = (*window[: len(shape) - len(stride)], *stride)
        if any(side > size for side, size in zip(window, shape, strict=True)):
            raise ParameterError(f"the window {window} is larger than the input, {shape}; expected at most its size")
        if any(step > side for step, side in zip(stride, window, strict=True)):
            raise ParameterError(
                f"the stride {stride} is larger than the window {window}, so that features between the windows would "
                "never be hidden; expected at most the window"
            )
        return _Windows(shape, window, stride)


def _sides(
    name: str, given: int | tuple[int, ...] | None, default: list[int], spatial: Sequence[int]
) -> tuple[int, ...]:
    """Sides for the last axes of an input; at most one axis more than the spatial ones, for the channels."""
    if given is None:
        return tuple(default)
    sides = (given,) * len(spatial) if isinstance(given, int) else given
    if not len(spatial) <= len(sides) <= len(spatial) + 1:
        raise ParameterError(f"{name}={given}: expected one number, or one for each of the axes {tuple(spatial)}")
    return sides


class _Windows:
    """Every place of a window: along each axis, which positions each place covers."""

    def __init__(self, shape: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> None:
        self.covers = []
        for size, side, step in zip(shape, window, stride, strict=True):
            starts = torch.arange(math.ceil((size - side) / step) + 1)[:, None] * step
            positions = torch.arange(size)
            self.covers.append((positions >= starts) & (positions < starts + side))
        self.counts = tuple(len(cover) for cover in self.covers)

    def whole(self, shape: Sequence[int]) -> bool:
        """Whether a window hides all channels of the positions that it covers; the features of a table have none."""
        return len(shape) < 2 or self.counts[0] == 1

    def __len__(self) -> int:
        return math.prod(self.counts)

    def shown(self, places: Tensor) -> Tensor:
        """What each place leaves to be seen, (rows, ...); a place out of range hides nothing."""
        inside = (places >= 0) & (places < len(self))
        hidden = inside.reshape(-1, *(1,) * len(self.covers))
        along = torch.unravel_index(places.clamp(0, len(self) - 1), self.counts)
        for axis, (cover, place) in enumerate(zip(self.covers, along, strict=True)):
            if not bool(cover.all()):
                rows = cover[place]
                hidden = hidden & rows.reshape(len(rows), *(1,) * axis, -1, *(1,) * (len(self.covers) - axis - 1))
        return ~hidden

    def spread(self, drops: Tensor) -> Tensor:
        """The mean of the drops (n, B) over the places that cover each feature, (B, ...)."""
        values: Tensor = torch.unflatten(drops.movedim(0, -1), -1, self.counts)
        for cover in self.covers:  # each step turns the first axis of places into a last axis of positions
            share = cover.to(values)
            values = torch.tensordot(values, share / share.sum(dim=0), dims=([1], [0]))
        return values
