"""Units of a layer: single channels, or directions among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Layer, LayerError, ParameterError


@dataclass(frozen=True, eq=False)
class Units:
    """Some units of a layer, each with a value at every position.

    Attributes:
        layer: where they are.
        channels: (U,) which channel each unit is, or None where they are directions.
        directions: (U, C) the weights of the channels, or None.
    """

    layer: Layer
    channels: Tensor | None
    directions: Tensor | None

    @classmethod
    def of(cls, layer: Layer, like: Tensor, channels: tuple[int, ...] | None, directions: Any) -> Units:
        """The units that a technique was told, of all channels where it was told none.

        Raises:
            LayerError: when the layer has no such channel.
            ParameterError: when the directions have another number of channels.
        """
        count = cls(layer, None, None).maps(like[:1]).shape[1]
        if directions is not None:
            weights = torch.as_tensor(directions).to(like)
            weights = weights[None] if weights.dim() == 1 else weights
            if weights.shape[1] != count:
                raise ParameterError(
                    f"the directions have {weights.shape[1]} channels; layer '{layer.name}' has {count}"
                )
            return cls(layer, None, weights)
        wrong = [channel for channel in channels or () if channel >= count]
        if wrong:
            raise LayerError(f"layer '{layer.name}' has no channels {wrong}; expected 0 to {count - 1}")
        return cls(layer, torch.tensor(channels or range(count), device=like.device), None)

    @property
    def told(self) -> tuple[Tensor | None, Tensor | None]:
        """What decides over the units' values besides the layer."""
        return self.channels, self.directions

    @property
    def names(self) -> tuple[str, ...]:
        """What each unit is called."""
        if self.channels is None:
            assert self.directions is not None
            return tuple(f"direction {row}" for row in range(len(self.directions)))
        word = "channel" if self.layer.layout else "unit"
        return tuple(f"{word} {channel}" for channel in self.channels.tolist())

    def maps(self, activations: Tensor) -> Tensor:
        """Activations (rows, ...) as (rows, C, positions); a layer without positions has one."""
        values = self.layer.maps(activations) if self.layer.layout else activations.flatten(1)[..., None]
        return values.flatten(2)

    def excited(self, activations: Tensor) -> Tensor:
        """The units' values (rows, U, positions)."""
        maps = self.maps(activations)
        if self.channels is not None:
            return maps[:, self.channels]
        assert self.directions is not None
        return torch.einsum("uc,rcp->rup", self.directions, maps)

    def at(self, activations: Tensor, positions: Tensor) -> Tensor:
        """(rows, U * k) values of units at positions (U, k); a channel of weight zero adds nothing, not even NaN."""
        maps = self.maps(activations)
        if self.channels is not None:
            return maps[:, self.channels[:, None], positions].flatten(1)
        assert self.directions is not None
        weights = self.directions.repeat_interleave(positions.shape[1], dim=0).T
        return (maps[:, :, positions.flatten()] * weights).masked_fill(weights == 0, 0).sum(dim=1)
