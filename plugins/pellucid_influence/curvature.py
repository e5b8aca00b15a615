"""The curvature of the training loss in blocks of rows: the empirical Fisher or the generalised Gauss-Newton matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pellucid import Factors, Look, Loss, ModelError, Passes, Sample, Score, Target, Unsuitable
from pellucid_influence.data import Training
from pellucid_influence.training import BLOCK_BYTES, LARGEST, PANEL_BYTES, Kernel, check_covered


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


class Block(NamedTuple):
    """What is seen of some training examples, in double precision.

    Attributes:
        gradients: (n, P) those of their losses.
        rows: (n, r, P) their rows of the curvature.
    """

    gradients: Tensor
    rows: Tensor


@dataclass(eq=False)
class Curvature:
    """The matrix R^T R / N of the training examples' mean loss; it is never written out here.

    For the empirical Fisher matrix an example's row of R is the gradient of its loss. For the generalised Gauss-Newton
    matrix there is one row for each output: S^(1/2) J, with the Jacobian J of the outputs and the Hessian S of the loss
    by them, for the cross-entropy diag(p) - p p^T = A A^T with A = diag(sqrt p) - p sqrt(p)^T, for the squared error
    two.

    Attributes:
        train: the training examples.
        parameters: by which parameters, as names with wildcards.
        outputs: how many outputs the model has, or 0 for the Fisher matrix.
        factors: those of the queries, of the layers' forms.
        trace: the sum of its eigenvalues.
        traces: (N,) what each example adds to N times the trace.
        found: what is certified of the training examples.
    """

    train: Training
    parameters: Sequence[str]
    outputs: int
    factors: Factors
    trace: float = 0.0
    traces: Tensor = field(default_factory=lambda: torch.empty(0))
    found: Kernel | None = None
    _kept: Block | None = None

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self.factors.numel

    @property
    def directions(self) -> int:
        """By how many eigenvalues the trace is shared out: those that are not zero by construction, for the Fisher."""
        return self.size if self.outputs else len(self.train)

    def at(self, places: slice | Tensor) -> Passes[Block]:
        """The rows of some examples."""
        if self._kept is not None:
            return Block(self._kept.gradients[places], self._kept.rows[places])
        block, _ = yield from self._look(places)
        return block

    def each(self, use: Callable[[Block], object]) -> Passes[None]:
        """Hands all examples' rows to a function, block by block."""
        step = self._step
        for start in range(0, len(self.train), step):
            use((yield from self.at(slice(start, start + step))))

    def times(self, vectors: Tensor) -> Passes[Tensor]:
        """The products (k, P) of the curvature with vectors (k, P)."""
        total = torch.zeros_like(vectors)

        def add(block: Block) -> None:
            rows = block.rows.flatten(0, 1)
            total.addmm_(vectors @ rows.T, rows, alpha=1 / len(self.train))

        yield from self.each(add)
        return total

    @property
    def _step(self) -> int:
        """How many examples are looked at together."""
        return max(1, min(LARGEST, BLOCK_BYTES // (8 * self.size * (self.outputs + 1))))

    def _look(self, places: slice | Tensor) -> Passes[tuple[Block, Tensor]]:
        """The rows and the losses of some examples."""
        at = self.train[places]
        targets = [at.target, *(Output(index) for index in range(self.outputs))]
        seen = yield Look(at=at, factors=self.parameters, targets=targets)
        gradients, *jacobian = (factors.written().double() for factors in seen.factors)
        if not self.outputs:
            return Block(gradients, gradients[:, None]), seen.scores[0]
        rows = torch.stack(jacobian, dim=1)
        assert isinstance(at.target, Loss)
        if at.target.labels.is_floating_point():
            rows = rows * 2**0.5
        else:
            p = seen.scores[1:].T.double().softmax(dim=1)[..., None]
            rows = p.sqrt() * (rows - (p * rows).sum(dim=1, keepdim=True))
        return Block(gradients, rows), seen.scores[0]

    def gather(self) -> Passes[None]:
        """Looks at all training examples once; what fits in memory is kept.

        Raises:
            ModelError: when gradients are not finite.
        """
        count, step = len(self.train), self._step
        fits = 8 * self.size * count * (self.outputs + 1) <= PANEL_BYTES
        blocks, losses, traces, squares = [], [], [], []
        mean = torch.zeros(())
        for start in range(0, count, step):
            block, loss = yield from self._look(slice(start, start + step))
            losses.append(loss)
            squares.append(block.gradients.square().sum(dim=1))
            traces.append(block.rows.square().sum(dim=(1, 2)))
            mean = mean + block.gradients.sum(dim=0) / count
            if fits:
                blocks.append(block)
        if fits:
            gradients, rows = (torch.cat(parts) for parts in zip(*blocks, strict=True))
            self._kept = Block(gradients, rows if self.outputs else gradients[:, None])
        self.traces = torch.cat(traces)
        self.trace = float(self.traces.mean())
        if not math.isfinite(self.trace):
            raise ModelError(
                "the gradients of the training examples' losses are not finite; expected a model that gives finite "
                "outputs for all of them. Look for the examples at which it does not"
            )
        gradient, covered = float(mean.norm()), self.factors.check()
        self.found = Kernel(torch.empty(0), torch.cat(squares), torch.cat(losses), gradient, covered)


def observed(
    queries: Sample,
    train: Training,
    parameters: Sequence[str],
    kind: Literal["fisher", "gauss_newton"],
    largest: int | None = None,
) -> Passes[tuple[Tensor, Curvature]]:
    """The queries' gradients (Q, P) and the curvature at the training examples.

    Args:
        queries: whose target's gradient is taken.
        train: the training examples, with their loss as the target.
        parameters: by which parameters, as names with wildcards.
        kind: which curvature.
        largest: of how many parameters at most.

    Raises:
        Unsuitable: when the model has more parameters.
    """
    seen = yield Look(at=queries, outputs=True, factors=parameters)
    check_covered(seen.factors)
    size = seen.factors.numel
    if largest is not None and size > largest:
        raise Unsuitable(
            f"the Gauss-Newton matrix of {size} parameters would take {8 * size**2 / 2**30:.0f} GB; take "
            f"solver='ek_fac' or 'cg', curvature='fisher', or fewer parameters (at most {largest})"
        )
    outputs = _outputs(seen.outputs, train) if kind == "gauss_newton" else 0
    curvature = Curvature(train, parameters, outputs, seen.factors)
    yield from curvature.gather()
    return seen.factors.written().double(), curvature


def _outputs(outputs: object, train: Training) -> int:
    target = train[:1].target
    assert isinstance(target, Loss)
    if target.labels.is_floating_point():
        return target.labels[0].numel()
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise ModelError("the Gauss-Newton matrix needs a model that returns a tensor (B, classes)")
    return outputs.shape[1]
