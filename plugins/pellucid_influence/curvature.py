"""The curvature of the training loss in blocks of rows: the empirical Fisher or the generalised Gauss-Newton matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pellucid import (
    Blocks,
    Factors,
    Look,
    Loss,
    ModelError,
    Passes,
    Sample,
    Score,
    Target,
    Training,
    Unsuitable,
    digest,
)
from pellucid_influence.progress import Progress
from pellucid_influence.softened import Softened
from pellucid_influence.training import BLOCK_BYTES, LARGEST, PANEL_BYTES, Kernel, check_covered, classes_of, told


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
    by them, for the cross-entropy diag(p) - p p^T = A A^T with A = diag(sqrt p) - p sqrt(p)^T, over the square of its
    temperature, for the squared error two.

    Attributes:
        train: the training examples.
        parameters: by which parameters, as names with wildcards.
        outputs: how many outputs the model has, or 0 for the Fisher matrix.
        factors: those of the queries, of the layers' forms.
        blocks: where finished blocks of rows are kept, and taken from; of rows that do not fit in memory, what is made
            of them.
        digest: of the model, the parameters and the matrix that is asked, where blocks are kept.
        classes: how many classes the model tells apart; 0 where it is no classifier.
        trace: the sum of its eigenvalues.
        traces: (N,) what each example adds to N times the trace.
        found: what is certified of the training examples.
    """

    train: Training
    parameters: Sequence[str]
    outputs: int
    factors: Factors
    blocks: Blocks = field(default_factory=lambda: Blocks(None))
    digest: str = ""
    classes: int = 0
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
        block, _ = yield from self._look(places, Blocks(None))
        return block

    def each(self, use: Callable[[Block], object], progress: Progress | None = None) -> Passes[None]:
        """Hands all examples' rows to a function, block by block.

        Args:
            use: the function.
            progress: how many examples it was handed before, and what it made of them.
        """
        step, count = self._step, len(self.train)
        progress = progress or Progress(Blocks(None), "", {})
        for start in range(progress.done, count, step):
            use((yield from self.at(slice(start, start + step))))
            progress.reached(min(start + step, count), finished=start + step >= count)

    def progress(self, label: object, state: Mapping[str, Tensor]) -> Progress:
        """How far something that is made of all examples' rows has come: kept where these are not in memory.

        Args:
            label: what it depends on besides the rows.
            state: what is changed in place.
        """
        blocks = self.blocks if self._kept is None else Blocks(None)
        return Progress(blocks, digest(self._whole, label) if blocks else "", state)

    @cached_property
    def _whole(self) -> str:
        """A digest of all that the matrix depends on, for which all examples are read once."""
        count, step = len(self.train), self._step
        return digest(self.digest, step, [told(self.train[start : start + step]) for start in range(0, count, step)])

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

    def _look(self, places: slice | Tensor, blocks: Blocks) -> Passes[tuple[Block, Tensor]]:
        """The rows and the losses of some examples."""
        at = self.train[places]
        key = digest(self.digest, told(at)) if blocks else ""
        part: Mapping[str, Tensor] | None = blocks.found(key)
        if part is None:
            part = yield from self._rows(at)
            blocks.keep(key, part)
        gradients = part["gradients"].to(at.device)
        rows = part["rows"].to(at.device) if self.outputs else gradients[:, None]
        return Block(gradients, rows), part["losses"].to(at.device)

    def _rows(self, at: Sample) -> Passes[Mapping[str, Tensor]]:
        targets = [at.target, *(Output(index) for index in range(self.outputs))]
        seen = yield Look(at=at, factors=self.parameters, targets=targets)
        gradients, *jacobian = (factors.written().double() for factors in seen.factors)
        if not self.outputs:
            return {"gradients": gradients, "losses": seen.scores[0]}
        rows = torch.stack(jacobian, dim=1)
        assert isinstance(at.target, Loss)
        if at.target.labels.is_floating_point():
            rows = rows * 2**0.5
        else:
            temperature = at.target.temperature if isinstance(at.target, Softened) else 1.0
            p = (seen.scores[1:].T.double() / temperature).softmax(dim=1)[..., None]
            rows = p.sqrt() * (rows - (p * rows).sum(dim=1, keepdim=True)) / temperature
        return {"gradients": gradients, "rows": rows, "losses": seen.scores[0]}

    def gather(self) -> Passes[None]:
        """Looks at all training examples once; what fits in memory is kept.

        Raises:
            ModelError: when gradients are not finite.
        """
        count, step = len(self.train), self._step
        fits = 8 * self.size * count * (self.outputs + 1) <= PANEL_BYTES
        like = self.factors.layers[0].tensors[-1].double()
        losses, squares, traces, mean = (like.new_zeros(number) for number in (count, count, count, self.size))
        state = {"losses": losses, "squares": squares, "traces": traces, "mean": mean}
        progress = Progress(Blocks(None), "", {}) if fits else self.progress("rows", state)
        blocks = []
        for start in range(progress.done, count, step):
            places = slice(start, start + step)
            block, losses[places] = yield from self._look(places, self.blocks if fits else Blocks(None))
            squares[places] = block.gradients.square().sum(dim=1)
            traces[places] = block.rows.square().sum(dim=(1, 2))
            mean += block.gradients.sum(dim=0) / count
            progress.reached(min(start + step, count), finished=start + step >= count)
            if fits:
                blocks.append(block)
        if fits:
            gradients, rows = (torch.cat(parts) for parts in zip(*blocks, strict=True))
            self._kept = Block(gradients, rows if self.outputs else gradients[:, None])
        self.traces = traces
        self.trace = float(self.traces.mean())
        if not math.isfinite(self.trace):
            raise ModelError(
                "the gradients of the training examples' losses are not finite; expected a model that gives finite "
                "outputs for all of them. Look for the examples at which it does not"
            )
        gradient, covered = float(mean.norm()), self.factors.check()
        self.found = Kernel(torch.empty(0), squares, losses, gradient, covered, classes=self.classes)


def observed(
    queries: Sample,
    train: Training,
    parameters: Sequence[str],
    kind: Literal["fisher", "gauss_newton"],
    largest: int | None = None,
    blocks: Blocks | None = None,
) -> Passes[tuple[Tensor, Curvature]]:
    """The queries' gradients (Q, P) and the curvature at the training examples.

    Args:
        queries: whose target's gradient is taken.
        train: the training examples, with their loss as the target.
        parameters: by which parameters, as names with wildcards.
        kind: which curvature.
        largest: of how many parameters at most.
        blocks: where what is finished is kept, and taken from.

    Raises:
        Unsuitable: when the model has more parameters.
    """
    blocks = blocks or Blocks(None)
    seen = yield Look(at=queries, outputs=True, factors=parameters, digest=bool(blocks))
    check_covered(seen.factors)
    size = seen.factors.numel
    if largest is not None and size > largest:
        raise Unsuitable(
            f"the Gauss-Newton matrix of {size} parameters would take {8 * size**2 / 2**30:.0f} GB; take "
            f"solver='ek_fac' or 'cg', curvature='fisher', or fewer parameters (at most {largest})"
        )
    outputs = _outputs(seen.outputs, train) if kind == "gauss_newton" else 0
    asked = digest(seen.digest, list(parameters), outputs)
    curvature = Curvature(train, parameters, outputs, seen.factors, blocks, asked, classes_of(seen.outputs))
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
