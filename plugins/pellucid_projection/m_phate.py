"""M-PHATE: maps of units through training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from pellucid import Check, ParameterError, Projection, Projector
from pellucid_projection.points import checked, distinct
from pellucid_projection.potentials import diffused, entropy_knee, potentials, scaled, spectrum

MOST = 5000
"""So many points, units times captures, have a kernel of 200 MB."""


@dataclass(frozen=True, eq=False)
class MPHATE(Projector):
    """Places units through time by diffusion within each time and along each unit's own history.

    States (T, n, d) are n units at T times, described by what each does on d examples: for a recorded layer,
    `states.units()`. Points that do not move, (n, d), get a map of PHATE's kind.

    The multislice kernel joins two units at the same time by exp(-(|x - y| / s)^decay), with s the distance of x to
    its `n_neighbors`-th nearest unit at that time, and a unit at two times by exp(-|x - y|^2 / e^2), with e the mean
    distance to the `n_times`-th nearest time of the own history. Made symmetric and divided by its row sums it is a
    random walk; after t steps, t at the knee of the spectrum's entropy, places are such that their distances are those
    of the walk's log probabilities (metric scaling, by majorisation from the classical solution).

    Gigante et al., "Visualizing the PHATE of neural networks", 2019; Moon et al., "Visualizing structure and
    transitions in high-dimensional biological data", 2019. Theirs has landmarks, ours all points, at most 5000; the
    knee is that of the two lines that fit best. Takes memory of order (T n)^2 and time of order (T n)^3.

    Attributes:
        n_components: the number of axes.
        n_neighbors: which neighbour at the same time sets a unit's reach.
        n_times: which of a unit's own times sets the reach in time; at most the others that there are.
        decay: how sharply a reach ends.
        diffusion: the walk's steps; None finds them.
        standardise: whether each unit's activations are brought to mean 0 and variance 1 over the examples at each
            time, as in the paper, so that units are alike that respond to the same examples, however strongly.

    Raises:
        InputError: when the states are not (n, d) or (T, n, d), fewer than two different ones, or not finite.
        ParameterError: when there are more than 5000 points, or fewer than components.
    """

    n_components: Annotated[int, Ge(1)] = 2
    n_neighbors: Annotated[int, Ge(1)] = 2
    n_times: Annotated[int, Ge(1)] = 25
    decay: Annotated[float, Gt(0)] = 5.0
    diffusion: Annotated[int, Ge(1)] | None = None
    standardise: bool = True

    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to the states."""
        states = checked(states)
        count = states.shape[:-1].numel()
        if not self.n_components < count <= MOST:
            raise ParameterError(
                f"{count} points on {self.n_components} axes; expected more points than axes and at most {MOST} (units "
                "times captures). Take fewer units or captures: states[::2]"
            )
        frames = states.detach().cpu().double().reshape(-1, *states.shape[-2:])
        distinct(frames.flatten(0, 1))  # refuses states that are all the same
        if self.standardise:
            frames = frames - frames.mean(dim=-1, keepdim=True)
            frames = frames / frames.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)
        kernel = multislice(frames, self.n_neighbors, self.n_times, self.decay)
        rates, modes, degrees = spectrum(kernel)
        steps = entropy_knee(rates) if self.diffusion is None else self.diffusion
        places, stress = scaled(potentials(diffused(rates, modes, degrees, steps)), self.n_components)
        return Projection(
            places.view(*states.shape[:-1], -1).to(states),
            checks=(
                Check.info("diffusion", float(steps), "steps of the random walk"),
                Check.info("stress", stress, "of the distances drawn, relative"),
            ),
        )


def multislice(frames: Tensor, neighbour: int, times: int, decay: float) -> Tensor:
    """The symmetric kernel (T n, T n) of units (T, n, d) through time."""
    count, units, _ = frames.shape
    kernel = torch.zeros(count, units, count, units, dtype=frames.dtype)
    for time, frame in enumerate(frames if units > 1 else ()):
        distances = torch.cdist(frame, frame, compute_mode="donot_use_mm_for_euclid_dist")
        reach = distances.kthvalue(min(neighbour, units - 1) + 1, dim=1).values  # the nearest is the unit itself
        # A unit with copies has no reach of its own: what is nearest beyond them sets it.
        beyond = torch.where(distances > 0, distances, torch.inf).amin(dim=1).nan_to_num(posinf=1.0)
        reach = torch.where(reach > 0, reach, beyond).unsqueeze(1)
        kernel[time, :, time] = torch.exp(-((distances / reach) ** decay))
    if count > 1:
        paths = frames.transpose(0, 1)
        distances = torch.cdist(paths, paths, compute_mode="donot_use_mm_for_euclid_dist")
        reach = distances.kthvalue(min(times, count - 1) + 1, dim=2).values.mean()
        own = torch.exp(-((distances / reach.clamp_min(1e-300)) ** 2))
        index = torch.arange(units)
        kernel[:, index, :, index] = own
    kernel = kernel.view(count * units, count * units)
    return (kernel + kernel.T) / 2
