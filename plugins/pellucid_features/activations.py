"""A layer's activations."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid import Attribution, Explainer, Look, Passes, Sample


@dataclass(frozen=True, eq=False)
class Activations(Explainer):
    """Gives a layer's activations as they are.

    The values are (B, ...) in the layer's own layout: (B, C, h, w) for maps, (B, n, C) for tokens. They do not
    depend on the target.

    Attributes:
        layer: the layer; "auto" is the last map of positions before the head.
        pooled: whether all positions are averaged to one vector (B, C); tokens before the grid, such as the class
            token, are left out of the mean.
    """

    layer: str = "auto"
    pooled: bool = False

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Yields one look."""
        seen = yield Look(at=sample, activations=[self.layer])
        values = seen.maps(self.layer).mean(dim=(2, 3)) if self.pooled else seen.activations[self.layer]
        return Attribution(values, over=self.layer)
