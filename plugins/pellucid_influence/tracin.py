"""TracIn: influence summed over checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import MinLen

from pellucid import Blocks, Check, Explainer, Influence, ParameterError, Passes, Sample
from pellucid_influence.certificates import certificates, shown
from pellucid_influence.data import source, training
from pellucid_influence.ntk_influence import noise
from pellucid_influence.training import kernel


@dataclass(frozen=True, eq=False)
class TracIn(Explainer):
    """Sums over checkpoints what a step on each training example changes in each query's score.

    At every checkpoint the tangent kernel between the query's score and the example's loss, times the learning rate of
    that time, above zero where the example raises the target's score. With the query's loss as its target the sign
    turns, and minus the values are those of the paper. The self-influence is the sum of the squared gradients.

    Pruthi et al., 2020, "Estimating training data influence by tracing gradient descent". All parameters count, where
    the authors' code takes the last layers.

    Attributes:
        train: `(inputs, labels)`, tensors or arrays, or a Dataset of such pairs, or a DataLoader of one; labels are
            class indices (cross-entropy) or, of a floating type, values (squared error). It is read in blocks, so that
            memory-mapped arrays and data sets that do not fit in memory will do.
        checkpoints: the model's `state_dict` at several times of its training; None is the model as it is.
        learning_rates: that of each checkpoint, or one for all.
        parameters: by which parameters, as names with wildcards.
        folder: where finished blocks are kept, so that a run that was interrupted goes on where it stood; None keeps
            none. A block is taken from there only where the model's structure and weights, the queries, their target,
            the block's examples and the parameters are the same to the last bit.
    """

    train: Any
    checkpoints: Sequence[Mapping[str, torch.Tensor]] | None = None
    learning_rates: float | Sequence[float] = 1.0
    parameters: Annotated[tuple[str, ...], MinLen(1)] = ("*",)
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        source(self.train)
        if self.checkpoints is not None and not self.checkpoints:
            raise ParameterError("checkpoints is empty; expected at least one, or None for the model as it is")
        if not isinstance(self.learning_rates, float) and len(self.learning_rates) != len(self.checkpoints or [0]):
            raise ParameterError(
                f"{len(self.learning_rates)} learning rates for {len(self.checkpoints or [0])} checkpoints; expected "
                "one for each, or one for all"
            )

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """The model as it is."""
        return [cls(train=noise())]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward and a backward pass for each query, training example and checkpoint."""
        train = training(self.train, sample)
        states: Sequence[Any] = self.checkpoints or [None]
        rates = self.learning_rates
        rates = [rates] * len(states) if isinstance(rates, float) else rates
        values, own, checks = torch.zeros(()), torch.zeros(()), list[Check]()
        for place, (state, rate) in enumerate(zip(states, rates, strict=True)):
            found = yield from kernel(sample, train, self.parameters, state, blocks=Blocks(self.folder))
            values, own = values - rate * found.values, own + rate * found.squares
            one = certificates(found, train)
            checks += one if len(states) == 1 else [replace(c, name=f"{c.name}, checkpoint {place}") for c in one]
        return Influence(values, self_influence=own, checks=checks, **shown(train))
