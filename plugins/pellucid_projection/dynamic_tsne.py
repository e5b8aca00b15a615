"""Dynamic t-SNE: maps of points through time that do not jump."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from pellucid import Check, Projection, Projector
from pellucid_projection.affinities import affinities, among
from pellucid_projection.points import checked, distinct, fewer, principal

EXAGGERATED = 150
"""Steps at the start in which the affinities are exaggerated, as in t-SNE."""

ALL_LAGS = 32
"""Up to so many frames, every pair of a trajectory's times counts; of longer ones, pairs at log-spaced distances."""


@dataclass(frozen=True, eq=False)
class DynamicTSNE(Projector):
    """Places points through time so that both each frame's neighbourhoods and each point's own trajectory are kept.

    Minimises, over the places of all points at all times, the mean over frames of t-SNE's divergence within the frame,
    plus `trajectory` times the Sammon stress along trajectories,

        sum w (d - s D)^2 / sum w (s D)^2,   w = 1 / D,

    over all pairs of times of each point, with D their distance in state space, d that on the map, and s the one scale
    of the map: how far points lie from their frame's centre, on the map to as states, in the mean. So a point moves
    across as much of the map as its state moves across the others', and a point that stands still stands still. (With
    the scale that fits the trajectories best, all moves shrink to almost nothing.) Frames are tied by trajectories
    alone: no point attracts or repels one
    of another time, which is what makes joint maps of all times miss both neighbours and moves.

    Equal states have equal places, exactly, at whatever times. It starts from the principal axes, so that no random
    number is drawn. Points that do not move, (n, d), are t-SNE's.

    After Rauber, Falcao and Telea, "Visualizing time-dependent data using dynamic t-SNE", 2016, who penalise every move
    on the map; a move that took place is then drawn too short, and a large penalty hides it. The stress asks for moves
    of the right length.

    Takes time of order T n^2 for T frames of n points; of more than `n_landmarks` points only that many, evenly spaced
    in the given order, are fitted, and the others are placed among their nearest landmarks of the same time.

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
    trajectory: Annotated[float, Ge(0)] = 3.0
    n_iterations: Annotated[int, Ge(EXAGGERATED)] = 500
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
        if len(chosen) < count:
            places = among(frames, chosen, places, perplexity)
            note = f"points are fitted, of {count}; the others are placed among them"
            notes += (Check.info("landmarks", float(len(chosen)), note),)
        notes += (Check.info("divergence", descent.divergence, "Kullback-Leibler, mean over the frames"),)
        if len(frames) > 1:
            notes += (Check.info("trajectory stress", descent.stress, "Sammon's, along the trajectories"),)
        values = places if states.dim() == 3 else places[0]
        return Projection(values.to(states), checks=notes)


class _Descent:
    """Gradient descent with momentum and gains, as t-SNE's.

    Attributes:
        divergence: the mean over frames, at the end.
        stress: along the trajectories, at the end.
    """

    def __init__(self, frames: Tensor, equal: Tensor, perplexity: float, trajectory: float, n_components: int) -> None:
        self.shape = (*frames.shape[:2], n_components)
        self.equal, self.trajectory = equal, trajectory
        self.divergence = self.stress = 0.0
        points = frames.double()
        scale = float((points - points.mean(dim=(0, 1))).square().sum(dim=-1).mean().sqrt())
        points = (points - points.mean(dim=(0, 1))) / max(scale, 1e-300)
        start = principal(points.flatten(0, 1), n_components, 1e-2).float()
        self.copies = equal.bincount().unsqueeze(1).float()
        self.places = torch.zeros(len(self.copies), n_components).index_add_(0, equal, start) / self.copies
        self.neighbours = [affinities(frame, perplexity) for frame in points] if frames.shape[1] > 1 else []
        self.lags: list[tuple[int, Tensor, Tensor]] = []
        for lag in _lags(len(frames)):
            distances = (points[lag:] - points[:-lag]).norm(dim=-1).float()
            self.lags.append((lag, distances, torch.zeros(())))
        total = sum(float(d.sum()) for _, d, _ in self.lags) / max(1, sum(d.numel() for _, d, _ in self.lags))
        # Weights of pairs that hardly moved are bounded, or these few would decide how far a step may go.
        self.lags = [
            (lag, d, torch.where(d > 0, 1 / d.clamp_min(1e-3 * total + 1e-30), 0.0)) for lag, d, _ in self.lags
        ]
        self.spread = _spread(points)
        self.length = sum(float(d.double().sum()) for _, d, _ in self.lags)

    def run(self, steps: int) -> Tensor:
        """Descends, and returns the places (T, n, n_components)."""
        rate = self.shape[1] / 48
        velocity, gains = torch.zeros_like(self.places), torch.ones_like(self.places)
        for step in range(steps):
            early = step < EXAGGERATED
            slope = self._slope(12.0 if early else 1.0, last=step == steps - 1)
            gains = torch.where(slope.sign() == velocity.sign(), gains * 0.8, gains + 0.2).clamp_min(0.01)
            velocity = (0.5 if early else 0.8) * velocity - rate * gains * slope
            # Close pairs of times make the stress stiff: where a step overshoots, it is kept to the order of the map.
            limit = self.places[self.equal].norm(dim=1).mean().clamp_min(5.0)
            velocity = velocity * (limit / velocity.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp(max=1)
            self.places = self.places + velocity
            self.places = self.places - self.places[self.equal].mean(dim=0)
        return self.places[self.equal].view(self.shape)

    def _slope(self, exaggeration: float, last: bool) -> Tensor:
        places = self.places[self.equal].view(self.shape)
        slope = torch.zeros_like(places)
        divergence = 0.0
        for frame, near, out in zip(places, self.neighbours, slope, strict=False):
            squares = frame.square().sum(dim=1)
            q = torch.addmm(squares[:, None] + (squares + 1), frame, frame.T, alpha=-2).clamp_(min=1).reciprocal_()
            q.fill_diagonal_(0)
            total = q.sum()
            if last:
                divergence += float(torch.xlogy(near, near * total / q.clamp_min(1e-30)).sum())
            force = q.mul_(near * exaggeration - q / total)
            out += 4 * (force.sum(dim=1, keepdim=True) * frame - force @ frame)
        if self.lags and self.trajectory:
            slope += self.trajectory * self.shape[0] * self._pull(places, last)
        self.divergence = divergence / self.shape[0]
        return torch.zeros_like(self.places).index_add_(0, self.equal, slope.flatten(0, 1)) / self.copies

    def _pull(self, places: Tensor, last: bool) -> Tensor:
        """The slope of the stress."""
        moves = [places[lag:] - places[:-lag] for lag, _, _ in self.lags]
        lengths = [move.norm(dim=-1) for move in moves]
        # A single trajectory has no width to be measured by: the scale is then what fits it.
        drawn = sum(float(length.double().sum()) for length in lengths)
        scale = _spread(places) / self.spread if self.spread else drawn / max(self.length, 1e-300)
        slope = torch.zeros_like(places)
        if scale == 0 or self.length == 0:
            return slope
        whole = scale**2 * self.length
        stress = 0.0
        for (lag, distances, weights), move, length in zip(self.lags, moves, lengths, strict=True):
            pull = 2 * (weights * (1 - scale * distances / length.clamp_min(1e-9)) / whole).unsqueeze(-1) * move
            slope[lag:] += pull
            slope[:-lag] -= pull
            if last:
                stress += float((weights * (length - scale * distances).square()).sum()) / whole
        self.stress = stress
        return slope


def _spread(points: Tensor) -> float:
    """How far points (T, n, d) lie from their frame's centre, in the mean."""
    return float((points - points.mean(dim=1, keepdim=True)).norm(dim=-1).double().mean())


def _lags(count: int) -> list[int]:
    if count <= ALL_LAGS:
        return list(range(1, count))
    return sorted({round(2 ** (power / 2)) for power in range(2 * math.ceil(math.log2(count)))} & set(range(1, count)))
