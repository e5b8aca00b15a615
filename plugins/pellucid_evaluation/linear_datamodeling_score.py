"""The linear datamodelling score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import InstanceOf

from pellucid import Check, Evaluator, Look, Passes, Sample, Scores, Trainer
from pellucid_evaluation.influences import controls, correlation, influence_of, ranks, small_trainer


@dataclass(frozen=True, eq=False)
class LinearDatamodelingScore(Evaluator):
    """Whether sums of influences foretell what models trained on parts of the data answer.

    Models are trained on random parts of the training data. For each query, the target's score of these models is held
    against the sums of the influences of the examples that they were trained on, by Spearman's rank correlation over
    the parts: 1 is a perfect prediction, 0 chance. Its standard error is about one over the root of the number of
    parts; under some thirty it says little.

    Park et al., 2023, "TRAK: attributing model behavior at scale".

    Attributes:
        trainer: the recipe and the training data.
        n_subsets: how many parts are drawn.
        share: how much of the data each part has.
        n_seeds: over how many trainings of each part the score is averaged; the noise of single trainings lowers what
            can be reached.
        seeds: those of the trainings of every part, in place of `n_seeds` drawn anew: with that of the explained model
            alone, first weights and order are as they were for it, and nothing but the data differs.
    """

    trainer: InstanceOf[Trainer]
    n_subsets: Annotated[int, Ge(2)] = 32
    share: Annotated[float, Gt(0), Lt(1)] = 0.5
    n_seeds: Annotated[int, Ge(1)] = 1
    seeds: Annotated[tuple[int, ...], MinLen(1)] | None = None

    known_failures: ClassVar[dict[str, str]] = {
        "leaves the model and the process as they were when the model fails or is interrupted midway": (
            "the model that fails has its parameters under other names than the trainer's models"
        ),
        "does not hide a score that is not a number": "the models that are looked at are trained anew",
    }

    @classmethod
    def test_instances(cls) -> list[Evaluator]:
        """A few steps on the conformance kit's network."""
        return [cls(trainer=small_trainer(), n_subsets=3)]

    def controls(self, explanation: Any, seed: int) -> dict[str, Any]:
        """Noise, likeness within the class, and the loss."""
        return controls(explanation, self.trainer.train)

    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores]:
        """A training and a forward pass of the queries for each part and seed."""
        count = len(self.trainer)
        found = influence_of(explanation, sample, count)
        size = min(max(1, round(self.share * count)), count - 1)
        parts = torch.zeros(self.n_subsets, count, dtype=torch.bool)
        scores = torch.zeros(self.n_subsets, len(sample), dtype=torch.float64)
        for place in range(self.n_subsets):
            chosen = torch.randperm(count, generator=sample.generator("part", place))[:size]
            parts[place, chosen] = True
            seeds = self.seeds or [
                int(torch.randint(2**62, (), generator=sample.generator("training", place, draw)))
                for draw in range(self.n_seeds)
            ]
            for seed in seeds:
                seen = yield Look(at=sample, weights=self.trainer.weights(parts[place], seed))
                scores[place] += seen.scores.double().cpu() / len(seeds)
        foretold = found.values.double().cpu() @ parts.double().T
        values = correlation(ranks(foretold), ranks(scores.T))
        note = f"{self.n_subsets} parts of {size} examples, {len(self.seeds or range(self.n_seeds))} trainings of each"
        return Scores.single(
            metric="linear_datamodeling_score",
            values=values,
            better="higher",
            checks=[Check.info("parts", self.n_subsets, note)],
        )
