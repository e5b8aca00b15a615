"""Folds: how the derived axis of a look is reduced while it streams by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pellucid.errors import ProtocolError


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a derived sample as they stream by: what a function given to `Sum` receives.

    Attributes:
        draws: (rows,) which draw each row is, from 0 to n - 1.
        examples: (rows,) which example each row is, from 0 to B - 1.
        inputs: (rows, ...) what the model was shown.
        scores: (rows,) the target's score, or None without a target.
        outputs: (rows, ...) or None where they were not asked.
        activations: by layer, (rows, ...).
        gradients: by "input" or layer, (rows, ...).
    """

    draws: Tensor
    examples: Tensor
    inputs: Any
    scores: Tensor | None
    outputs: Any = None
    activations: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Any] = field(default_factory=dict)


class Fold(ABC):
    """Reduces the derived axis of everything that a look asked, in the memory of one batch.

    `Look(fold=...)` takes the rules, which may be shared; each run works on its own `start()`.
    """

    @abstractmethod
    def start(self, draws: int, examples: int) -> Folding:
        """Begins a fold over `draws` draws of `examples` examples."""


class Folding(ABC):
    """A fold at work: takes the parts in the order in which they come, and gives the results at the end."""

    @abstractmethod
    def add(self, part: Part) -> None:
        """Takes some rows."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """The attributes of `Seen` that the fold makes."""


def _wide(tensor: Tensor) -> Tensor:
    """Values of half precision and whole numbers are summed in single precision, all others in their own."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) or tensor.is_complex() else tensor.float()


def _asked(part: Part) -> dict[str, Any]:
    """What a fold reduces: tensors with a row each; anything else that a model returns has no mean."""
    asked = {"outputs": part.outputs, "activations": part.activations, "gradients": part.gradients}
    rows = part.draws.shape

    def wide(value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.shape[:1] != rows:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ProtocolError(
                f"a fold reduces tensors ({len(part.draws)}, ...), a row each; the model returned {shape}"
            )
        return _wide(value)

    return {name: pytree.tree_map(wide, value) for name, value in asked.items() if value is not None}


class _Sums:
    """Sums of rows per example, for any tree of tensors, made when the first rows come."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.total: Any = None

    def add(self, rows: Any, examples: Tensor) -> None:
        if self.total is None:
            self.total = pytree.tree_map(lambda row: row.new_zeros((self.examples, *row.shape[1:])), rows)
        pytree.tree_map(lambda total, row: total.index_add_(0, examples.to(row.device), row), self.total, rows)


@dataclass(frozen=True, eq=False)
class Mean(Fold):
    """Takes the mean over the draws, or the weighted sum where weights are given.

    Attributes:
        weights: (n,) or (n, B); used as they are, so weights that sum to one give a weighted mean.
    """

    weights: Tensor | None = None

    def start(self, draws: int, examples: int) -> Folding:
        """Begins a fold; the weights must be (n,) or (n, B)."""
        if self.weights is not None and self.weights.shape not in ((draws,), (draws, examples)):
            raise ProtocolError(
                f"Mean(weights) has weights of shape {tuple(self.weights.shape)}; expected ({draws},) or "
                f"({draws}, {examples}), one for each draw"
            )
        return _Averaging(self.weights, draws, examples)


class _Averaging(Folding):
    def __init__(self, weights: Tensor | None, draws: int, examples: int) -> None:
        self.weights = weights
        self.draws = draws
        self.sums = _Sums(examples)

    def _weigh(self, part: Part, value: Tensor) -> Tensor:
        if self.weights is None:
            return value / self.draws
        weights = self.weights.to(value.device)
        draws, examples = part.draws.to(value.device), part.examples.to(value.device)
        chosen = weights[draws] if weights.dim() == 1 else weights[draws, examples]
        return value * chosen.to(value.dtype).reshape(-1, *(1,) * (value.dim() - 1))

    def add(self, part: Part) -> None:
        self.sums.add(pytree.tree_map(lambda value: self._weigh(part, value), _asked(part)), part.examples)

    def finish(self) -> dict[str, Any]:
        return dict(self.sums.total)


@dataclass(frozen=True, eq=False)
class Moments(Fold):
    """Takes the mean and the variance over the draws.

    `Seen.gradients`, `.activations` and `.outputs` are the means; `Seen.spread` has the variances under the same
    names. The variance divides by n (Adebayo et al., 2018, VarGrad); Welford's update keeps it exact where the mean is
    large.
    """

    def start(self, draws: int, examples: int) -> Folding:
        """Begins a fold."""
        return _Spreading(examples)


class _Spreading(Folding):
    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.counts = torch.zeros(examples)
        self.mean: Any = None
        self.square: Any = None

    def add(self, part: Part) -> None:
        rows = _asked(part)
        if self.mean is None:
            self.mean = pytree.tree_map(lambda row: row.new_zeros((self.examples, *row.shape[1:])), rows)
            self.square = pytree.tree_map(torch.zeros_like, self.mean)
        # Within one draw every example occurs at most once, so that the update is a plain indexed one.
        for draw in torch.unique(part.draws).tolist():
            chosen = part.draws == draw
            examples = part.examples[chosen]
            self.counts[examples] += 1

            def update(mean: Tensor, square: Tensor, row: Tensor, chosen: Tensor, examples: Tensor) -> None:
                here, row = examples.to(row.device), row[chosen.to(row.device)]
                counts = self.counts[examples].to(row).reshape(-1, *(1,) * (row.dim() - 1))
                before = row - mean[here]
                mean[here] += before / counts
                square[here] += before * (row - mean[here])

            pytree.tree_map(
                lambda mean, square, row, chosen=chosen, examples=examples: update(mean, square, row, chosen, examples),
                self.mean,
                self.square,
                rows,
            )

    def finish(self) -> dict[str, Any]:
        def divide(square: Tensor) -> Tensor:
            return square / self.counts.to(square).reshape(-1, *(1,) * (square.dim() - 1))

        return {**self.mean, "spread": pytree.tree_map(divide, self.square)}


@dataclass(frozen=True, eq=False)
class Sum(Fold):
    """Sums what a function makes of the rows as they stream by: `Seen.folded` is (B, ...).

    Attributes:
        function: takes a `Part` and returns (rows, ...), or a tree of such tensors.
    """

    function: Callable[[Part], Any]

    def start(self, draws: int, examples: int) -> Folding:
        """Begins a fold."""
        return _Summing(self.function, examples)


class _Summing(Folding):
    def __init__(self, function: Callable[[Part], Any], examples: int) -> None:
        self.function = function
        self.sums = _Sums(examples)

    def add(self, part: Part) -> None:
        before = _versions(part)
        rows = self.function(part)
        if before != _versions(part):
            raise ProtocolError("the function of Sum changed in place what it was shown; clone it first")
        for tensor in pytree.tree_leaves(rows):
            if not isinstance(tensor, Tensor) or tensor.shape[:1] != part.draws.shape:
                shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ProtocolError(
                    f"the function of Sum returned {shape}; expected ({len(part.draws)}, ...), a row each"
                )
        self.sums.add(pytree.tree_map(_wide, rows), part.examples)

    def finish(self) -> dict[str, Any]:
        return {"folded": self.sums.total}


def _versions(part: Part) -> list[int]:
    """How often each tensor of a part was changed in place: other looks share them."""
    return [leaf._version for leaf in pytree.tree_leaves(vars(part)) if isinstance(leaf, Tensor)]
