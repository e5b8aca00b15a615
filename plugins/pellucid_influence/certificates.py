"""What stands beside every influence: what was left out, whether the model has learnt, and what the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pellucid import Check, Look, Passes, Training
from pellucid_influence.training import LOOK, Kernel, Told, alone, block_rows, classes_of

UNTRAINED = 0.9
"""A mean training loss of this share of the best constant guess's is no learnt one's."""


def certificates(found: Kernel, train: Training) -> list[Check]:
    """The checks of a kernel: its layers, the training loss and gradient, and the classes without examples."""
    labels = train.labels
    guess = constant_loss(labels)
    share = float(found.losses.double().mean()) / guess if guess > 0 else 0.0
    note = "the mean training loss as a share of the best constant guess's"
    if len(found.squares):
        mean = float(found.squares.double().clamp_min(0).sqrt().mean())
        note += f"; gradient norms are {mean:.3g} on average"
    if found.gradient is not None:
        note += f", that of the mean loss is {found.gradient:.3g}"
    if share >= UNTRAINED:
        note += "; the model looks untrained, so that what an example adds to it says little"
    checks = [found.covered, Check.bound("training loss", share, UNTRAINED, note)]
    if found.classes and not labels.is_floating_point():
        absent = (torch.bincount(labels.reshape(-1), minlength=found.classes) == 0).nonzero()[:, 0].tolist()
        named = ", ".join(map(str, absent[:10])) + (" and others" if len(absent) > 10 else "")
        lacking = f"no training example is of the classes {named}, for which none can speak" if absent else "none"
        checks.append(Check.bound("classes without examples", len(absent), 0, lacking))
    return checks


def learnt(train: Training, weights: Mapping[str, Tensor]) -> Passes[list[Check]]:
    """Whether a model with such weights has learnt its training data, and which classes these lack."""
    told, step, start, classes = Told(), LOOK, 0, 0
    while start < len(train):
        seen = yield Look(at=train[start : start + step], outputs=True, factors=("*",), weights=weights)
        factors, classes = seen.factors, classes_of(seen.outputs)
        told.add(alone(factors, seen.scores), seen.scores.device)
        start, step = start + step, min(LOOK, block_rows(factors)) if factors.layers else LOOK
    squares, losses = torch.cat(told.squares), torch.cat(told.losses)
    covered = factors.check()
    return certificates(Kernel(torch.empty(0), squares, losses, told.gradient, covered, classes=classes), train)[1:]


def constant_loss(labels: Tensor) -> float:
    """The mean loss of the best guess that does not look at the inputs."""
    if labels.is_floating_point():
        spread = (labels - labels.mean(dim=0)).double().square()
        return float(spread.reshape(len(labels), -1).sum(dim=1).mean())
    shares = torch.bincount(labels.reshape(-1)).double() / labels.numel()
    shares = shares[shares > 0]
    return -float((shares * shares.log()).sum())


def shown(train: Training) -> dict[str, Any]:
    """What an `Influence` keeps of the training examples: their classes, and the inputs where they are images."""
    labels, inputs = train.labels, train.source.inputs
    classes = None if labels.is_floating_point() or labels.dim() > 1 else labels
    return {"train_labels": classes, "train": inputs if inputs is not None and inputs.dim() == 4 else None}
