"""What PHATE does with a kernel: diffusion, log probabilities, and metric scaling of their distances."""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 100
"""The most steps of a walk that the entropy is looked at for."""

MAJORISATIONS = 300
"""The most steps of the scaling, which ends when a step gains less than 1e-6 of the stress."""


def spectrum(kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and -vectors of a symmetric kernel (n, n) divided by the roots of its row sums, and these sums."""
    degrees = kernel.sum(dim=1)
    roots = degrees.sqrt()
    rates, modes = torch.linalg.eigh(kernel / roots / roots.unsqueeze(1))
    return rates, modes, degrees


def diffused(rates: Tensor, modes: Tensor, degrees: Tensor, steps: int) -> Tensor:
    """(n, n) the probabilities of a walk from each point to each other in so many steps."""
    roots = degrees.sqrt()
    walk = (modes * rates**steps) @ modes.T
    return (walk * roots / roots.unsqueeze(1)).clamp_min(0)


def entropy_knee(rates: Tensor) -> int:
    """The steps at which the entropy of the eigenvalues' powers stops to fall fast: where two lines fit it best."""
    times = torch.arange(1, LONGEST + 1, dtype=rates.dtype)
    powers = rates.abs().clamp_max(1) ** times.unsqueeze(1)
    shares = powers / powers.sum(dim=1, keepdim=True)
    entropy = -torch.xlogy(shares, shares).sum(dim=1)
    errors = [_misfit(times[:end], entropy[:end]) + _misfit(times[end - 1 :], entropy[end - 1 :])
              for end in range(2, LONGEST)]  # fmt: skip
    return int(torch.tensor(errors).argmin()) + 2


def potentials(walk: Tensor) -> Tensor:
    """(n, n) the distances between points' log probabilities."""
    logs = -(walk + 1e-7).log()
    return torch.cdist(logs, logs, compute_mode="donot_use_mm_for_euclid_dist")


def scaled(distances: Tensor, axes: int) -> tuple[Tensor, float]:
    """Places (n, axes) whose distances are near those given (n, n), and their stress, relative to these.

    Starts from classical scaling and majorises the stress (de Leeuw, 1977), which falls at every step.
    """
    squares = distances.square()
    centred = squares - squares.mean(dim=0) - squares.mean(dim=1, keepdim=True) + squares.mean()
    weights, vectors = torch.linalg.eigh(-(centred + centred.T) / 4)
    places = vectors.flip(1)[:, :axes] * weights.flip(0)[:axes].clamp_min(0).sqrt()
    largest = places.gather(0, places.abs().argmax(dim=0, keepdim=True))
    places = places * torch.where(largest < 0, -1.0, 1.0)
    size = float(squares.sum())
    if size == 0:
        return places, 0.0
    before = float("inf")
    for _ in range(MAJORISATIONS):
        drawn = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
        stress = float((drawn - distances).square().sum()) / size
        if before - stress <= 1e-6 * stress:
            break
        before = stress
        pulls = torch.where(drawn > 0, distances / drawn, 0.0)
        places = (pulls.sum(dim=1, keepdim=True) * places - pulls @ places) / len(places)
    return places, stress


def _misfit(times: Tensor, values: Tensor) -> float:
    """The squared error of the line that fits best."""
    times, values = times - times.mean(), values - values.mean()
    slope = float(times @ values) / max(float(times @ times), 1e-300)
    return float((values - slope * times).square().sum())
