"""What most class activation maps share: a layer's maps, weighted and summed over the channels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pellucid import Attribution, Explainer, Look, Passes, Sample


@dataclass(frozen=True, eq=False)
class WeightedMaps(Explainer):
    """A class activation map whose weights come from the target's gradient by the maps.

    Attributes:
        layer: the layer whose maps are weighted; `"auto"` is the last one with positions before the head.
        relu: whether only what speaks for the target is kept.
    """

    layer: str = "auto"
    relu: bool = True

    axioms: ClassVar[frozenset[str]] = frozenset({"implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """With and without the ReLU."""
        return [cls(), cls(relu=False)]

    @abstractmethod
    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """The weight of each channel, (B, C, 1, 1), or of each of its positions, (B, C, h, w).

        Args:
            maps: the layer's activations, (B, C, h, w).
            slopes: the target's gradient by them, (B, C, h, w).
        """

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One forward and one backward pass; the latter only through the layers behind the maps."""
        seen = yield Look(at=sample, activations=[self.layer], gradients=[self.layer])
        maps, slopes = seen.maps(self.layer), seen.map_gradients(self.layer)
        values = (self.weights(maps, slopes) * maps).sum(dim=1)
        return Attribution(values.relu() if self.relu else values, over=self.layer)
