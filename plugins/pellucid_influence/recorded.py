"""A training run as a chain of steps that can be differentiated, from its end back to its first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from pellucid import Blocks, Trainer, Unsuitable, digest
from pellucid_influence.progress import Progress

CHUNK = 32
"""How many queries are carried back together: each takes the memory of a training step's graph."""

State = list[Tensor]
"""Parameters, then the optimizer's averages: one for SGD with momentum, two for Adam."""


class Recorded:
    """One run of a trainer, with the states at about the square root of its steps; the others are made again.

    Args:
        trainer: the recipe and the training data.
        seed: the run's.
        blocks: where the states, and how far the way back has come, are kept and taken from.

    Attributes:
        weights: the parameters and buffers in the end, by name.
    """

    def __init__(self, trainer: Trainer, seed: int, blocks: Blocks) -> None:
        self.trainer, self._blocks = trainer, blocks
        self.model = trainer.model(seed).train()
        trained = trainer.trained(self.model)
        self.names = list(trained)
        self.batches = list(trainer.batches(seed))
        self.stride = max(1, math.isqrt(len(self.batches)))
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        state = [parameter.detach().clone() for parameter in trained.values()]
        slots = {"adam": 2, "sgd": int(trainer.momentum != 0)}[trainer.optimizer]
        state += [torch.zeros_like(parameter) for _ in range(slots) for parameter in state]
        every = torch.ones(len(trainer), dtype=torch.bool)
        self._key = trainer.digest(self.model, every, seed) if blocks else ""
        self._kept: list[tuple[State, Tensor]] = []
        with _training():
            torch.manual_seed(seed)
            for start in range(0, len(self.batches), self.stride):
                self._kept.append((state, torch.get_rng_state()))
                state = self._stretch(state, start, buffers)
        with torch.no_grad():
            for parameter, value in zip(trained.values(), state, strict=False):
                parameter.copy_(value)
        self.weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _stretch(self, state: State, start: int, buffers: Sequence[Tensor]) -> State:
        """The state at the end of a stretch, as it was kept or by its steps, and torch's random state then."""
        key = digest(self._key, start, self.stride) if self._blocks else ""
        if (known := self._blocks.found(key)) is not None:
            torch.set_rng_state(known["random"])
            return [known[str(place)].to(one.device) for place, one in enumerate(state)]
        for number in range(start, min(start + self.stride, len(self.batches))):
            state = self._step(state, number)
        for before, after in zip(buffers, self.model.buffers(), strict=True):
            if after.is_floating_point() and not torch.equal(before, after):
                raise Unsuitable(
                    "training changes the model's buffers, such as BatchNorm's statistics, through which no derivative "
                    "goes; expected a model without them, such as one with GroupNorm"
                )
        random = torch.get_rng_state()
        self._blocks.keep(key, {"random": random, **{str(place): one for place, one in enumerate(state)}})
        return state

    def derivative(self, gradients: Sequence[Tensor]) -> Tensor:
        """The derivatives of scores of the trained model by the weight of each example in the training, (Q, N).

        In a step an example counts with its weight in the weighted mean of the batch's losses; all weights are one.

        Args:
            gradients: (Q, ...) those of the scores by the trained parameters, in the order of `names`.
        """
        trainer, count = self.trainer, len(gradients[0])
        found = gradients[0].new_zeros(count, len(trainer))
        carried = [gradient.clone() for gradient in gradients]
        for _ in range(len(self._kept[0][0]) // len(self.names) - 1) if self._kept else ():
            carried += [torch.zeros_like(gradient) for gradient in gradients]
        key = digest(self._key, self.stride, "back", list(gradients)) if self._blocks else ""
        state = {"found": found, **{str(place): one for place, one in enumerate(carried)}}
        progress, count = Progress(self._blocks, key, state), len(self._kept)
        with _training():
            for place in reversed(range(count - progress.done)):
                after = carried
                for number, before, random in reversed(self._again(place)):
                    torch.set_rng_state(random)
                    *after, weights = self._back(before, number, after)
                    found[:, self.batches[number]] += weights
                for one, other in zip(carried, after, strict=True):
                    one.copy_(other)
                progress.reached(count - place, finished=place == 0)
        return found

    def _again(self, place: int) -> list[tuple[int, State, Tensor]]:
        """The number, the state before, and the random state of each step of a stretch between two that are kept."""
        state, random = self._kept[place]
        torch.set_rng_state(random)
        steps = []
        for number in range(place * self.stride, min((place + 1) * self.stride, len(self.batches))):
            steps.append((number, state, torch.get_rng_state()))
            state = self._step(state, number)
        return steps

    def _back(self, state: State, number: int, carried: Sequence[Tensor]) -> list[Tensor]:
        """The derivatives by the state before a step and by its examples' weights, from those by the state after."""
        before = [one.detach().requires_grad_() for one in state]
        weights = torch.ones(len(self.batches[number])).to(state[0]).requires_grad_()
        after = self._after(before, weights, number)
        parts = [
            torch.autograd.grad(
                after,
                [*before, weights],
                [one[start : start + CHUNK] for one in carried],
                is_grads_batched=True,
                retain_graph=True,
            )
            for start in range(0, len(carried[0]), CHUNK)
        ]
        return [torch.cat(several) for several in zip(*parts, strict=True)]

    def _step(self, state: State, number: int) -> State:
        weights = torch.ones(len(self.batches[number])).to(state[0])
        after = self._after([one.detach().requires_grad_() for one in state], weights, number)
        return [one.detach() for one in after]

    def _after(self, state: State, weights: Tensor, number: int) -> State:
        """One step of the optimizer, as torch's own take it."""
        trainer, places = self.trainer, self.batches[number]
        count = len(self.names)
        parameters, averages = state[:count], state[count:]
        outputs = functional_call(self.model, dict(zip(self.names, parameters, strict=True)), trainer.inputs[places])
        loss = (weights * trainer.losses(outputs, trainer.labels[places])).sum() / weights.sum()
        if trainer.weight_decay:
            loss = loss + 0.5 * trainer.weight_decay * torch.stack([one.square().sum() for one in parameters]).sum()
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        rate, moved = trainer.learning_rate, list(slopes)
        if trainer.optimizer == "adam":
            first = [0.9 * mean + 0.1 * slope for mean, slope in zip(averages[:count], slopes, strict=True)]
            second = [0.999 * mean + 0.001 * slope**2 for mean, slope in zip(averages[count:], slopes, strict=True)]
            root = (1 - 0.999 ** (number + 1)) ** 0.5
            moved = [one / (_root(two) / root + 1e-8) for one, two in zip(first, second, strict=True)]
            rate, averages = rate / (1 - 0.9 ** (number + 1)), first + second
        elif averages:
            moved = averages = [trainer.momentum * mean + slope for mean, slope in zip(averages, slopes, strict=True)]
        return [one - rate * by for one, by in zip(parameters, moved, strict=True)] + averages


def _root(values: Tensor) -> Tensor:
    """The square root, with a derivative of zero at zero, where an idle parameter stays."""
    idle = values == 0
    return values.masked_fill(idle, 1).sqrt().masked_fill(idle, 0)


@contextmanager
def _training() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        yield
