"""A recipe by which techniques train a model anew: without an example, on part of the data, from another seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import InputError, ParameterError
from pellucid.protocol.blocks import Blocks, digest, settings


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains models of one kind on parts of one data set.

    Every training starts from the weights that `make` gives under the seed; what the seed decides besides is the order
    of the examples. An example that is left out keeps its place in that order, so that trainings with and without it
    are as alike as they can be.

    Attributes:
        make: makes a new model, drawing its weights from torch's random state. Of its parameters those are trained that
            require gradients, or all where none does, as in a copy of the model that is being explained.
        inputs: (N, ...).
        labels: (N,) class indices (cross-entropy), or values of a floating type (squared error).
        optimizer: `"sgd"`, `"adam"`, or `"lbfgs"` for convex problems, which runs on all examples until it converges.
        learning_rate: the step.
        momentum: that of SGD.
        weight_decay: lambda of lambda/2 times the squared norm of the parameters, added to the mean loss.
        epochs: passes over the data.
        batch_size: examples in one step.
        folder: where finished trainings are kept, so that a run of many that was interrupted goes on where it stood;
            None trains anew. A training is found again where the first weights, the model's structure, the data, the
            kept examples, the seed and the settings above are the same; the code of `make`'s model is not compared.
    """

    make: Callable[[], nn.Module]
    inputs: Tensor
    labels: Tensor
    optimizer: Literal["sgd", "adam", "lbfgs"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 10
    batch_size: int = 64
    folder: str | Path | None = None
    _latest: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam", "lbfgs"):
            raise ParameterError(f"optimizer={self.optimizer!r}; expected 'sgd', 'adam' or 'lbfgs'")
        if len(self.inputs) != len(self.labels) or len(self.inputs) == 0:
            raise InputError(
                f"the trainer has {len(self.inputs)} inputs and {len(self.labels)} labels; expected as many of both"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels, as techniques take them."""
        return self.inputs, self.labels

    def model(self, seed: int) -> nn.Module:
        """The model before its training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of a new model that are trained, by name; they require gradients from now on."""
        named = dict(model.named_parameters())
        chosen = {name: one for name, one in named.items() if one.requires_grad} or named
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def batches(self, seed: int) -> Iterator[Tensor]:
        """The places of the examples of each step."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(self), generator=generator)
            yield from torch.split(order, self.batch_size)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example.

        Raises:
            InputError: when a label is no class of the model.
        """
        if not labels.is_floating_point() and labels.numel() and int(labels.max()) >= outputs.shape[1]:
            raise InputError(
                f"a training label is {int(labels.max())}; the model has {outputs.shape[1]} classes, 0 to "
                f"{outputs.shape[1] - 1}"
            )
        if labels.is_floating_point():
            return (outputs.reshape(labels.shape) - labels).square().reshape(len(labels), -1).sum(dim=1)
        return F.cross_entropy(outputs, labels, reduction="none")

    def weights(self, kept: Tensor | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Trains a model and returns its parameters and buffers.

        The latest training is found again in memory: influences that are scored together ask for the same ones in turn.

        Args:
            kept: (N,) which examples count, as bools; None is all.
            seed: what the first weights and the order depend on.
        """
        kept = torch.ones(len(self), dtype=torch.bool) if kept is None else kept
        if kept.shape != (len(self),) or not bool(kept.any()):
            raise InputError(
                f"kept has shape {tuple(kept.shape)}; expected ({len(self)},) bools, at least one of them true"
            )
        model = self.model(seed).train()
        blocks = Blocks(self.folder)
        key = self.digest(model, kept, seed)
        known = self._latest.get(key) or blocks.found(key)
        if known is not None:
            return {name: known[name].to(tensor.device, copy=True) for name, tensor in model.state_dict().items()}
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            self._fit(model, kept, seed)
        trained = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        blocks.keep(key, trained)
        self._latest.clear()
        self._latest[key] = {name: tensor.clone() for name, tensor in trained.items()}
        return trained

    def digest(self, model: nn.Module, kept: Tensor, seed: int) -> str:
        """A digest of all that a training depends on.

        Args:
            model: with its first weights.
            kept: (N,) which examples count, as bools.
            seed: what the order depends on.
        """
        recipe = (self.optimizer, self.learning_rate, self.momentum, self.weight_decay, self.epochs, self.batch_size)
        kind = type(self).__qualname__
        known = repr(model), settings(model), list(self.trained(model)), model.state_dict()
        return digest(kind, recipe, seed, kept, self.inputs, self.labels, *known)

    def _fit(self, model: nn.Module, kept: Tensor, seed: int) -> None:
        parameters = list(self.trained(model).values())

        def loss(places: Tensor) -> Tensor:
            mean = self.losses(model(self.inputs[places]), self.labels[places]).mean()
            decay = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
            return mean + 0.5 * self.weight_decay * decay if self.weight_decay else mean

        if self.optimizer == "lbfgs":
            every = kept.nonzero()[:, 0]
            solver = torch.optim.LBFGS(
                parameters, max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
            )

            def closure() -> Any:
                solver.zero_grad()
                value = loss(every)
                value.backward()  # type: ignore[no-untyped-call]
                return value

            solver.step(closure)  # type: ignore[no-untyped-call]
            return
        stepper: torch.optim.Optimizer
        if self.optimizer == "adam":
            stepper = torch.optim.Adam(parameters, lr=self.learning_rate)
        else:
            stepper = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)
        for places in self.batches(seed):
            places = places[kept[places]]
            if len(places):
                stepper.zero_grad()
                loss(places).backward()  # type: ignore[no-untyped-call]
                stepper.step()
