"""Correct techniques, and the same with one seeded bug each: the kit must pass the former and catch the latter by name.

Each mutant says in `CAUGHT_BY` which check catches it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from pellucid import (
    Attribution,
    Check,
    ClassLogit,
    Evaluator,
    Explainer,
    InputError,
    Look,
    Mean,
    Projection,
    Projector,
    Scores,
    Sum,
    Technique,
    together,
)

CORRECT: dict[str, type] = {}
CAUGHT_BY: dict[type, str] = {}
USES = frozenset({"outputs", "activations", "gradients"})


def recorded(cls: type, **changes: Any) -> Technique:
    """The record of a class of this module."""
    kind = next(
        kind for base, kind in ((Evaluator, "evaluator"), (Projector, "projector"), (Explainer, "explainer"))
        if issubclass(cls, base)
    )  # fmt: skip
    output = {"explainer": "attribution", "evaluator": "scores", "projector": "projection"}[kind]
    fields = {"explains": "decision", "output": output, "better": "higher" if kind == "evaluator" else ""}
    fields |= {"uses": {"outputs", "gradients"} if kind == "explainer" else (), **getattr(cls, "record", {}), **changes}
    return Technique("mutant", kind, "Does what its class says.", f"{__name__}:{cls.__name__}", **fields)


def correct(cls):
    CORRECT[cls.__name__] = cls
    return cls


def caught_by(sentence):
    def mark(cls):
        CAUGHT_BY[cls] = sentence
        return cls

    return mark


# --- correct techniques -------------------------------------------------------------------------------------------


@correct
@dataclass(frozen=True, eq=False)
class GradientTimesInput(Explainer):
    """The input times the gradient."""

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "symmetry", "conservation"})

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"])
        return self.answer(sample, seen)

    def answer(self, sample, seen):
        return Attribution(sample.inputs * seen.gradients["input"])


@correct
@dataclass(frozen=True, eq=False)
class Path(Explainer):
    """Integrated gradients from zero by the midpoint rule."""

    n_steps: Annotated[int, Ge(1)] = 32

    axioms: ClassVar[frozenset[str]] = frozenset({"completeness", "linearity", "symmetry", "sensitivity"})

    def places(self):
        return (torch.arange(self.n_steps, dtype=torch.float64) + 0.5) / self.n_steps

    def explain(self, sample):
        seen = yield Look(at=sample.along("zero", self.places()), gradients=["input"], fold=Mean())
        return Attribution(sample.inputs * seen.gradients["input"])


@correct
@dataclass(frozen=True, eq=False)
class Maps(Explainer):
    """Weights a layer's maps by the mean gradient."""

    layer: str = "auto"

    record: ClassVar[Any] = {"uses": USES}

    def explain(self, sample):
        seen = yield Look(at=sample, activations=[self.layer], gradients=[self.layer])
        values = (seen.map_gradients(self.layer).mean(dim=(2, 3), keepdim=True) * seen.maps(self.layer)).sum(dim=1)
        return self.answer(values)

    def answer(self, values):
        return Attribution(values, over=self.layer)


@correct
@dataclass(frozen=True, eq=False)
class Noisy(Explainer):
    """The mean gradient under noise, times the input."""

    n_samples: Annotated[int, Ge(1)] = 4

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "tags": {"stochastic"}}

    def noise(self, sample, draw, shape):
        return torch.randn(shape, generator=sample.generator("noisy", draw))

    def explain(self, sample):
        noise = [self.noise(sample, draw, sample.inputs.shape[1:]) for draw in range(self.n_samples)]
        stacked = torch.stack(noise).to(sample.inputs)

        def make(rows, draws, examples):
            return rows + 0.1 * stacked[draws]

        seen = yield Look(at=sample.derived(self.n_samples, make), gradients=["input"], fold=Mean())
        return Attribution(sample.inputs * seen.gradients["input"])


@correct
@dataclass(frozen=True, eq=False)
class Flipping(Evaluator):
    """How far the score falls when the positive half of the relevance is hidden."""

    record: ClassVar[Any] = {"uses": {"outputs"}, "tags": {"faithfulness"}, "explains": "explanation"}
    better: ClassVar[str] = "higher"

    def relevance(self, explanation):
        return explanation.values

    def evaluate(self, sample, explanation):
        relevance = self.relevance(explanation)
        least = relevance.double().flatten(1).quantile(0.9, dim=1).reshape(-1, *(1,) * (relevance.dim() - 1))
        keep = relevance <= least

        def make(rows, draws, examples):
            return rows * keep[examples]

        whole, hidden = yield from together(self.look(sample), self.look(sample.derived(1, make)))
        return self.scored(explanation, whole.scores - hidden.scores[0])

    def scored(self, explanation, values):
        return Scores.single(
            metric="flipping", values=values, better=self.better, explanation=explanation.meta.technique
        )

    def look(self, at):
        return (yield Look(at=at))


@correct
@dataclass(frozen=True, eq=False)
class Axes(Projector):
    """Places states on their first two principal axes."""

    record: ClassVar[Any] = {"tags": {"linear"}, "explains": "data"}

    def checked(self, states):
        if states.dim() != 2 or len(states) == 0 or not bool(torch.isfinite(states).all()):
            raise InputError("the states are no finite points (n, d)")
        return states

    def project(self, states, *, seed=0):
        points = self.checked(states).double()
        centred = points - points.mean(dim=0)
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, [-1, -2]]
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        return Projection(self.placed((centred @ (vectors * largest.sign())).to(states.dtype)))

    def placed(self, places):
        return places


# --- explainers with one bug each ---------------------------------------------------------------------------------

GLYPH = "finds the glyph that decides, not the distractor of equal energy"
CLASS = "finds the glyph of the class that is asked, not another class's"
ALONE = "explains an example as it does in a batch"
BEHIND = "reaches nothing but through its looks: without the guard, model and process stay as they were"
TWICE = "looks at no place twice"


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


def captured(look):
    """Looks, and finds the model behind the protocol's back."""
    found = []
    handle = register_module_forward_pre_hook(lambda module, _: found.append(module))
    seen = yield look
    handle.remove()
    return seen, found[0]


@caught_by(ALONE)
@dataclass(frozen=True, eq=False)
class ForgottenTrainMode(GradientTimesInput):
    """Puts the model into train mode for a pass of its own."""

    def explain(self, sample):
        seen, model = yield from captured(Look(at=sample, gradients=["input"]))
        model.train()
        seen = yield Look(at=sample, gradients=["input"])
        return self.answer(sample, seen)


@caught_by(BEHIND)
@dataclass(frozen=True, eq=False)
class LeavesTrainMode(GradientTimesInput):
    """Puts the model into train mode and leaves it there."""

    def explain(self, sample):
        seen, model = yield from captured(Look(at=sample, gradients=["input"]))
        model.train()
        return self.answer(sample, seen)


@caught_by("leaves the model and the process as they were")
@dataclass(frozen=True, eq=False)
class LeakedHook(GradientTimesInput):
    """Registers a hook on the model and forgets it."""

    def explain(self, sample):
        seen, model = yield from captured(Look(at=sample, gradients=["input"]))
        model.register_forward_hook(lambda *_: None)
        return self.answer(sample, seen)


@caught_by("leaves the model and the process as they were when the model fails or is interrupted midway")
@dataclass(frozen=True, eq=False)
class HookLeftOnError(GradientTimesInput):
    """Removes its hook only where all goes well."""

    def explain(self, sample):
        seen, _ = yield from captured(Look(at=sample, gradients=["input"]))
        return self.answer(sample, seen)


@caught_by(BEHIND)
@dataclass(frozen=True, eq=False)
class Freezes(GradientTimesInput):
    """Changes the parameters' requires_grad."""

    def explain(self, sample):
        seen, model = yield from captured(Look(at=sample, gradients=["input"]))
        model.requires_grad_(False)
        return self.answer(sample, seen)


@caught_by(BEHIND)
@dataclass(frozen=True, eq=False)
class AccumulatesGradients(GradientTimesInput):
    """Calls backward on the model's own output."""

    def explain(self, sample):
        seen, model = yield from captured(Look(at=sample, gradients=["input"]))
        output = model(sample.inputs)
        if output.requires_grad:
            output.sum().backward()
        return self.answer(sample, seen)


@caught_by("counts its passes truly")
@dataclass(frozen=True, eq=False)
class CallsTheModel(GradientTimesInput):
    """A forward pass that no look asked for."""

    def explain(self, sample):
        seen, model = yield from captured(Look(at=sample, gradients=["input"]))
        with torch.no_grad():
            model(sample.inputs)
        return self.answer(sample, seen)


@caught_by("does not change the sample's inputs, which other techniques share")
@dataclass(frozen=True, eq=False)
class InPlace(GradientTimesInput):
    """Multiplies into the inputs."""

    def answer(self, sample, seen):
        return Attribution(sample.inputs.mul_(seen.gradients["input"]))


@caught_by("draws its random numbers from the sample's generators only")
@dataclass(frozen=True, eq=False)
class GlobalRandomness(Noisy):
    """Noise of the global random state."""

    def noise(self, sample, draw, shape):
        return torch.randn(shape)


@caught_by("gives other values under another seed")
@dataclass(frozen=True, eq=False)
class FixedSeed(Noisy):
    """Noise that the seed does not reach."""

    def noise(self, sample, draw, shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(draw))


@caught_by("gives the same values under any seed")
@dataclass(frozen=True, eq=False)
class UntaggedNoise(Noisy):
    """Noise without the tag."""

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}}


@caught_by("gives the same bits under the same seed")
@dataclass(frozen=True, eq=False)
class Counting(Noisy):
    """Noise that depends on how often it ran."""

    runs: ClassVar[list[int]] = []

    def noise(self, sample, draw, shape):
        self.runs.append(draw)
        return torch.randn(shape, generator=sample.generator("noisy", len(self.runs)))


@caught_by("keeps nothing from one call to the next")
@dataclass(frozen=True, eq=False)
class StaleCache(GradientTimesInput):
    """Remembers its answer by the inputs' shape."""

    def answer(self, sample, seen):
        known = self.__dict__.setdefault("known", {})
        return known.setdefault(tuple(sample.inputs.shape), super().answer(sample, seen))


@caught_by("asks only what its record declares")
@dataclass(frozen=True, eq=False)
class Undeclared(GradientTimesInput):
    """Asks for gradients without saying so."""

    record: ClassVar[Any] = {"uses": {"outputs"}}


@caught_by("declares only what it asks")
@dataclass(frozen=True, eq=False)
class Overdeclared(GradientTimesInput):
    """Declares activations and never asks for them."""

    record: ClassVar[Any] = {"uses": USES}


@caught_by("shares out the score's rise over the baseline")
@dataclass(frozen=True, eq=False)
class OffByOne(Path):
    """The left ends of the steps in place of their middles."""

    def places(self):
        return torch.arange(self.n_steps, dtype=torch.float64) / self.n_steps


@caught_by(TWICE)
@dataclass(frozen=True, eq=False)
class LooksAgain(GradientTimesInput):
    """The scores first, then the gradients: two passes where one does."""

    def explain(self, sample):
        yield Look(at=sample)
        seen = yield Look(at=sample, gradients=["input"])
        return self.answer(sample, seen)


@caught_by(TWICE)
@dataclass(frozen=True, eq=False)
class CopiesTheSample(GradientTimesInput):
    """Looks at a copy of the sample, which no one can share."""

    def explain(self, sample):
        def at(place, gradients):
            return (yield Look(at=place, gradients=gradients))

        _, seen = yield from together(at(sample, []), at(sample.at(sample.inputs.clone()), ["input"]))
        return self.answer(sample, seen)


@caught_by("gives the same in company")
@dataclass(frozen=True, eq=False)
class ChangesWhatItWasShown(GradientTimesInput):
    """Works in place on the gradients, behind the version counter's back."""

    def answer(self, sample, seen):
        seen.gradients["input"].data.mul_(sample.inputs)
        return Attribution(seen.gradients["input"])


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


@caught_by("is linear in the score")
@dataclass(frozen=True, eq=False)
class Sizes(GradientTimesInput):
    """Sizes, with the claims of signed values."""

    def answer(self, sample, seen):
        return Attribution((sample.inputs * seen.gradients["input"]).abs())


@caught_by("treats what is symmetric alike")
@dataclass(frozen=True, eq=False)
class Leaning(GradientTimesInput):
    """Counts the left more than the right."""

    def answer(self, sample, seen):
        values = sample.inputs * seen.gradients["input"]
        return Attribution(values * torch.linspace(2, 1, values.shape[-1]).to(values))


@caught_by("gives nothing to what the model ignores, and something to what changed the score")
@dataclass(frozen=True, eq=False)
class Saturating(GradientTimesInput):
    """The plain gradient, with a claim that only paths can make."""

    axioms: ClassVar[frozenset[str]] = frozenset({"sensitivity"})


@caught_by("knows nothing of the planted glyph")
@dataclass(frozen=True, eq=False)
class KnowingControl(GradientTimesInput):
    """A control that looks at the model."""

    record: ClassVar[Any] = {"uses": {"outputs", "gradients"}, "tags": {"control"}}


@caught_by("claims only axioms and excuses only checks that there are")
@dataclass(frozen=True, eq=False)
class Misspelt(GradientTimesInput):
    """Claims an axiom that there is not."""

    axioms: ClassVar[frozenset[str]] = frozenset({"completness"})


@caught_by("is a frozen dataclass of its record's kind")
@dataclass(eq=False)
class Thawed(Explainer):
    """A dataclass that can be changed."""

    scale: float = 1.0

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"])
        return Attribution(self.scale * sample.inputs * seen.gradients["input"])


@caught_by("has a docstring whose first line stands alone")
@dataclass(frozen=True, eq=False)
class Undescribed(GradientTimesInput):
    """computes the input times the gradient, which
    is done by torch"""


# --- evaluators and projectors with one bug each ------------------------------------------------------------------


@caught_by("prefers the planted truth to chance and to its reverse")
@dataclass(frozen=True, eq=False)
class WrongDirection(Flipping):
    """Calls its good scores bad."""

    better: ClassVar[str] = "lower"


@caught_by("prefers the planted truth to chance and to its reverse")
@dataclass(frozen=True, eq=False)
class BlindToSigns(Flipping):
    """Cannot tell an explanation from its reverse."""

    def relevance(self, explanation):
        return explanation.values.abs()


@caught_by(ALONE)
@dataclass(frozen=True, eq=False)
class ScoresTheBatch(Flipping):
    """Every example gets the batch's mean."""

    def scored(self, explanation, values):
        return super().scored(explanation, values.mean().expand_as(values).clone())


@caught_by("names itself, and says which scores are good")
@dataclass(frozen=True, eq=False)
class Nameless(Flipping):
    """Does not say what it is."""

    def scored(self, explanation, values):
        scores = super().scored(explanation, values)
        return replace(scores, rows=(replace(scores.rows[0], metric=""),))


@caught_by("places every point")
@dataclass(frozen=True, eq=False)
class LosesAPoint(Axes):
    """The last point is lost."""

    def placed(self, places):
        return places[:-1]


@caught_by("does not care for the order of the points")
@dataclass(frozen=True, eq=False)
class OrderMatters(Axes):
    """Points drift with their index."""

    def placed(self, places):
        return places + torch.arange(len(places))[:, None].to(places) * 1e-3


@caught_by("places duplicates together")
@dataclass(frozen=True, eq=False)
class DuplicatesApart(Axes):
    """The last point is thrown far away."""

    def placed(self, places):
        return torch.cat([places[:-1], places[-1:] + 5.0])


@caught_by("keeps planted clusters apart")
@dataclass(frozen=True, eq=False)
class Mixed(Axes):
    """Points in another order than they came."""

    def placed(self, places):
        return places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))]


@caught_by("refuses states that are not finite, and what is no list of points")
@dataclass(frozen=True, eq=False)
class TakesAnything(Axes):
    """Zero in place of what is not a number."""

    def checked(self, states):
        return states.nan_to_num()


@caught_by("leaves the states and the random states as they were")
@dataclass(frozen=True, eq=False)
class CentresInPlace(Axes):
    """Centres the user's states."""

    def checked(self, states):
        return super().checked(states).sub_(0.0)
