"""How well prototypes classify: the error of the nearest one's label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Evaluator, Exemplars, InputError, Look, Passes, Sample, Scores


@dataclass(frozen=True, eq=False)
class NearestPrototypeError(Evaluator):
    """Whether the nearest prototype of each input is of another class: the error of the 1-nearest-neighbour rule.

    The inputs are those that are classified, best ones that were held out of the data that the prototypes were chosen
    from. The score is 1 where the nearest prototype's class is wrong and 0 where it is right; of equals the first
    prototype counts. As many random examples are the control.

    Kim et al., 2016, "Examples are not enough, learn to criticize!".

    Attributes:
        data: the inputs (N, ...) that the prototypes were chosen from, in the same order.
        data_labels: (N,) their classes.
        labels: (B,) the classes of the inputs that are scored.
        layer: the layer in whose activations examples are compared; None is the inputs themselves.
    """

    data: Any
    data_labels: Any
    labels: Any
    layer: str | None = None

    @classmethod
    def test_instances(cls) -> list[Evaluator]:
        """Ten images of noise, compared by a layer."""
        noise = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        classes = torch.arange(10) % 2
        return [cls(noise, classes, torch.tensor([1, 0, 1]), layer="auto")]

    def controls(self, explanation: Any, seed: int) -> dict[str, Any]:
        """As many examples drawn at random."""
        if not isinstance(explanation, Exemplars):
            return {}
        count = len(self._prototypes(explanation, len(self.data)))
        drawn = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(seed))[None, :count]
        return {"random": Exemplars(torch.zeros(drawn.shape), drawn, "prototype")}

    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores]:
        """One forward pass of the inputs and of the prototypes, or none without a layer."""
        data, labels = torch.as_tensor(self.data), _labels(self.data_labels, len(self.data), "data_labels")
        own = _labels(self.labels, len(sample), "labels")
        chosen = self._prototypes(explanation, len(labels))
        if not isinstance(sample.inputs, Tensor) or data.shape[1:] != sample.inputs.shape[1:]:
            raise InputError(
                f"data have shape {tuple(data.shape)}; expected (N, ...) with examples of the inputs' form"
            )
        pictured = data[chosen].to(sample.inputs)
        if self.layer is None:
            points, prototypes = sample.inputs, pictured
        else:
            points = (yield Look(at=sample, activations=[self.layer])).activations[self.layer]
            prototypes = yield from self._seen(sample, pictured)
        if not bool(torch.isfinite(points).all() and torch.isfinite(prototypes).all()):
            raise InputError(f"layer '{self.layer}' is not finite for some of the inputs or prototypes; remove them")
        # In double precision, so that equal prototypes are equally far.
        points, prototypes = points.double().flatten(1), prototypes.double().flatten(1)
        near = (points @ prototypes.T - prototypes.square().sum(dim=1) / 2).argmax(dim=1).cpu()
        wrong = (labels[chosen][near] != own).to(sample.inputs.dtype)
        return Scores.single(metric="nearest_prototype_error", values=wrong, better="lower")

    def _seen(self, sample: Sample, pictured: Tensor) -> Passes[Tensor]:
        """The layer's activations of the prototypes, as the sample's examples are seen."""
        assert self.layer is not None
        target = sample.target.picked(torch.zeros(len(pictured), dtype=torch.long))
        at = Sample(pictured, target, sample.seed, sample.mean, sample.std, sample.frame)
        seen = yield Look(at=at, activations=[self.layer])
        return seen.activations[self.layer]

    @staticmethod
    def _prototypes(explanation: Any, examples: int) -> Tensor:
        """The places of all prototypes in the data, without empty ones."""
        if not isinstance(explanation, Exemplars):
            raise InputError(f"the explanation is a {type(explanation).__name__}; expected Exemplars with prototypes")
        places = explanation.of("prototype").flatten().cpu()
        places = places[places >= 0]
        if len(places) == 0 or int(places.max()) >= examples:
            raise InputError(
                f"there are {len(places)} prototypes, the last at {int(places.max()) if len(places) else 'no place'}; "
                f"expected some, among the {examples} examples of data"
            )
        return places


def _labels(given: Any, examples: int, what: str) -> Tensor:
    labels = torch.as_tensor(given).detach().cpu()
    if labels.shape != (examples,) or labels.is_floating_point():
        raise InputError(
            f"{what} are {labels.dtype} of shape {tuple(labels.shape)}; expected integers ({examples},), one for each "
            "example"
        )
    return labels.long()
