"""Controls: influences that know nothing of the model's gradients, for every score to be held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid import Explainer, Influence, Look, Passes, Sample, Training
from pellucid_influence.certificates import shown
from pellucid_influence.data import source, training
from pellucid_influence.ntk_influence import noise
from pellucid_influence.training import LARGEST


@dataclass(frozen=True, eq=False)
class InfluenceControl(Explainer):
    """Influence by chance, by likeness, or by loss alone.

    Attributes:
        train: `(inputs, labels)`, tensors or arrays, or a Dataset of such pairs, or a DataLoader of one.
        kind: `"similarity"` is the cosine of the centred inputs for training examples of the class that the model
            predicts for the query, and its negative for the others; `"loss"` is each training example's loss, the same
            for every query; `"random"` is standard normal noise, the same for every query. The self-influence is the
            loss, or noise.
    """

    train: Any
    kind: Literal["similarity", "loss", "random"] = "similarity"

    def __post_init__(self) -> None:
        super().__post_init__()
        source(self.train)

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Those that depend on the queries or on the model."""
        return [cls(train=noise())]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward pass for each query and training example."""
        train = training(self.train, sample)
        here = yield Look(at=sample, outputs=True)
        losses = []
        for start in range(0, len(train), LARGEST):
            seen = yield Look(at=train[start : start + LARGEST])
            losses.append(seen.scores)
        own = torch.cat(losses)
        if self.kind == "similarity":
            values, labels = _cosines(sample.inputs, train), train.labels.to(sample.device)
            if not labels.is_floating_point() and isinstance(here.outputs, Tensor) and here.outputs.dim() == 2:
                alike = here.outputs.argmax(dim=1)[:, None] == labels
                values = torch.where(alike, values, -values)
        elif self.kind == "loss":
            values = own.expand(len(sample), -1).clone()
        else:
            own = torch.randn(len(train), generator=sample.generator("control"), dtype=torch.float64).to(own)
            values = own.expand(len(sample), -1).clone()
        return Influence(values, self_influence=own, **shown(train))


def _cosines(queries: Tensor, train: Training) -> Tensor:
    """Of inputs less the training examples' mean, which are read once for it and once again."""
    starts = range(0, len(train), LARGEST)
    total = torch.stack([train[start : start + LARGEST].inputs.sum(dim=0) for start in starts]).sum(dim=0)
    centre = total.flatten() / len(train)

    def direction(inputs: Tensor) -> Tensor:
        return F.normalize(inputs.flatten(1) - centre, dim=1)

    of_queries = direction(queries)
    return torch.cat([of_queries @ direction(train[start : start + LARGEST].inputs).T for start in starts], dim=1)
