"""Correlation with leave-one-out training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from pydantic import InstanceOf

from pellucid import Evaluator, Passes, Sample, Scores, Trainer, create
from pellucid_evaluation.influences import controls, correlation, influence_of, small_trainer


@dataclass(frozen=True, eq=False)
class LeaveOneOutCorrelation(Evaluator):
    """Pearson's correlation of each query's influences with what training without each example really changes.

    Of use for models that converge: for others, leaving one example out changes less than another seed does.

    Attributes:
        trainer: the recipe and the training data.
        examples: the places of the examples that are left out in turn; None is all of them.
        n_seeds: over how many trainings the truth is averaged.
    """

    trainer: InstanceOf[Trainer]
    examples: Any = None
    n_seeds: Annotated[int, Ge(1)] = 1

    known_failures: ClassVar[dict[str, str]] = {
        "leaves the model and the process as they were when the model fails or is interrupted midway": (
            "the model that fails has its parameters under other names than the trainer's models"
        ),
        "does not hide a score that is not a number": "the models that are looked at are trained anew",
    }

    @classmethod
    def test_instances(cls) -> list[Evaluator]:
        """A few steps on the conformance kit's network."""
        return [cls(trainer=small_trainer(), examples=[0, 3, 4])]

    def controls(self, explanation: Any, seed: int) -> dict[str, Any]:
        """Noise, likeness within the class, and the loss."""
        return controls(explanation, self.trainer.train)

    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores]:
        """A training and a forward pass of the queries for each example and seed."""
        found = influence_of(explanation, sample, len(self.trainer))
        truth = create("leave_one_out", trainer=self.trainer, examples=self.examples, n_seeds=self.n_seeds)
        expected = yield from truth.explain(sample)
        places = torch.arange(len(self.trainer)) if self.examples is None else torch.as_tensor(self.examples)
        values = correlation(found.values.cpu()[:, places], expected.values.cpu()[:, places])
        return Scores.single(metric="leave_one_out_correlation", values=values, better="higher")
