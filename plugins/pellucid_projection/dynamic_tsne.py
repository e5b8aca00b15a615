"""Dynamic t-SNE: maps of points through time that do not jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from pellucid import Check, Projection, Projector
from pellucid_projection.affinities import affinities, among
from pellucid_projection.points import Unit, checked, distinct, fewer, principal
from pellucid_projection.trajectories import Trajectories

EARLY = 100
"""Steps at the start in which affinities weigh 4 times and trajectories 10 times, so that frames agree on a layout."""


@dataclass(frozen=True, eq=False)
class DynamicTSNE(Projector):
    """Places points through time so that both each frame's neighbourhoods and each point's own trajectory are kept.

    Minimises, over the places of all points at all times, the mean over frames of t-SNE's divergence within the frame,
    plus `trajectory` times the mean squared relative error of the moves drawn, (d - s D)^2 / (s D)^2 over all pairs of
    times of each point, with D their distance in state space, d that on the map, and s the one scale of the map: how
    far points lie from their frame's centre, on the map to as states, in the mean. So a point moves across as much of
    the map as its state moves across the others', and a point that stands still stands still. (With the scale that
    fits the trajectories best, all moves shrink to almost nothing.) Frames are tied by trajectories alone: no point
    attracts or repels one of another time, which is what makes joint maps of all times miss both neighbours and moves.

    Equal states have equal places, exactly, at whatever times. It starts from the principal axes, so that no random
    number is drawn. Points that do not move, (n, d), are t-SNE's.

    After Rauber, Falcao and Telea, "Visualizing time-dependent data using dynamic t-SNE", 2016, who penalise every move
    on the map; a move that took place is then drawn too short, and a large penalty hides it. The stress asks for moves
    of the right length.

    Takes time of order T n^2 and memory of order n (n + T^2) for T frames of n points; of more than `n_landmarks`
    points only that many, evenly spaced in the given order, are fitted, and the others are placed among their nearest
    landmarks of the same time.

    Attributes:
        n_components: the number of axes.
        perplexity: the effective number of neighbours within a frame; at most a third of the points.
        trajectory: the weight of the trajectories; 0 maps every frame on its own.
        n_iterations: steps of the descent.
        n_landmarks: how many points are fitted.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two different ones, or not finite.
    """

    n_components: Annotated[int, Ge(1), Le(3)] = 2
    perplexity: Annotated[float, Gt(1)] = 30.0
    trajectory: Annotated[float, Ge(0)] = 0.7
    n_iterations: Annotated[int, Ge(2 * EARLY)] = 750
    n_landmarks: Annotated[int, Ge(10)] = 1000

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to the states."""
        states = checked(states)
        frames = states.detach().cpu().reshape(-1, *states.shape[-2:])
        count = frames.shape[1]
        chosen = torch.linspace(0, count - 1, min(count, self.n_landmarks)).round().long()
        fitted = frames[:, chosen]
        _, equal = distinct(fitted.flatten(0, 1))
        perplexity, notes = fewer("perplexity", self.perplexity, max(1.01, (len(chosen) - 1) / 3))
        descent = _Descent(fitted, equal, perplexity, self.trajectory, self.n_components)
        places = descent.run(self.n_iterations)
        divergence, stress = descent.divergence(places), descent.trajectories.stress(places)
        if len(chosen) < count:
            places = among(frames, chosen, places, perplexity)
            note = f"points are fitted, of {count}; the others are placed among them"
            notes += (Check.info("landmarks", float(len(chosen)), note),)
        notes += (Check.info("divergence", divergence, "Kullback-Leibler, mean over the frames"),)
        if len(frames) > 1:
            notes += (Check.info("trajectory stress", stress, "mean squared relative error of the moves drawn"),)
        values = places if states.dim() == 3 else places[0]
        return Projection(values.to(states), checks=notes)


class _Descent:
    """Accelerated gradient descent; the step along a trajectory is divided by the curvature of its stress."""

    def __init__(self, frames: Tensor, equal: Tensor, perplexity: float, trajectory: float, n_components: int) -> None:
        self.shape = (*frames.shape[:2], n_components)
        self.equal, self.trajectory = equal, trajectory * len(frames)
        states = frames.flatten(0, 1)
        points = Unit.of(states)(states).view(frames.shape)
        self.trajectories = Trajectories(points)
        start = principal(points.flatten(0, 1), n_components, 1e-2).float()
        self.copies = equal.bincount().unsqueeze(1).float()
        self.start = self._merged(start)
        self.neighbours: list[tuple[slice, Tensor]] = []
        count = frames.shape[1]
        size = max(1, 2**20 // count**2)  # so many frames at a time stay in the caches
        for first in range(0, len(frames) if count > 1 else 0, size):
            part = slice(first, first + size)
            self.neighbours.append((part, torch.stack([affinities(frame, perplexity) for frame in points[part]])))

    def run(self, steps: int) -> Tensor:
        """Descends, and returns the places (T, n, n_components)."""
        places = ahead = self.start
        for step in range(steps):
            early = step < EARLY
            slope, curvature = self.slope(self._all(ahead), *((4.0, 10.0) if early else (1.0, 1.0)))
            rate = self.shape[1] / 6
            # Equal states are one point: its slope is the mean of theirs, and so is its step.
            move = self.trajectories.damped(self._all(self._merged(slope.flatten(0, 1))), rate * curvature)
            later = ahead - rate * self._merged(move.flatten(0, 1))
            later = later - later[self.equal].mean(dim=0)
            ahead = later + (0.5 if early else 0.8 if step < steps // 2 else 0.95) * (later - places)
            places = later
        return self._all(places)

    def slope(self, places: Tensor, neighbours: float = 1.0, trajectories: float = 1.0) -> tuple[Tensor, float]:
        """The slope of what is minimised at a map (T, n, k), times T, and the factor of its curvature.

        Args:
            places: (T, n, k).
            neighbours: the weight of the affinities.
            trajectories: that of the trajectories.
        """
        slope = torch.zeros_like(places)
        for part, near in self.neighbours:
            frame = places[part]
            q = _similarities(frame)
            shares = q.sum(dim=(1, 2), keepdim=True).reciprocal_()
            force = torch.addcmul(near * neighbours if neighbours != 1 else near, q, shares, value=-1.0).mul_(q)
            slope[part] = 4 * (force.sum(dim=2, keepdim=True) * frame - force @ frame)
        pull, curvature = self.trajectories.slope(places)
        weight = trajectories * self.trajectory
        return slope + weight * pull, weight * curvature

    def divergence(self, places: Tensor) -> float:
        """The divergence of a map (T, n, k), in the mean over its frames."""
        total = 0.0
        for part, near in self.neighbours:
            q = _similarities(places[part])
            true = near * q.sum(dim=(1, 2), keepdim=True) / q.clamp_min(1e-30)
            total += float(torch.xlogy(near, true).sum(dtype=torch.float64))
        return total / len(places)

    def _all(self, places: Tensor) -> Tensor:
        return places[self.equal].view(self.shape)

    def _merged(self, values: Tensor) -> Tensor:
        """The mean over equal states of values (T n, k)."""
        merged = values.new_zeros(len(self.copies), values.shape[1])
        return merged.index_add_(0, self.equal, values) / self.copies


def _similarities(frames: Tensor) -> Tensor:
    """(T, n, n) t-SNE's 1 / (1 + squared distance), zero for each point itself, of frames (T, n, k)."""
    squares = frames.square().sum(dim=-1)
    both = squares[:, :, None] + (squares[:, None, :] + 1)
    q = torch.baddbmm(both, frames, frames.transpose(1, 2), alpha=-2).clamp_(min=1).reciprocal_()
    q.diagonal(dim1=1, dim2=2).zero_()
    return q
