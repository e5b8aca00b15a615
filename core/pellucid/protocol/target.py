"""Targets: which number of a model's output is explained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import TargetError, nearest

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
    """

    raw: Any
    logits: Callable[[], Tensor]
    examples: Tensor
    activations: dict[str, Tensor] = field(default_factory=dict)
    base: Tensor | None = None


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


def _check_classes(classes: Tensor, logits: Tensor) -> None:
    if logits.dim() < 2:
        raise TargetError(
            f"the model's output has shape {tuple(logits.shape)}, which has no axis of classes; give the target as a "
            "callable from the output to one score for each example"
        )
    count = logits.shape[1]
    wrong = classes[(classes < -count) | (classes >= count)]
    if len(wrong):
        raise TargetError(f"target {int(wrong[0])} is out of range; the model has {count} classes, 0 to {count - 1}")


@dataclass(frozen=True, eq=False)
class ClassLogit(Target):
    """The score of one class, before the softmax.

    Attributes:
        classes: a class index for all examples, or (B,) one for each; None is the predicted class of each.
        probability: whether the softmax is taken first.
    """

    classes: int | Tensor | None = None
    probability: bool = False

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
        _check_classes(classes, logits)
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
            return "predicted"
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

    def score(self, given: Score) -> Tensor:
        """The loss of each row."""
        logits = given.logits()
        labels = self.labels[given.examples].to(logits.device)
        if labels.is_floating_point():
            return (
                (logits.reshape(labels.shape) - labels.to(logits))
                .square()
                .flatten(1 if labels.dim() > 1 else 0)
                .reshape(len(labels), -1)
                .sum(dim=1)
            )
        _check_classes(labels, logits)
        return F.cross_entropy(logits, labels, reduction="none").reshape(len(labels), -1).mean(dim=1)

    def repeated(self, n: int) -> Target:
        """The same labels once more for each copy."""
        return Loss(self.labels.repeat(n, *(1,) * (self.labels.dim() - 1)))

    def picked(self, examples: Tensor) -> Target:
        """The labels of some examples."""
        return Loss(self.labels[examples])

    def describe(self) -> Any:
        """The labels."""
        return {"loss": self.labels.tolist()}


@dataclass(frozen=True, eq=False)
class Unit(Target):
    """A unit or a whole channel of a layer.

    Attributes:
        layer: the layer's name.
        channel: the channel (axis 1), or the unit of a layer (B, features).
        position: a place in the remaining axes, or None for the mean over them.
    """

    layer: str
    channel: int
    position: tuple[int, ...] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The unit's layer."""
        return (self.layer,)

    def score(self, given: Score) -> Tensor:
        """The unit's activation, or the channel's mean one."""
        maps = given.activations[self.layer]
        if maps.dim() < 2 or not -maps.shape[1] <= self.channel < maps.shape[1]:
            raise TargetError(
                f"layer '{self.layer}' gives {tuple(maps.shape)}; channel {self.channel} is out of range for its axis 1"
            )
        channel = maps[:, self.channel]
        if self.position is None:
            return channel.flatten(1).mean(dim=1) if channel.dim() > 1 else channel
        if len(self.position) != channel.dim() - 1 or any(
            not -size <= place < size for place, size in zip(self.position, channel.shape[1:], strict=True)
        ):
            raise TargetError(
                f"position {self.position} does not lie in the layer's positions, {tuple(channel.shape[1:])}"
            )
        return channel[(slice(None), *self.position)]

    def describe(self) -> Any:
        """The layer, channel and position."""
        position = None if self.position is None else list(self.position)
        return {"unit": {"layer": self.layer, "channel": self.channel, "position": position}}


@dataclass(frozen=True, eq=False)
class Region(Target):
    """The mean logit of a class over a region of a segmentation map.

    Attributes:
        index: the class.
        mask: (h, w) or (B, h, w), of the size of the model's output map; weights or booleans; None is everywhere.
    """

    index: int
    mask: Tensor | None = None

    def score(self, given: Score) -> Tensor:
        """The weighted mean logit over the region."""
        logits = given.logits()
        if logits.dim() != 4:
            raise TargetError(f"Region needs an output (B, classes, h, w); the model gives {tuple(logits.shape)}")
        _check_classes(torch.tensor([self.index]), logits)
        maps = logits[:, self.index]
        if self.mask is None:
            return maps.mean(dim=(1, 2))
        mask = self.mask.to(maps)
        if mask.dim() == 3:
            mask = mask[given.examples.to(mask.device)]
        if mask.shape[-2:] != maps.shape[-2:]:
            raise TargetError(
                f"the region's mask is {tuple(mask.shape[-2:])}; the output map is {tuple(maps.shape[-2:])}"
            )
        total = mask.expand_as(maps).sum(dim=(1, 2))
        if bool((total == 0).any()):
            raise TargetError("the region's mask is empty for at least one example; expected at least one position")
        return (maps * mask).sum(dim=(1, 2)) / total

    def describe(self) -> Any:
        """The class and the region's size."""
        return {
            "region": {"class": self.index, "positions": None if self.mask is None else int((self.mask != 0).sum())}
        }


@dataclass(frozen=True, eq=False)
class Similarity(Target):
    """The cosine similarity of the model's output, or of a layer, to an embedding.

    Attributes:
        embedding: (features,) for all examples or (B, features).
        layer: the layer that is compared, or None for the output.
    """

    embedding: Tensor
    layer: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer, if any."""
        return () if self.layer is None else (self.layer,)

    def score(self, given: Score) -> Tensor:
        """The cosine of each row with its embedding."""
        here = (given.logits() if self.layer is None else given.activations[self.layer]).flatten(1)
        embedding = self.embedding.to(here)
        if embedding.dim() > 1:
            embedding = embedding[given.examples.to(here.device)].flatten(1)
        if embedding.shape[-1] != here.shape[-1]:
            raise TargetError(f"the embedding has {embedding.shape[-1]} features; the model gives {here.shape[-1]}")
        return F.cosine_similarity(here, embedding.expand_as(here), dim=1)

    def describe(self) -> Any:
        """Where the similarity is taken."""
        return {"similarity": {"layer": self.layer, "features": self.embedding.shape[-1]}}


@dataclass(frozen=True, eq=False)
class Custom(Target):
    """Any function of what the model returns.

    Attributes:
        function: takes the model's own output and returns (B,) scores.
    """

    function: Callable[[Any], Tensor]

    def score(self, given: Score) -> Tensor:
        """What the function returns, checked to be one number for each row."""
        score = self.function(given.raw)
        rows = len(given.examples)
        if not isinstance(score, Tensor):
            raise TargetError(f"the target function returned {type(score).__name__}; expected a tensor ({rows},)")
        if score.shape != (rows,):
            if rows == 1 and score.numel() == 1:
                return score.reshape(1)
            raise TargetError(
                f"the target function returned shape {tuple(score.shape)} for {rows} examples; expected ({rows},), one "
                "score for each (return the scores before summing or averaging over the batch)"
            )
        return score

    def describe(self) -> Any:
        """The function's name."""
        return f"function {getattr(self.function, '__qualname__', type(self.function).__name__)}"


def make_target(target: Any, examples: int, categories: Sequence[str] | None = None) -> Target:
    """Makes a `Target` of what a user may give.

    Args:
        target: None (the predicted class), an index, a category's name, a sequence or tensor of them, a callable, or a
            `Target`.
        examples: how many examples there are.
        categories: the model's class names, if known.

    Raises:
        TargetError: when it is none of these, or there are not as many targets as examples.
    """
    if isinstance(target, Target):
        return target
    if target is None:
        return ClassLogit()
    if isinstance(target, str):
        return ClassLogit(_category(target, categories))
    if isinstance(target, bool):
        raise TargetError("the target is a bool; expected a class index")
    if hasattr(target, "__index__") and not isinstance(target, Tensor):
        return ClassLogit(int(target))
    if callable(target) and not isinstance(target, Tensor):
        return Custom(target)
    if isinstance(target, (list, tuple)):
        target = [_category(one, categories) if isinstance(one, str) else one for one in target]
    try:
        classes = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(
            f"the target is a {type(target).__name__}; expected None, a class index or name, a tensor of indices, a "
            "callable from the model's output to scores, or a Target"
        ) from None
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TargetError(f"the target has type {classes.dtype}; expected integer class indices")
    # A copy: the caller may change theirs, and one made under inference mode could not be used for gradients.
    classes = classes.detach().cpu().long().clone()
    if classes.dim() == 0:
        return ClassLogit(int(classes))
    if classes.shape != (examples,):
        raise TargetError(
            f"the target has shape {tuple(classes.shape)}; expected ({examples},), one class for each example"
        )
    return ClassLogit(classes)


def _category(name: str, categories: Sequence[str] | None) -> int:
    if categories is None:
        raise TargetError(
            f"target '{name}' is a name, but this model's class names are not known; give the class index"
        )
    folded = [category.casefold() for category in categories]
    if name.casefold() not in folded:
        raise TargetError(f"the model has no class '{name}'.{nearest(name, categories)}")
    return folded.index(name.casefold())
