"""Unrolled influence: exact differentiation through a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from pydantic import InstanceOf
from torch import nn

from pellucid import Blocks, Check, Explainer, Influence, Look, ParameterError, Passes, Sample, Trainer, Unsuitable
from pellucid_influence.certificates import learnt, shown
from pellucid_influence.data import training
from pellucid_influence.leave_one_out import small_trainer
from pellucid_influence.recorded import Recorded
from pellucid_influence.training import check_covered, precision

ALIKE = 1e-3
"""How far, as a share of the greatest, the trained model's scores may be from those of the explained one."""


@dataclass(frozen=True, eq=False)
class Unrolled(Explainer):
    """The derivative of each query's score by the weight that each training example has in the training.

    The training is run as the recipe says, and differentiated step by step from its end to its start: exactly, with no
    assumption that it converged. In each step an example counts with its weight in the weighted mean of the batch's
    losses, so that the values are, to first order, the score with the example less that of a training without it: above
    zero where the example raises the target's score. There is no self-influence.

    The cost is that of a training, and then, for each step and each query, some three backward passes of the batch.
    Memory holds the states at about the square root of the steps, and the queries' gradients. For small models; ReLU
    and pooling are differentiated where they are smooth.

    Ilyas and Engstrom, 2025, "MAGIC: near-optimal data attribution for deep learning". The authors replay from
    checkpoints by a tree; we keep every T^(1/2)-th of T states.

    Attributes:
        trainer: the recipe and the training data, with the optimizer "sgd" or "adam"; its models must have the
            explained model's parameters.
        seeds: those of the trainings whose derivatives are averaged; that with which the explained model was trained.
        folder: where states of the training are kept, and how far the way back has come, at most every ten seconds, so
            that a run that was interrupted goes on where it stood; None keeps none. They are taken from there only
            where the first weights, the model's structure, the data, the seed and the trainer's settings, and on the
            way back the queries and their target, are the same to the last bit; the model's code is not compared.
    """

    trainer: InstanceOf[Trainer]
    seeds: Annotated[tuple[int, ...], MinLen(1)] = (0,)
    folder: str | Path | None = None

    known_failures: ClassVar[dict[str, str]] = {
        "does not hide a score that is not a number": "the models that are looked at are trained anew",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer.optimizer == "lbfgs":
            raise ParameterError(
                "unrolled goes back through the steps of 'sgd' or 'adam'; the trainer has 'lbfgs'. For a converged "
                "model take influence_functions"
            )

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Two steps on a network of the conformance kit's form, whose BatchNorms learn no statistics."""
        from dataclasses import replace

        trainer = small_trainer()

        def make() -> nn.Module:
            model = trainer.make()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 0.0
            return model

        return [cls(trainer=replace(trainer, make=make))]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """For each seed a training, a forward and a backward pass of the queries, and the way back."""
        train = training(self.trainer.train, sample)
        own = yield Look(at=sample)
        values = torch.zeros(len(sample), len(self.trainer), dtype=precision(sample), device=sample.device)
        scores, checks = torch.zeros_like(own.scores), list[Check]()
        for seed in self.seeds:
            run = Recorded(self.trainer, seed, Blocks(self.folder))
            seen = yield Look(at=sample, factors=("*",), weights=run.weights)
            check_covered(seen.factors)
            if seen.factors.uncovered:
                raise Unsuitable(
                    f"the parameters {sorted(seen.factors.uncovered)[:5]} have no per-example gradients in closed "
                    "form, without which nothing is exact; expected linear layers, convolutions, embeddings or norms"
                )
            known = seen.factors.by_parameter()
            gradients = [
                known[name] if name in known else tensor.new_zeros(len(sample), *tensor.shape)
                for name, tensor in ((name, run.weights[name]) for name in run.names)
            ]
            values += run.derivative(gradients).to(values) / len(self.seeds)
            scores = scores + seen.scores / len(self.seeds)
            if seed == self.seeds[0]:
                checks += yield from learnt(train, run.weights)
        far = float((scores - own.scores).abs().max() / own.scores.abs().max().clamp_min(1e-12))
        note = (
            "between the scores of the recipe's models, averaged, and the explained model's, as a share of the latter"
        )
        checks = [Check.bound("distance of the trained model", far, ALIKE, note), *checks]
        return Influence(values, checks=checks, **shown(train))
