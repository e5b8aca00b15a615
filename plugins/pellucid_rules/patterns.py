"""Patterns: the direction in which each neuron's inputs carry its signal, estimated from data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pellucid import (
    Explainer,
    Gradient,
    InputError,
    Leaves,
    Look,
    Node,
    ParameterError,
    Part,
    Passes,
    Rule,
    RuleSet,
    Sample,
    Sum,
    each,
    explain,
)

Estimator: TypeAlias = Literal["two_component", "linear"]


@dataclass(frozen=True, eq=False, repr=False)
class Patterns:
    """The patterns a of a model's weighted ops: an input that holds a neuron's signal y is y a and a distractor.

    Attributes:
        directions: by the op's name in the model's graph, a tensor of its weight's shape.
        shapes: the shape of one example of the data, for each input of the model.
        silent: how many neurons had no data, being constant or never active; their patterns are zero.
        estimator: what they were estimated by.
    """

    directions: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    silent: int
    estimator: Estimator

    @classmethod
    def fit(cls, model: Any, data: Any, estimator: Estimator = "two_component", **options: Any) -> Patterns:
        """Fits patterns to keep, in one pass over the data.

        Args:
            model: anything that `pellucid.adapt` takes.
            data: (N, ...) typical inputs, as `pellucid.explain` takes them; some hundreds are few.
            estimator: see `PatternNet`.
            options: of `pellucid.explain`, such as `batch_size`.
        """
        fitted: Patterns = explain(model, data, _Fit(estimator), 0, **options)
        return fitted

    def check(self, inputs: Any) -> None:
        """Refuses inputs of another shape than the data's.

        Raises:
            InputError: with both shapes.
        """
        if (found := shapes_of(inputs)) != self.shapes:
            raise InputError(
                f"the patterns were fitted on data of shape {_told(self.shapes)}; the inputs have {_told(found)}. Fit "
                "them on data like the inputs"
            )

    def of(self, node: Node) -> Tensor:
        """The pattern of an op's weight.

        Raises:
            ParameterError: when the model is not the one that the patterns were fitted on.
        """
        pattern = self.directions.get(node.name)
        if pattern is None or node.weight is None or pattern.shape != node.weight.shape:
            raise ParameterError(
                f"the patterns have none for '{node.op}' of layer '{node.layer}'; they were fitted on another model. "
                "Fit them on this one: Patterns.fit(model, data)"
            )
        return pattern.to(node.weight)

    def __repr__(self) -> str:
        return f"Patterns({len(self.directions)} ops, fitted on {_told(self.shapes)}, estimator='{self.estimator}')"


def shapes_of(inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shape of one example of each input."""
    named = inputs if isinstance(inputs, Leaves) else {"input": inputs}
    return {name: tuple(leaf.shape[1:]) for name, leaf in named.items()}


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes.values()))


def fitting(sample: Sample, data: Any, estimator: Estimator) -> Passes[Patterns]:
    """Fits patterns on data (N, ...) that are shown to the sample's model; nothing of the data is kept.

    Raises:
        InputError: if the data do not have the inputs' shape, or are fewer than two.
    """
    data = each(lambda leaf, given: torch.as_tensor(given).to(leaf), sample.inputs, data)
    if (found := shapes_of(data)) != shapes_of(sample.inputs):
        raise InputError(
            f"the data to fit patterns on have shape {_told(found)}; the inputs have {_told(shapes_of(sample.inputs))}"
        )
    count = min(len(leaf) for leaf in (data.values() if isinstance(data, Leaves) else [data]))
    if count < 2:
        raise InputError(f"patterns were asked to be fitted on {count} examples; expected at least 2, better hundreds")
    statistics = Statistics(estimator)

    def count_in(part: Part) -> Tensor:
        statistics.commit()
        return torch.zeros(len(part.draws))

    yield Look(
        at=sample[:1].derived(count, lambda _, draws, examples: each(lambda leaf: leaf[draws], data)),
        gradients=["input"],
        rules=RuleSet(
            "patterns' statistics",
            {"weighted": _Observe(statistics), "activation": _Notice(statistics), "*": Gradient()},
            canonizers=("batch_norm",),
            fills=False,
        ),
        fold=Sum(count_in),
    )
    return statistics.patterns(shapes_of(data))


@dataclass(frozen=True, eq=False)
class _Fit(Explainer):
    """Returns patterns fitted on the inputs themselves."""

    estimator: Estimator

    def explain(self, sample: Sample) -> Any:
        """One rule pass over all inputs."""
        return fitting(sample, sample.inputs, self.estimator)


@dataclass
class _Sums:
    """Sums over rows and positions in the regime of one op's neurons, (outputs, ...), in double precision.

    Attributes:
        weight: the op's weight.
        count: how often each neuron was in its regime.
        x: the inputs of each weight.
        xy: the same times the neuron's output.
        y: the outputs, whatever the regime.
        total: how many outputs each neuron had.
    """

    weight: Tensor
    count: Tensor
    x: Tensor
    xy: Tensor
    y: Tensor
    total: int

    def add(self, other: _Sums) -> None:
        """Takes in the sums of other rows."""
        for name in ("count", "x", "xy", "y", "total"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(eq=False)
class Statistics:
    """What is gathered of each op while data stream by.

    A pass may stop midway and come again with fewer rows, so that its sums count only once it is done.
    """

    estimator: Estimator
    done: dict[str, _Sums] = field(default_factory=dict)
    pending: dict[str, _Sums] = field(default_factory=dict)
    rectified: set[str] = field(default_factory=set)

    def take(self, node: Node, sums: _Sums) -> None:
        """Keeps an op's sums until the pass is done."""
        if node.name in self.pending:  # the pass began anew
            self.pending.clear()
        self.pending[node.name] = sums

    def commit(self) -> None:
        """Counts what is pending."""
        for name, sums in self.pending.items():
            if name in self.done:
                self.done[name].add(sums)
            else:
                self.done[name] = sums
        self.pending.clear()

    def patterns(self, shapes: Mapping[str, tuple[int, ...]]) -> Patterns:
        """The patterns of all that was gathered.

        a = (E[x y] - E[x] E[y]) / w^T (E[x y] - E[x] E[y]), where the means of x and x y are over the neuron's regime.
        """
        directions, silent = {}, 0
        for name, sums in self.done.items():
            broad = (-1, *(1,) * (sums.weight.dim() - 1))
            count = sums.count.reshape(broad)
            seen = count.clamp_min(1)
            covariance = (sums.xy - sums.x * (sums.y / sums.total).reshape(broad)) / seen
            # What is left of a constant neuron is the rounding of what was subtracted.
            noise = (sums.xy.abs() / seen * sums.weight.abs()).flatten(1).sum(dim=1).reshape(broad)
            variance = (sums.weight * covariance).flatten(1).sum(dim=1).reshape(broad)
            alive = variance.abs() > 1e-6 * noise
            silent += int((~alive).sum())
            directions[name] = torch.where(alive, covariance / variance.where(alive, 1.0), 0.0)
        return Patterns(directions, shapes, silent, self.estimator)


@dataclass(frozen=True, eq=False)
class _Observe(Rule):
    """The gradient; on the way, gathers a weighted op's statistics, as gradients by its weight."""

    statistics: Statistics

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None]:
        """The sum over rows and positions of x g is the gradient by the weight of what g is carried to."""
        assert node.weight is not None
        rectified = self.statistics.estimator == "two_component" and node.name in self.statistics.rectified
        with torch.enable_grad():
            weight = node.weight.detach().requires_grad_()
            outputs = node(*node.inputs, weight=weight, bias=False)
        signal = outputs.detach()
        regime = (node.output > 0).to(signal) if rectified else torch.ones_like(signal)
        (x,) = torch.autograd.grad(outputs, weight, regime, retain_graph=True)
        (xy,) = torch.autograd.grad(outputs, weight, regime * signal)
        axis = 1 if node.op == "convolution" else -1
        count, y = (value.double().movedim(axis, 0).flatten(1).sum(dim=1) for value in (regime, signal))
        total = signal.numel() // signal.shape[axis]
        self.statistics.take(node, _Sums(weight.detach().double(), count, x.double(), xy.double(), y, total))
        return node.vjp(carried)


@dataclass(frozen=True, eq=False)
class _Notice(Rule):
    """The gradient; on the way, notes which weighted op an activation is fed by."""

    statistics: Statistics

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor | None]:
        """Activations come before what feeds them."""
        source = node.sources[0]
        while source is not None and source.kind == "move":
            source = source.sources[0]
        if source is not None and source.kind == "weighted":
            self.statistics.rectified.add(source.name)
        return node.vjp(carried)
