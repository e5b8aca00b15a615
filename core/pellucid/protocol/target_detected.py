"""The target of detection models: one detected object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.errors import TargetError
from pellucid.protocol.boxes import boxes_of, overlap
from pellucid.protocol.target import Score, Target, check_indices, check_rows

if TYPE_CHECKING:
    from pellucid.protocol.sample import Sample

PARTS = ("boxes", "labels", "scores")


@dataclass(frozen=True, eq=False)
class Detected(Target):
    """How well the model detects an object: the match of the best detection of its class with its box.

    For models that return a list with, for each image, a dictionary of `boxes` (n, 4), `labels` (n,) and `scores` (n,),
    as torchvision's do; n may differ from image to image. A detection of the class matches by its overlap with the box
    (intersection over union) times its score, so that perturbations show both what makes the object one of its class
    and what holds it in its place.

    Gradients are those of the detection's score; the overlap is a weight. An overlap is greatest where a detection has
    the very box that is asked for, and has a kink there: its gradient would be rounding error. Which detections there
    are has no gradient either: one that falls below the model's score threshold is gone at once, so perturbations say
    more of a model with a low threshold.

    The score of an image without a match is zero, and so are its gradients. The images that are explained must have
    one, though, unless `required` is False; inputs derived from them need not.

    Petsiuk et al., 2021, "Black-box explanation of object detectors via saliency maps" (D-RISE), also compare the
    vectors of all class probabilities, of which detectors keep only the greatest: ours is zero for other classes.

    Attributes:
        index: the object's class, an index or (B,); of torchvision's detectors 0 is the background.
        box: its left, top, right and bottom, (4,) or (B, 4), in pixels of the input.
        temperature: 0 takes the best match. Above, the matches are averaged with weights softmax(match / temperature),
            which is smooth where one detection takes over from another.
        required: whether an image without a match is an error.
    """

    index: int | Tensor
    box: Sequence[float] | Tensor
    temperature: float = 0.0
    required: bool = True

    @classmethod
    def of(cls, detections: Sequence[Mapping[str, Tensor]], which: int = 0, **options: Any) -> Detected:
        """One of the detected objects of each image, as the model returned them.

        Args:
            detections: what the model returned for the images, `model.eval()(images)`.
            which: the detection's rank by score in its image; 0 is the surest. Boxes without an area do not count.
            **options: further attributes.

        Raises:
            TargetError: when these are no detections, or an image has too few.
        """
        _check_detections(detections, len(detections) if isinstance(detections, Sequence) else 0)
        ranked = [_ranked(found) for found in detections]
        few = [example for example, places in enumerate(ranked) if len(places) <= which]
        if few or which < 0 or not detections:
            raise TargetError(
                f"detection {which} was asked for, which images {few[:10]} do not have; expected a rank from 0, and "
                "images with more detections than that. Leave those images out, or lower the model's score threshold"
            )
        labels, boxes = (
            torch.stack([found[part][places[which]] for found, places in zip(detections, ranked, strict=True)])
            for part in ("labels", "boxes")
        )
        return cls(labels.detach().cpu().long(), boxes.detach().cpu(), **options)

    def check(self, examples: int) -> None:
        """The class must be an index or (B,), the box (4,) or (B, 4), and the temperature not negative."""
        if self.index is None:
            raise TargetError("the object's class is None; expected an index, or Detected.of(detections)")
        check_indices(self.index, examples)
        boxes = boxes_of(self.box)
        if boxes.dim() == 2:
            check_rows("the objects' boxes", boxes, examples)
        if not 0 <= self.temperature < float("inf"):
            raise TargetError(f"the temperature is {self.temperature}; expected a finite number of at least 0")

    def score(self, given: Score) -> Tensor:
        """The match of each row."""
        examples = given.examples.tolist()
        _check_detections(given.raw, len(examples))
        boxes = boxes_of(self.box)
        scores = []
        for example, found in zip(examples, given.raw, strict=True):
            index = int(self.index[example]) if isinstance(self.index, Tensor) else int(self.index)
            box = (boxes[example] if boxes.dim() == 2 else boxes).to(found["boxes"])
            alike = found["labels"] == index
            matches = overlap(box, found["boxes"][alike].detach()) * found["scores"][alike]
            if self.required and not given.derived and not bool((matches > 0).any()):
                raise TargetError(_unmatched(example, index, box, found))
            # An empty sum is zero and keeps the graph, so that its gradient is zero too.
            scores.append(self._summed_up(matches) if len(matches) else found["scores"].sum() * 0)
        return torch.stack(scores)

    def _summed_up(self, matches: Tensor) -> Tensor:
        return (matches * (matches / self.temperature).softmax(dim=0)).sum() if self.temperature else matches.amax()

    def fixed_by(self, sample: Sample) -> Target:
        """Other inputs need no match."""
        return replace(self, required=False) if self.required else self

    def repeated(self, n: int) -> Target:
        """The same objects once more for each copy."""
        return self._with(lambda each: each.repeat(n, *(1,) * (each.dim() - 1)))

    def picked(self, examples: Tensor) -> Target:
        """The objects of some examples."""
        return self._with(lambda each: each[examples])

    def _with(self, change: Callable[[Tensor], Tensor]) -> Detected:
        boxes = boxes_of(self.box)
        index = change(self.index) if isinstance(self.index, Tensor) else self.index
        return replace(self, index=index, box=change(boxes) if boxes.dim() == 2 else self.box)

    def describe(self) -> Any:
        """The class and the box."""
        index = self.index.tolist() if isinstance(self.index, Tensor) else self.index
        return {"detected": {"class": index, "box": boxes_of(self.box).tolist(), "temperature": self.temperature}}


def _ranked(found: Mapping[str, Tensor]) -> list[int]:
    """The places of an image's detections that have an area, the surest first."""
    sound = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(dim=1).tolist()
    return [place for place in found["scores"].argsort(descending=True, stable=True).tolist() if sound[place]]


def _check_detections(raw: Any, rows: int) -> None:
    """Refuses an output that is no list of detections, one entry for each image."""
    fits = isinstance(raw, (list, tuple)) and len(raw) == rows
    if not fits or not all(isinstance(found, Mapping) and all(part in found for part in PARTS) for found in raw):
        raise TargetError(
            f"Detected needs a list with {list(PARTS)} for each of {rows} images; the model returns a "
            f"{type(raw).__name__}"
        )


def _unmatched(example: int, index: int, box: Tensor, found: Mapping[str, Tensor]) -> str:
    classes = sorted(set(found["labels"].tolist()))
    shown = [round(place, 1) for place in box.tolist()]
    return (
        f"in example {example} no detection of class {index} overlaps the box {shown}; it has {len(found['scores'])} "
        f"detections, of classes {classes[:10]}. Take an object that is detected (Detected.of(model(images))), lower "
        "the model's score threshold, or say required=False for a score of zero"
    )
