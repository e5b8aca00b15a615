"""Looks: what a technique asks of the model, and what it is sent back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.errors import LayerError, ProtocolError
from pellucid.protocol.fold import Fold
from pellucid.protocol.target import Target

if TYPE_CHECKING:
    from pellucid.protocol.derived import Derived
    from pellucid.protocol.sample import Sample
    from pellucid.rules.ledger import Ledger
    from pellucid.rules.rule import RuleSet


@dataclass(frozen=True)
class Layer:
    """A place in the model, found: what its output is and how its positions lie.

    Attributes:
        name: the module's name (`"layer4"`), with `":k"` for the k-th call of a reused module, or, for the result of a
            function that is no module, the module that calls it, a slash and the function's (`"/relu:2"`).
        shape: the output's shape for one example, without the batch axis.
        layout: `"channels_first"` (C, h, w), `"channels_last"` (h, w, C), `"tokens"` (prefix + h x w, C), or `""` where
            the output has no spatial positions.
        grid: (h, w), or () without positions.
        prefix: how many tokens, such as the class token, stand before the grid.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = ""
    grid: tuple[int, ...] = ()
    prefix: int = 0

    @property
    def channels(self) -> int:
        """How many channels a map of positions has, 0 where there is none."""
        return {"channels_first": self.shape[0], "": 0}.get(self.layout, self.shape[-1]) if self.shape else 0

    def maps(self, values: Tensor) -> Tensor:
        """Views values (..., *shape) of the layer as maps (..., C, h, w); prefix tokens are left out.

        Raises:
            LayerError: when the layer has no spatial positions.
        """
        if not self.layout:
            raise LayerError(
                f"layer '{self.name}' gives {self.shape} for each example, which has no map of positions; choose a "
                "layer with maps (B, C, h, w), (B, h, w, C) or tokens (B, n, C), or layer='auto'"
            )
        if self.layout == "channels_first":
            return values
        if self.layout == "channels_last":
            return torch.movedim(values, -1, -3)
        grid = values[..., self.prefix :, :].transpose(-1, -2)
        return grid.reshape(*grid.shape[:-1], *self.grid)


@dataclass(frozen=True, eq=False)
class Look:
    """One thing that a technique asks of the model.

    Attributes:
        at: the sample, or a sample derived from it, that the model is shown.
        outputs: whether the model's output is wanted.
        activations: names of layers whose outputs are wanted.
        gradients: names of layers, or `"input"`, by which the target's gradient is wanted.
        targets: several targets in place of the sample's: scores and gradients then have a further first axis.
        fold: how the derived axis is reduced as it streams by; None keeps it, in memory.
        factors: names of parameters, with wildcards (`"*"`, `"layer4.*"`), by which the target's gradient is wanted,
            for each example; at plain samples only.
        weights: parameters and buffers, by name, that stand for the model's own: those of a checkpoint, or of the same
            model trained otherwise. The predicted class stays the model's own.
        rules: the rules by which what is asked as gradients is carried back; None is the gradient itself.
        reference: for rules that compare with one: a sample of as many examples, or one derived like `at`.
        digest: whether a digest of the model is wanted, by which what was computed before is known to be still right.
    """

    at: Sample | Derived
    outputs: bool = False
    activations: Sequence[str] = ()
    gradients: Sequence[str] = ()
    targets: Sequence[Target] | None = None
    fold: Fold | None = None
    factors: Sequence[str] = ()
    weights: Mapping[str, Tensor] | None = None
    rules: RuleSet | None = None
    reference: Sample | Derived | None = None
    digest: bool = False

    @property
    def asks(self) -> frozenset[str]:
        """The words of a technique's `uses` that the look needs."""
        words = {"outputs"}
        if self.activations or any(target.layers for target in self.targets or ()):
            words.add("activations")
        if self.gradients:
            words.add("gradients")
        if self.factors or self.weights is not None:
            words.add("factors")
        if self.rules is not None:
            words.add("rules")
        return frozenset(words)


class Asked(dict[str, Any]):
    """What was seen by the names that the look gave."""

    def __missing__(self, name: str) -> Any:
        asked = ", ".join(map(repr, self)) or "nothing"
        raise ProtocolError(f"the look did not ask for {name!r} here; it asked for {asked}")


@dataclass(frozen=True, eq=False)
class Seen:
    """What the engine sends back for a look.

    For a derived sample every value has the derived axis first, (n, B, ...), unless the look's fold took it away.

    Attributes:
        scores: the target's score, (B,) or (n, B); with several targets (T, B) or (T, n, B). Never folded.
        outputs: what the model returned, or None where it was not asked.
        activations: the layers' outputs by the names that the look gave.
        gradients: the target's gradients by the names that the look gave; `"input"` has the inputs' form.
        layers: the layers found, by the names that the look gave (`"auto"` among them).
        spread: the variances that the fold `Moments` gives: `spread["gradients"]["input"]` and so on.
        folded: what the fold `Sum` gives.
        classes: (B,) the class that each example is explained for, where the target is one.
        factors: each example's gradient by the parameters; with several targets a tuple of them.
        ledger: what was carried at every node, where the look had rules.
        reference_scores: the target's scores at the look's reference, of the same form as `scores`.
        digest: of the model's structure, of the numbers, texts and tensors that its modules keep, and of all its
            parameters and buffers, or of those that the look lent it; "" where it was not asked.
    """

    scores: Tensor
    outputs: Any = None
    activations: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    spread: Any = None
    folded: Any = None
    classes: Tensor | None = None
    factors: Any = None
    ledger: Ledger | None = None
    reference_scores: Tensor | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        for part in ("activations", "gradients", "layers"):
            object.__setattr__(self, part, Asked(getattr(self, part)))

    def maps(self, layer: str) -> Tensor:
        """A layer's activations as maps (B, C, h, w), whatever the layout: channels first or last, or tokens.

        Raises:
            LayerError: when the layer has no spatial positions.
        """
        return self.layers[layer].maps(self.activations[layer])

    def map_gradients(self, layer: str) -> Tensor:
        """The target's gradient by a layer, as maps (B, C, h, w).

        Raises:
            LayerError: when the layer has no spatial positions.
        """
        return self.layers[layer].maps(self.gradients[layer])


@dataclass(frozen=True, eq=False)
class Looks(Look):
    """Several looks at once: what `together` yields.

    Attributes:
        parts: the looks, which may be `Looks` themselves.
    """

    parts: tuple[Look, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ProtocolError("there is nothing to look at: `Looks` without parts")

    @property
    def asks(self) -> frozenset[str]:
        """All that the parts need."""
        return frozenset().union(*(part.asks for part in self.parts))


@dataclass(frozen=True, eq=False)
class SeenTogether(Seen):
    """What the engine sends back for several looks at once.

    Attributes:
        parts: a `Seen` for each look.
    """

    parts: tuple[Seen, ...] = ()
