"""Where a result comes from: technique, model, inputs, cost; and what it explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Meta:
    """A result's provenance. Everything has a default: a technique says what only it knows, the core fills in the rest.

    Attributes:
        technique: its name in the registry.
        parameters: its parameters, of JSON's types.
        provider: the distribution that it comes from.
        version: the distribution's version.
        layer: the layer that was chosen, or None.
        seed: what every random draw depended on.
        passes: the passes that it used, in units of an example, such as `{"forward": 51.0, "backward": 50.0}`.
        shared: whether it shared passes with other techniques, or with which.
        seconds: the wall-clock time of the run.
        model: the model's name.
        model_hash: a digest of the model's parameters and buffers.
        input_hash: a digest of the inputs.
        categories: the names of all of the model's classes in order, if known.
        pellucid_version: the version of Pellucid.
        torch_version: the version of PyTorch.
        created: when, as an ISO 8601 time.
        mean: the mean that photos were normalised with, for each channel; plots undo it.
        std: the standard deviation that they were normalised with.
        notes: what adapting or optimising the model did.
    """

    technique: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    provider: str = ""
    version: str = ""
    layer: str | None = None
    seed: int | None = None
    passes: Mapping[str, float] = field(default_factory=dict)
    shared: bool | str = False
    seconds: float | None = None
    model: str = ""
    model_hash: str = ""
    input_hash: str = ""
    categories: tuple[str, ...] | None = field(default=None, repr=False)
    pellucid_version: str = ""
    torch_version: str = ""
    created: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def category(self, index: int) -> str | None:
        """The name of a class, or None where it is not known."""
        known = self.categories is not None and 0 <= index < len(self.categories)
        return self.categories[index] if known and self.categories is not None else None


@dataclass(frozen=True, eq=False)
class TargetRecord:
    """What was explained, as a saved result keeps it.

    Attributes:
        description: what the target says of itself, of JSON's types.
        classes: (B,) the class of each example, where the target is a class.
    """

    description: Any = None
    classes: Tensor | None = None

    def pick(self, places: Tensor, examples: int) -> TargetRecord:
        """The record for some of the examples."""
        described = self.description
        if isinstance(described, (list, tuple)) and len(described) == examples:
            described = [described[place] for place in places.tolist()]
        if self.classes is None or self.classes.shape[:1] != (examples,):
            return replace(self, description=described)
        return replace(self, description=described, classes=self.classes[places.to(self.classes.device)])

    def __str__(self) -> str:
        if self.classes is None or not self.classes.numel() or self.classes.is_meta:
            return str(self.description)
        shown = self.classes.reshape(-1).tolist()
        listed = ", ".join(map(str, shown[:6])) + (", …" if len(shown) > 6 else "")
        how = f" ({self.description})" if isinstance(self.description, str) else ""
        return f"class {listed}{how}" if len(set(shown)) > 1 or len(shown) == 1 else f"class {shown[0]}{how}"
