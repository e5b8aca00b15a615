"""Adapters: what the engine asks of a model, whatever the model is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pellucid.errors import ModelError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from pellucid.protocol.sample import Prepared

DIFFERENTIABLE = frozenset({"outputs", "activations", "gradients", "factors", "rules"})


@dataclass(eq=False)
class Adapter:
    """A model as the engine sees it: a module, which part of its output counts, and how its inputs look.

    A foreign model (a scikit-learn estimator, any callable) is wrapped into a module and offers outputs only.

    Attributes:
        module: the model.
        name: what results call the model.
        offers: what techniques may ask of it, words of `Technique.uses`.
        output: where the scores are in what the model returns: a key, an attribute, an index or a callable. None finds
            them: the tensor itself, `logits`, `out`, the only tensor, or the first of a tuple.
        categories: the names of the classes.
        transform: makes one input (C, H, W) of a photo.
        mean: the channel means that inputs are normalised with.
        std: the channel standard deviations that inputs are normalised with.
        feature_names: the names of the features of a model of tables (B, features).
        prepare: makes of what a user gives, such as texts, what is attributed to; None for what it leaves as it is.
        layer: the layer that "auto" means, where it is known better than by shapes.
        notes: what adapting the model did, shown with every result.
        optimize: whether runs are made on a copy that is rewritten for speed.
        cache: what the engine has learnt of the model, such as its layers; it is the engine's alone.
    """

    module: nn.Module
    name: str = ""
    offers: frozenset[str] = DIFFERENTIABLE
    output: str | int | Callable[[Any], Tensor] | None = None
    categories: Sequence[str] | None = None
    transform: Callable[[Image], Tensor] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    feature_names: Sequence[str] | None = None
    prepare: Callable[[Any], Prepared | None] | None = None
    layer: str | None = None
    notes: tuple[str, ...] = ()
    optimize: bool = False
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            self.name = type(self.module).__name__

    def logits(self, raw: Any) -> Tensor:
        """Picks the scores (B, classes, ...) out of what the model returned.

        Raises:
            ModelError: when they cannot be found; the message lists what is there.
        """
        found = self._find(raw)
        if not isinstance(found, Tensor):
            raise ModelError(
                f"the model's scores are of type {type(found).__name__}; expected a tensor (B, classes, ...)"
            )
        return found

    def _find(self, raw: Any) -> Any:
        if callable(self.output):
            return self.output(raw)
        if isinstance(self.output, int):
            return raw[self.output]
        named = _named(raw)
        if self.output is not None:
            if self.output not in named:
                raise ModelError(
                    f"the model's output has no part '{self.output}'; it has {sorted(named)}."
                    f"{nearest(self.output, named)}"
                )
            return named[self.output]
        if isinstance(raw, Tensor):
            return raw
        for name in ("logits", "out"):
            if name in named:
                return named[name]
        tensors = [part for part in (named.values() if named else _listed(raw)) if isinstance(part, Tensor)]
        if len(tensors) == 1 or (tensors and not named):
            return tensors[0]
        raise ModelError(
            f"the model returns a {type(raw).__name__}{f' with {sorted(named)}' if named else ''}, and which part "
            "holds the scores is not clear; say it with pellucid.adapt(model, output=...): a key, an index, or a "
            "function of what the model returns"
        )

    def pictures(self, inputs: Tensor) -> Tensor:
        """Turns inputs (B, C, H, W) back into photos (B, H, W, 3) of bytes, for display.

        Where the normalisation is not known, values within [0, 1] are taken as they are, and others are stretched from
        the least to the greatest of each photo.
        """
        shown = inputs.detach().float().cpu()
        if self.mean is not None and self.std is not None and len(self.mean) == shown.shape[1]:
            mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
            shown = shown * std + mean
        elif shown.amin() < 0 or shown.amax() > 1:
            low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
            shown = (shown - low) / (high - low).clamp_min(1e-12)
        if shown.shape[1] != 3:
            shown = shown.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return (shown.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


def _named(raw: Any) -> dict[str, Any]:
    """The named parts of an output: a mapping, a named tuple or a dataclass."""
    if isinstance(raw, Mapping):
        return {str(key): value for key, value in raw.items() if value is not None}
    if hasattr(raw, "_asdict"):
        return {key: value for key, value in raw._asdict().items() if value is not None}
    if hasattr(raw, "__dataclass_fields__"):
        return {key: getattr(raw, key) for key in raw.__dataclass_fields__ if getattr(raw, key) is not None}
    return {}


def _listed(raw: Any) -> list[Any]:
    return list(raw) if isinstance(raw, (list, tuple)) else []
