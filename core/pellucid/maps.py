"""Scoring maps: points and their states, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.adapter import Adapter
from pellucid.errors import InputError, ModelError
from pellucid.results import Explanation, Projection
from pellucid.results.projection import whole


def no_model() -> Adapter:
    """What stands for the model of techniques that explain data alone, and of maps, scored against their states."""
    return Adapter(nn.Identity(), name="no model", offers=frozenset())


def histories(states: Any, maps: Mapping[str, Explanation]) -> tuple[Tensor, dict[str, Explanation]]:
    """States as evaluators take them, the points first: (n, d), or (n, T, d) of points through time.

    Times at which a state or a place is not finite, as of a run that diverged, are left out of both; or points that
    have such a state or place, where that leaves out less.

    Raises:
        ModelError: when an explanation is no map, so that it cannot be scored without a model.
        InputError: when the states do not fit the maps, or no time is left.
    """
    points = states if isinstance(states, Tensor) else torch.as_tensor(np.asarray(states))
    points = points if points.is_floating_point() else points.double()
    for name, one in maps.items():
        if not isinstance(one, Projection):
            raise ModelError(f"'{name}' is {type(one).__name__}, which is not scored without a model; give the model")
        if points.dim() not in (2, 3) or one.values.shape[:-1] != points.shape[:-1]:
            raise InputError(
                f"the map '{name}' has the shape {tuple(one.values.shape)}, the states {tuple(points.shape)}; expected "
                "(n, d) states and (n, k) places, or (T, n, d) and (T, n, k)"
            )
    if points.dim() == 2:
        return points, dict(maps)
    finite = points.isfinite().all(dim=-1)
    for one in maps.values():
        finite = finite & one.values.cpu().isfinite().all(dim=-1)
    times, kept = whole(finite)
    if not bool(times.any()):
        raise InputError("at no time are all states and places finite (no NaN or infinity); there is nothing to score")

    def left(one: Any) -> Any:
        one = one if bool(kept.all()) else one[kept]
        return replace(one, values=one.values[times], times=None if one.times is None else one.times[times])

    histories = points.transpose(0, 1)[kept][:, times].contiguous()
    return histories, {name: left(one) for name, one in maps.items()}


def states_of(points: Tensor) -> Tensor:
    """States as projectors take them, (n, d) or (T, n, d), of histories as evaluators take them."""
    return points.transpose(0, 1) if points.dim() == 3 else points


def like(maps: Mapping[str, Explanation], made: Projection) -> Projection:
    """A control with the labels that the maps have."""
    labels = next((one.labels for one in maps.values() if isinstance(one, Projection)), None)
    return replace(made, labels=labels)
