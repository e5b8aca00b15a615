"""Leave-one-out: the truth that influence functions estimate, by training anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from pydantic import InstanceOf

from pellucid import Check, Explainer, Influence, InputError, Look, Passes, Sample, Trainer
from pellucid_influence.certificates import learnt, shown
from pellucid_influence.data import training
from pellucid_influence.training import precision


@dataclass(frozen=True, eq=False)
class LeaveOneOut(Explainer):
    """Trains the model anew without each training example, and takes how each query's score differs.

    The values are the score with the example less the score without it: above zero where the example raises the
    target's score. Both are means over trainings from the same seeds, so that of a model that does not converge the
    difference is also noise; its standard error is certified where there are several seeds.

    Attributes:
        trainer: the recipe and the training data; its models must have the explained model's parameters.
        examples: the places of the examples that are left out in turn; None is all of them. The others' values are
            NaN.
        n_seeds: how many trainings are averaged.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.examples is not None:
            places = torch.as_tensor(self.examples)
            named = places.dim() == 1 and len(places) > 0
            if (
                not named
                or places.is_floating_point()
                or places.dtype == torch.bool
                or int(places.min()) < 0
                or int(places.max()) >= len(self.trainer)
            ):
                raise InputError(
                    f"examples are {places.dtype} of shape {tuple(places.shape)}, or name examples that are not there; "
                    f"expected places from 0 to {len(self.trainer) - 1}"
                )

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """A few steps on a network of the conformance kit's form."""
        return [cls(trainer=small_trainer())]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A training and a forward pass of the queries for each example and seed; one pass of the training examples."""
        train = training(self.trainer.train, sample)
        count = len(self.trainer)
        places = list(range(count)) if self.examples is None else torch.as_tensor(self.examples).tolist()
        shape, kind = (self.n_seeds, len(sample), count), precision(sample)
        values = torch.full(shape, torch.nan, dtype=kind, device=sample.device)
        checks: list[Check] = []
        for draw in range(self.n_seeds):
            seed = int(torch.randint(2**62, (), generator=sample.generator("training", draw)))
            weights = self.trainer.weights(seed=seed)
            whole = yield Look(at=sample, weights=weights)
            if draw == 0:
                checks += yield from learnt(train, weights)
            for place in places:
                kept = torch.arange(count) != place
                without = yield Look(at=sample, weights=self.trainer.weights(kept, seed))
                values[draw, :, place] = whole.scores - without.scores
        if self.n_seeds > 1:
            error = values[:, :, places].std(dim=0).mean() / self.n_seeds**0.5
            checks.append(Check.info("standard error", error, "of a value, over trainings from different seeds"))
        return Influence(values.mean(dim=0), checks=checks, **shown(train))


def small_trainer() -> Trainer:
    """One epoch on ten images of noise, of the conformance kit's network."""
    from pellucid.testing.models import SmallNet

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Trainer(lambda: SmallNet().double(), inputs, torch.arange(10) % 4, epochs=1, batch_size=5)
