"""Finding wrong labels by self-influence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pellucid import Evaluator, Influence, InputError, Sample, Scores
from pellucid_evaluation.influences import controls, influence_of, ranks


@dataclass(frozen=True, eq=False)
class MislabelDetection(Evaluator):
    """How well the self-influence tells wrong labels from right ones: the area under the ROC curve.

    It is the share of pairs of a wrong and a right label in which the wrong one has the greater self-influence, ties
    counted half. The loss alone reaches much the same on most data, so that it is the control to beat.

    Attributes:
        wrong: (N,) which training labels are wrong, as bools.
        train: `(inputs, labels)`, as the influences take it, which the loss is computed on; None takes what the first
            influence keeps, which are images, and without those noise is the only control.
    """

    wrong: Any
    train: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = torch.as_tensor(self.wrong)
        if wrong.dim() != 1 or wrong.dtype != torch.bool or not bool(wrong.any()) or bool(wrong.all()):
            raise InputError(
                f"wrong is {wrong.dtype} of shape {tuple(wrong.shape)}; expected (N,) bools, some true and some false"
            )

    @classmethod
    def test_instances(cls) -> list[Evaluator]:
        """Ten labels, three of them wrong."""
        return [cls(wrong=torch.arange(10) > 6)]

    def controls(self, explanation: Any, seed: int) -> dict[str, Any]:
        """Noise, and the loss where the training data are known."""
        if not isinstance(explanation, Influence):
            return {}
        train = self.train
        if train is None and explanation.train is not None and explanation.train_labels is not None:
            train = (explanation.train, explanation.train_labels)
        if train is not None:
            return controls(explanation, train, ("random", "loss"))
        noise = torch.randn(explanation.values.shape[1], generator=torch.Generator().manual_seed(seed))
        return {"random": Influence(noise.expand(explanation.values.shape), self_influence=noise)}

    def evaluate(self, sample: Sample, explanation: Any) -> Scores:
        """No pass at all."""
        wrong = torch.as_tensor(self.wrong)
        found = influence_of(explanation, sample, len(wrong))
        if found.self_influence is None:
            raise InputError("the influence has no self-influence; take a technique that gives one")
        places = ranks(found.self_influence.double().cpu())
        bad, good = int(wrong.sum()), int((~wrong).sum())
        area = (float(places[wrong].sum()) - bad * (bad - 1) / 2) / (bad * good)
        return Scores.single(metric="mislabel_detection", values=area, better="higher")
