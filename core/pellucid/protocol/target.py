"""Targets: which number of a model's output is explained, and those that speak of classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import TargetError

if TYPE_CHECKING:
    from pellucid.protocol.sample import Sample


@dataclass(frozen=True, eq=False)
class Score:
    """What a target may look at for some rows of one pass.

    Attributes:
        raw: what the model returned, cut to these rows.
        logits: (rows, classes, ...), the part of it that holds the scores (see `Adapter.logits`); before any softmax
            that the model does not do itself.
        examples: (rows,) which example of the sample each row belongs to.
        activations: by name, what the target's `layers` gave.
        base: the model's logits at the target's `base`, (B, classes, ...), where it named one.
        derived: whether the rows are made of the sample, such as masked ones, rather than the sample itself.
    """

    raw: Any
    logits: Callable[[], Tensor]
    examples: Tensor
    activations: dict[str, Tensor] = field(default_factory=dict)
    base: Tensor | None = None
    derived: bool = False


class Target(ABC):
    """A differentiable score for each row: what every technique explains.

    A subclass states `layers` where it scores a layer's activations, and `base` where the score of a derived row
    depends on the model's output at the sample itself, as the predicted class does.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose activations the score needs."""
        return ()

    def base(self, sample: Sample) -> Sample | None:
        """The sample at which the model's output is needed before any row can be scored."""
        return None

    @abstractmethod
    def score(self, given: Score) -> Tensor:
        """The score of each row, (rows,)."""

    def check(self, examples: int) -> None:
        """Refuses a target that does not fit so many examples.

        Raises:
            TargetError: with what was expected.
        """
        return

    def fixed_by(self, sample: Sample) -> Target:
        """The target for other inputs that stand for the sample's examples, such as noisy ones."""
        return self

    def repeated(self, n: int) -> Target:
        """The target for `n` copies of the sample, one after the other."""
        return self

    def picked(self, examples: Tensor) -> Target:
        """The target for some of the sample's examples."""
        return self

    def describe(self) -> Any:
        """What a saved result says of the target: numbers, text, lists and dictionaries of them."""
        return repr(self)


def _choose(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of one class for each row; further axes (the positions of a segmentation) are averaged."""
    chosen = logits.gather(
        1, classes.to(logits.device).reshape(-1, 1, *(1,) * (logits.dim() - 2)).expand(-1, 1, *logits.shape[2:])
    )
    return chosen.flatten(1).mean(dim=1)


def check_rows(what: str, values: Tensor, examples: int) -> None:
    """Refuses values of which there is not one for each example."""
    if values.dim() == 0 or values.shape[0] != examples:
        raise TargetError(f"{what} have shape {tuple(values.shape)}; expected ({examples}, ...), one for each example")


def check_indices(classes: Any, examples: int) -> None:
    """Refuses classes that are neither an integer nor (B,) integers."""
    if isinstance(classes, Tensor):
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool or classes.dim() != 1:
            raise TargetError(
                f"the target's classes are {classes.dtype} of shape {tuple(classes.shape)}; expected integers of shape "
                f"({examples},)"
            )
        check_rows("the target's classes", classes, examples)
    elif classes is not None and (isinstance(classes, bool) or not hasattr(classes, "__index__")):
        raise TargetError(f"the target's class is {classes!r}; expected an integer, or a tensor ({examples},) of them")


def check_classes(classes: Tensor, logits: Tensor, what: str = "classes") -> None:
    """Refuses classes, or values of a regression, that the model's output does not have."""
    if logits.dim() < 2:
        raise TargetError(
            f"the model's output has shape {tuple(logits.shape)}, which has no axis of classes; give the target as a "
            "callable from the output to one score for each example"
        )
    count = logits.shape[1]
    wrong = classes[(classes < -count) | (classes >= count)]
    if len(wrong):
        raise TargetError(f"target {int(wrong[0])} is out of range; the model has {count} {what}, 0 to {count - 1}")


PREDICTED = "predicted"
"""How a target describes itself whose class is the predicted one of each example."""


@dataclass(frozen=True, eq=False)
class ClassLogit(Target):
    """The score of one class, before the softmax.

    Attributes:
        classes: a class index for all examples, or (B,) one for each; None is the predicted class of each.
        probability: whether the softmax is taken first.
    """

    classes: int | Tensor | None = None
    probability: bool = False

    def check(self, examples: int) -> None:
        """The classes must be integers, one or (B,)."""
        check_indices(self.classes, examples)

    def base(self, sample: Sample) -> Sample | None:
        """The sample itself, where the classes are the predicted ones."""
        return sample if self.classes is None else None

    def of(self, given: Score) -> Tensor:
        """The class of each row, (rows,)."""
        if self.classes is None:
            if given.base is None:
                raise TargetError("the predicted class is not known yet; expected the sample's own output")
            base = given.base
            classes = (base.flatten(2).mean(dim=2) if base.dim() > 2 else base).argmax(dim=1)[given.examples]
        elif isinstance(self.classes, Tensor):
            classes = self.classes[given.examples]
        else:
            classes = torch.full((len(given.examples),), self.classes)
        return classes

    def score(self, given: Score) -> Tensor:
        """The logit, or the probability, of each row's class."""
        logits = given.logits()
        if self.classes is None and logits.dim() == 1:
            return logits
        classes = self.of(given)
        check_classes(classes, logits)
        return _choose(logits.softmax(dim=1) if self.probability else logits, classes % logits.shape[1])

    def fixed_by(self, sample: Sample) -> Target:
        """Other inputs keep the classes that were predicted for the sample itself."""
        return FixedBy(self, sample, torch.arange(len(sample))) if self.classes is None else self

    def repeated(self, n: int) -> Target:
        """The same classes once more for each copy."""
        return ClassLogit(self.classes.repeat(n), self.probability) if isinstance(self.classes, Tensor) else self

    def picked(self, examples: Tensor) -> Target:
        """The classes of some examples."""
        return ClassLogit(self.classes[examples], self.probability) if isinstance(self.classes, Tensor) else self

    def describe(self) -> Any:
        """The class, or the list of classes."""
        if self.classes is None:
            return PREDICTED
        return self.classes.tolist() if isinstance(self.classes, Tensor) else self.classes


@dataclass(frozen=True, eq=False)
class FixedBy(Target):
    """A target whose classes are those predicted at another sample, for inputs that stand for its examples.

    Attributes:
        target: the target at the other sample.
        origin: the other sample.
        rows: (B,) which of its examples each example stands for.
    """

    target: Target
    origin: Sample
    rows: Tensor

    def base(self, sample: Sample) -> Sample | None:
        """The other sample."""
        return self.origin

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the target."""
        return self.target.layers

    def score(self, given: Score) -> Tensor:
        """The target's score, with the classes of the other sample."""
        return self.target.score(replace(given, examples=self.rows[given.examples]))

    def repeated(self, n: int) -> Target:
        """The same examples once more for each copy."""
        return replace(self, rows=self.rows.repeat(n))

    def picked(self, examples: Tensor) -> Target:
        """The target for some of the examples."""
        return replace(self, rows=self.rows[examples])

    def describe(self) -> Any:
        """What the target says of itself."""
        return self.target.describe()


@dataclass(frozen=True, eq=False)
class Contrast(Target):
    """The difference of two classes' logits: why this class *rather than* that one.

    Attributes:
        one: the class that is explained, an index or (B,); None is the predicted class.
        other: the class it is held against, an index or (B,).
    """

    one: int | Tensor | None
    other: int | Tensor

    def check(self, examples: int) -> None:
        """The classes must be integers, one or (B,) each."""
        check_indices(self.one, examples)
        check_indices(self.other, examples)

    def base(self, sample: Sample) -> Sample | None:
        """The sample itself, where the first class is the predicted one."""
        return sample if self.one is None else None

    def score(self, given: Score) -> Tensor:
        """The first class's logit less the other's."""
        return ClassLogit(self.one).score(given) - ClassLogit(self.other).score(given)

    def fixed_by(self, sample: Sample) -> Target:
        """Other inputs keep the class that was predicted for the sample itself."""
        return FixedBy(self, sample, torch.arange(len(sample))) if self.one is None else self

    def repeated(self, n: int) -> Target:
        """The same classes once more for each copy."""
        return Contrast(*(c.repeat(n) if isinstance(c, Tensor) else c for c in (self.one, self.other)))  # type: ignore[arg-type]

    def picked(self, examples: Tensor) -> Target:
        """The classes of some examples."""
        return Contrast(*(c[examples] if isinstance(c, Tensor) else c for c in (self.one, self.other)))  # type: ignore[arg-type]

    def describe(self) -> Any:
        """Both classes."""
        return {"contrast": [ClassLogit(self.one).describe(), ClassLogit(self.other).describe()]}


@dataclass(frozen=True, eq=False)
class Loss(Target):
    """The cross-entropy with given labels; with `labels` of a floating type, the squared error.

    Attributes:
        labels: (B,) class indices, or (B, ...) values of a regression.
    """

    labels: Tensor

    def check(self, examples: int) -> None:
        """There must be as many labels as examples."""
        check_rows("the labels", self.labels, examples)

    def score(self, given: Score) -> Tensor:
        """The loss of each row."""
        logits = given.logits()
        labels = self.labels[given.examples].to(logits.device)
        if labels.is_floating_point():
            if logits.numel() != labels.numel():
                raise TargetError(
                    f"the labels are of a floating type, {tuple(self.labels.shape[1:])} for each; the model gives "
                    f"{tuple(logits.shape[1:])}. Expected as many values, or class indices as integers"
                )
            return (logits.reshape(labels.shape) - labels.to(logits)).square().reshape(len(labels), -1).sum(dim=1)
        if labels.shape[1:] != logits.shape[2:]:
            raise TargetError(
                f"the labels have shape {tuple(self.labels.shape)}; expected class indices of shape "
                f"{(len(self.labels), *logits.shape[2:])}, not one-hot"
            )
        check_classes(labels, logits)
        return F.cross_entropy(logits, labels.long(), reduction="none").reshape(len(labels), -1).mean(dim=1)

    def repeated(self, n: int) -> Target:
        """The same labels once more for each copy."""
        return Loss(self.labels.repeat(n, *(1,) * (self.labels.dim() - 1)))

    def picked(self, examples: Tensor) -> Target:
        """The labels of some examples."""
        return Loss(self.labels[examples])

    def describe(self) -> Any:
        """The labels."""
        return {"loss": self.labels.tolist()}
