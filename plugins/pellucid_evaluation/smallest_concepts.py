"""Whether the concepts that score highest decide: how few suffice for the class, how few destroy it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid import Concepts, Evaluator, InputError, Look, Passes, Sample, Scores, TargetError, Unsuitable, create


@dataclass(frozen=True, eq=False)
class SmallestSufficientConcepts(Evaluator):
    """How many concepts, the most important first, are enough for the class to be predicted.

    Everything in an image that belongs to no concept is hidden, and all concepts with it; they are shown again one by
    one, in the order of their scores for the image's class. The score is the number of concepts from which on the class
    is predicted for the first time, and one more than there are where it never is; the curve says for each number
    whether it is, so that its mean is the paper's accuracy. Images whose class the model does not predict as they are
    tell nothing, and are better left out. A concept that an image lacks counts as well, and changes nothing.

    The control are the same concepts in random order.

    Ghorbani et al., 2019, "Towards automatic concept-based explanations".

    Attributes:
        substitution: what is shown in place of what is hidden, a baseline as for `Sample.baseline`. With the usual
            normalisation of photos "zero" is about the grey that surrounds the patches of `ace`.

    Raises:
        InputError: when the explanation is none of concepts with masks for these images.
        Unsuitable: for models of several inputs, or whose output is not one row of scores for each image.
        TargetError: when the target is no class.
    """

    substitution: Any = "zero"

    label: ClassVar[str] = "smallest_sufficient_concepts"
    hides: ClassVar[bool] = False
    """Whether concepts are hidden in their order, rather than shown."""

    def controls(self, explanation: Any, seed: int) -> dict[str, Any]:
        """The same concepts in random order."""
        return {"random order": create("concept_control", of=explanation)} if isinstance(explanation, Concepts) else {}

    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores]:
        """A forward pass of each image, and one for each number of concepts, none among them."""
        masks = _masks(sample, explanation)
        whole = yield Look(at=sample)
        if whole.classes is None:
            raise TargetError(f"{self.label} asks whether a class is predicted; expected a class as the target")
        classes = whole.classes
        # (B, K) the rank of each concept, the most important 0, in the row of the image's class.
        row = _rows(explanation, classes)
        rank = explanation.values.to(masks.device)[row].argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        steps = len(explanation.names)

        def shown(draws: Tensor, examples: Tensor) -> Tensor:
            places = examples.to(masks.device)
            some = masks[places] & (rank[places] < draws.to(masks.device)[:, None])[..., None, None]
            visible: Tensor = some.any(dim=1, keepdim=True) != self.hides
            return visible.to(sample.inputs)

        seen = yield Look(at=sample.masked(steps + 1, shown, self.substitution), outputs=True)
        held = _predicted(seen.outputs) == classes.to(seen.scores.device)
        first = torch.where(held != self.hides, torch.arange(steps + 1, device=held.device)[:, None], steps + 1)
        known = torch.isfinite(seen.outputs).flatten(2).all(dim=2).all(dim=0)
        values = torch.where(known, first.amin(dim=0).to(seen.scores), torch.nan)
        return Scores.single(
            metric=self.label,
            values=values,
            better="lower",
            curve=(torch.arange(steps + 1), held.T.to(values)),
        )


@dataclass(frozen=True, eq=False)
class SmallestDestroyingConcepts(SmallestSufficientConcepts):
    """How many concepts, the most important first, must be hidden until the class is not predicted.

    As `SmallestSufficientConcepts`, but the whole image is shown and its concepts are hidden one by one.

    Ghorbani et al., 2019, "Towards automatic concept-based explanations".
    """

    label: ClassVar[str] = "smallest_destroying_concepts"
    hides: ClassVar[bool] = True


def _masks(sample: Sample, explanation: Any) -> Tensor:
    """Which pixels of each image belong to each concept, (B, K, H, W)."""
    if not isinstance(explanation, Concepts) or explanation.masks is None:
        told = "Concepts without masks" if isinstance(explanation, Concepts) else type(explanation).__name__
        raise InputError(f"the explanation is {told}; expected Concepts with masks, such as those of ace")
    if not isinstance(sample.inputs, Tensor) or sample.inputs.dim() != 4:
        raise Unsuitable("smallest sets of concepts are for models of one input, a photo (B, C, H, W)")
    masks, photos = explanation.masks, sample.inputs
    if masks.shape[0] != len(photos) or masks.shape[2:] != photos.shape[2:]:
        raise InputError(
            f"the concepts' masks are for {masks.shape[0]} images of {tuple(masks.shape[2:])} pixels; expected the "
            f"{len(photos)} images of {tuple(photos.shape[2:])} that were explained, in their order"
        )
    return masks.bool().to(photos.device)


def _rows(explanation: Concepts, classes: Tensor) -> Tensor:
    """Which row of the scores belongs to each image's class."""
    names = explanation.row_names()
    wanted = [f"class {one}" for one in classes.tolist()]
    if missing := sorted(set(wanted) - set(names)):
        raise InputError(f"the concepts have scores for {', '.join(names)}; expected {', '.join(missing)} as well")
    return torch.tensor([names.index(one) for one in wanted])


def _predicted(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.shape[-1:] == outputs.shape:
        raise Unsuitable("smallest sets of concepts are for models that give a row of scores for each image")
    return outputs.argmax(dim=-1)
