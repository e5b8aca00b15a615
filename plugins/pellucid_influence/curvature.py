"""The generalised Gauss-Newton matrix of the training loss, written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid import Look, Loss, ModelError, Passes, Sample, Score, Target, TargetError, Unsuitable
from pellucid_influence.training import BLOCK_BYTES, Kernel, check_covered

LARGEST = 16384
"""Up to how many parameters the matrix is written out: 2 GB."""


@dataclass(frozen=True, eq=False)
class Output(Target):
    """One of the model's outputs.

    Attributes:
        index: which.
    """

    index: int

    def score(self, given: Score) -> Tensor:
        """The output of each row."""
        logits = given.logits()
        return logits.reshape(len(logits), -1)[:, self.index]


@dataclass(frozen=True, eq=False)
class Gradients(Kernel):
    """What was seen of the training examples, with the gradients of their losses written out.

    Attributes:
        gradients: (N, parameters).
    """

    gradients: Tensor = field(default_factory=lambda: torch.empty(0))


def gauss_newton(queries: Sample, train: Sample, parameters: Sequence[str]) -> Passes[tuple[Tensor, Gradients, Tensor]]:
    """The queries' gradients (Q, P), the training examples', and the Gauss-Newton matrix (P, P) of their mean loss.

    Each example adds J^T S J with the Jacobian J of the outputs and the Hessian S of the loss by the outputs: for the
    cross-entropy diag(p) - p p^T = A A^T with A = diag(sqrt p) - p sqrt(p)^T, for the squared error two.

    Raises:
        Unsuitable: when the model has too many parameters.
    """
    assert isinstance(train.target, Loss)
    squared = train.target.labels.is_floating_point()
    seen = yield Look(at=queries, outputs=True, factors=parameters)
    check_covered(seen.factors)
    size = seen.factors.numel
    if size > LARGEST:
        raise Unsuitable(
            f"the Gauss-Newton matrix of {size} parameters would take {8 * size**2 / 2**30:.0f} GB; take "
            f"curvature='fisher', or fewer parameters (at most {LARGEST})"
        )
    own = seen.factors.written()
    if squared:
        outputs = train.target.labels[0].numel()
    elif isinstance(seen.outputs, Tensor) and seen.outputs.dim() == 2:
        outputs = seen.outputs.shape[1]
    else:
        raise ModelError("the Gauss-Newton matrix needs a model that returns a tensor (B, classes)")
    if not squared and int(train.target.labels.max()) >= outputs:
        raise TargetError(
            f"a training label is {int(train.target.labels.max())}; the model has {outputs} classes, 0 to {outputs - 1}"
        )
    hessian = torch.zeros(size, size, dtype=torch.float64, device=own.device)
    gradients, losses, covered = [], [], seen.factors.check()
    step = max(1, BLOCK_BYTES // (own.element_size() * size * (outputs + 1)))
    for start in range(0, len(train), step):
        block = train[start : start + step]
        targets = [block.target, *(Output(index) for index in range(outputs))]
        seen = yield Look(at=block, factors=parameters, targets=targets)
        loss, *jacobian = (factors.written() for factors in seen.factors)
        gradients.append(loss)
        losses.append(seen.scores[0])
        rows = torch.stack(jacobian, dim=1).double()
        if squared:
            rows = rows * 2**0.5
        else:
            p = seen.scores[1:].T.double().softmax(dim=1)[..., None]
            rows = p.sqrt() * (rows - (p * rows).sum(dim=1, keepdim=True))
        rows = rows.flatten(0, 1)
        hessian.addmm_(rows.T, rows, alpha=1 / len(train))
    whole = torch.cat(gradients)
    mean = float(whole.mean(dim=0).norm())
    norms = whole.square().sum(dim=1)
    found = Gradients(own @ whole.T, norms, torch.cat(losses), mean, covered, gradients=whole)
    return own, found, hessian
