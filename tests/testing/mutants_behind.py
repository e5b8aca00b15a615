"""Explainers that reach around the protocol, each by one seeded bug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pellucid import Attribution, Look, together

from .correct import ALONE, BEHIND, TWICE, USES, GradientTimesInput, Noisy, Path, caught_by


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
