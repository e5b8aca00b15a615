"""Projections: states placed on a few axes, as points or as trajectories through time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.base import ENTRY_PER_EXAMPLE, Explanation, per_example

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Projection(Explanation):
    """States placed on a few axes.

    Attributes:
        values: (n, d) the points, or (T, n, d) the points at each time. Slicing picks points, at all times.
        labels: (n,) a class or a cluster of each point, for its colour; or None.
        names: what each point is called, or None.
        explained: (d,) the share of the variance that each axis explains, where the technique knows it.
        times: (T,) the times of a trajectory, such as training steps; or None.
        marks: what each point is marked as, such as "prototype", "" for those that are not; or None.
    """

    values: Tensor = field(metadata=per_example(axis=-2))
    labels: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    names: tuple[str, ...] | None = field(default=None, kw_only=True, metadata=ENTRY_PER_EXAMPLE)
    explained: Tensor | None = field(default=None, kw_only=True)
    times: Tensor | None = field(default=None, kw_only=True)
    marks: tuple[str, ...] | None = field(default=None, kw_only=True, metadata=ENTRY_PER_EXAMPLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values.dim() not in (2, 3):
            raise InputError(f"points have shape {self._shape()}; expected (n, d) or (T, n, d)")
        if self.times is not None and (not self.moves or self.times.shape != self.values.shape[:1]):
            raise InputError(f"times have shape {tuple(self.times.shape)}; the points {self._shape()}")

    @property
    def moves(self) -> bool:
        """Whether the points move through time."""
        return self.values.dim() == 3

    @property
    def frames(self) -> tuple[Tensor, ...]:
        """The points (n, d) at each time; one frame where they do not move."""
        return tuple(self.values) if self.moves else (self.values,)

    def axis_names(self) -> tuple[str, ...]:
        """The names of the axes, with the share of the variance that each explains where it is known."""
        shares = None if self.explained is None else self.explained.detach().cpu().tolist()
        return tuple(
            f"axis {place + 1}" if shares is None or place >= len(shares) else f"axis {place + 1} ({shares[place]:.0%})"
            for place in range(self.values.shape[-1])
        )

    def plot(self, axes: tuple[int, int] = (0, 1), *, annotate: bool | None = None) -> Figure:
        """Draws two of the axes and returns a matplotlib figure, without showing it.

        Points are coloured by their labels, a few moving ones without labels by their names; marked ones have a ring in
        their mark's colour. Points that move are drawn as paths, fading towards their start and ending in a dot at the
        last place that they have. Both axes have one scale, so that distances are what they seem. With one axis, the
        points are spread along the other by their order.

        Args:
            axes: which axes.
            annotate: whether the points' names are written; None writes them for at most 25 that are in no legend.

        Raises:
            InputError: when an axis does not exist.
        """
        from pellucid.results import charts

        return charts.projection(self, axes, annotate)

    def to_dataframe(self) -> pd.DataFrame:
        """A line for each point (and time): its place on each axis, its label and name."""
        import pandas as pd

        times: list[Any] = list(range(len(self.frames))) if self.times is None else self.times.cpu().tolist()
        tables = []
        for time, frame in zip(times, self.frames, strict=True):
            places = frame.detach().cpu().double().numpy()
            table = pd.DataFrame(places, columns=[f"axis {place + 1}" for place in range(frame.shape[1])])
            table.insert(0, "point", range(len(self)))
            if self.moves:
                table.insert(0, "time", time)
            if self.labels is not None:
                table["label"] = self.labels.detach().cpu().numpy()
            if self.names is not None:
                table["name"] = list(self.names)
            if self.marks is not None:
                table["mark"] = list(self.marks)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)


def whole(finite: Tensor) -> tuple[Tensor, Tensor]:
    """Which times (T,) and which points (n,) of finite places (T, n) have no other places but these.

    Either the times at which a place is not finite are left out, as of a network that diverged, or the points that have
    such a place, as of one network of several: what loses fewer places.
    """
    times, points = finite.all(dim=1), finite.all(dim=0)
    if int(times.sum()) * len(points) >= int(points.sum()) * len(times):
        return times, torch.ones_like(points)
    return torch.ones_like(times), points


def path_lengths(places: Tensor) -> Tensor:
    """(n,) how far each point of (T, n, d) goes, all its steps together; steps that are not finite do not count.

    Raises:
        InputError: when the points do not move.
    """
    if places.dim() != 3:
        raise InputError(f"the points have shape {tuple(places.shape)}, and do not move; expected (T, n, d)")
    steps: Tensor = places.detach().cpu().double().diff(dim=0).norm(dim=-1)
    return steps.nan_to_num(0.0, 0.0, 0.0).sum(dim=0)
