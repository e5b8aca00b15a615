"""Explainers whose values are wrong, each by one seeded bug."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pellucid import Attribution, Check, ClassLogit, Look, Sum

from .correct import ALONE, CLASS, GLYPH, GradientTimesInput, Maps, Path, caught_by


@caught_by(GLYPH)
@dataclass(frozen=True, eq=False)
class SignFlipped(GradientTimesInput):
    """Minus the input times the gradient."""

    def answer(self, sample, seen):
        return Attribution(-sample.inputs * seen.gradients["input"])


@caught_by("conserves the score")
@dataclass(frozen=True, eq=False)
class SignFlippedWhereItClaims(SignFlipped):
    """Minus the input times the gradient, with the claims of the right one."""


@caught_by(CLASS)
@dataclass(frozen=True, eq=False)
class NextClass(GradientTimesInput):
    """The gradient of the next class."""

    def explain(self, sample):
        first = yield Look(at=sample)
        other = ClassLogit((first.classes.cpu() + 1) % 4) if first.classes is not None else sample.target
        seen = yield Look(at=sample, gradients=["input"], targets=[other])
        return Attribution(sample.inputs * seen.gradients["input"][0])


@caught_by("explains the target that is asked")
@dataclass(frozen=True, eq=False)
class PredictedClass(GradientTimesInput):
    """The gradient of the predicted class, whatever is asked."""

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"], targets=[ClassLogit()])
        return Attribution(sample.inputs * seen.gradients["input"][0])


@caught_by("takes an index, a tensor of it and the predicted class as one target")
@dataclass(frozen=True, eq=False)
class IgnoresGivenTensor(GradientTimesInput):
    """Takes the predicted class where the target is a tensor."""

    def explain(self, sample):
        tensor = isinstance(sample.target, ClassLogit) and isinstance(sample.target.classes, Tensor)
        seen = yield Look(at=sample, gradients=["input"], targets=[ClassLogit() if tensor else sample.target])
        return Attribution(sample.inputs * seen.gradients["input"][0])


@caught_by(GLYPH)
@dataclass(frozen=True, eq=False)
class Transposed(Maps):
    """Rows and columns exchanged."""

    def answer(self, values):
        return Attribution(values.transpose(1, 2), over=self.layer)


@caught_by(ALONE)
@dataclass(frozen=True, eq=False)
class PermutedBatch(GradientTimesInput):
    """Each example gets its neighbour's values."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"]).roll(1, dims=0))


@caught_by("keeps to the order of the examples")
@dataclass(frozen=True, eq=False)
class SortedBatch(GradientTimesInput):
    """The examples in the order of their sums."""

    def answer(self, sample, seen):
        values = sample.inputs * seen.gradients["input"]
        return Attribution(values[values.flatten(1).sum(dim=1).argsort()])


@caught_by("gives finite values, one row for each example")
@dataclass(frozen=True, eq=False)
class DropsLast(GradientTimesInput):
    """The last example is lost."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"])[:-1])


@caught_by(ALONE)
@dataclass(frozen=True, eq=False)
class BatchNormalised(GradientTimesInput):
    """Divided by the greatest value of the batch."""

    def answer(self, sample, seen):
        values = sample.inputs * seen.gradients["input"]
        return Attribution(values / values.abs().max())


@caught_by("does not depend on the batch size")
@dataclass(frozen=True, eq=False)
class MeanOfMeans(Path):
    """A fold that divides by the rows of each batch."""

    def explain(self, sample):
        def mean(part):
            return part.gradients["input"] / len(part.draws)

        seen = yield Look(at=sample.along("zero", self.places()), gradients=["input"], fold=Sum(mean))
        return Attribution(sample.inputs * seen.folded)


@caught_by("answers in the precision that it is asked in")
@dataclass(frozen=True, eq=False)
class SinglePrecision(GradientTimesInput):
    """Single precision, whatever the model's."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"]).float())


@caught_by("keeps double precision all the way")
@dataclass(frozen=True, eq=False)
class SinglePrecisionInside(GradientTimesInput):
    """Single precision on the way, double at the end."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"]).float().to(sample.inputs))


@caught_by("explains a model of half precision in finite single precision, or refuses it clearly")
@dataclass(frozen=True, eq=False)
class Overflows(GradientTimesInput):
    """Powers that half precision cannot hold."""

    def answer(self, sample, seen):
        return Attribution(sample.inputs * seen.gradients["input"] * 1e4 * 1e4 / 1e8)


@caught_by("does not hide a score that is not a number")
@dataclass(frozen=True, eq=False)
class HidesNaN(GradientTimesInput):
    """Zero in place of what is not a number."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"]).nan_to_num())


@caught_by("explains the layer that it is given")
@dataclass(frozen=True, eq=False)
class OtherLayer(Maps):
    """Always the last maps, whatever layer is given."""

    def explain(self, sample):
        seen = yield Look(at=sample, activations=["auto"], gradients=["auto"])
        values = (seen.map_gradients("auto").mean(dim=(2, 3), keepdim=True) * seen.maps("auto")).sum(dim=1)
        return Attribution(values, over=self.layer)


@caught_by("gives values of the shape of what they are over")
@dataclass(frozen=True, eq=False)
class WrongPlace(Maps):
    """A layer's map that says it is over the input."""

    def answer(self, values):
        return Attribution(values, over="input")


@caught_by("does not depend on how the network is written")
@dataclass(frozen=True, eq=False)
class OnlyModules(Maps):
    """Finds the module ReLU and nothing else."""

    layer: str = "relu2"


@caught_by("gives every certificate a verdict")
@dataclass(frozen=True, eq=False)
class EmptyCertificate(GradientTimesInput):
    """A check that measured no number."""

    def answer(self, sample, seen):
        values = sample.inputs * seen.gradients["input"]
        return Attribution(values, checks=(Check.bound("sum", float("nan"), 1.0),))
