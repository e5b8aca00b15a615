"""Weights in the memory format of the inputs: convolutions would reorder them in every pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def _no_steps_of_other_formats() -> Iterator[None]:
    """Refuses `as_strided` of what is not contiguous, as `view` does; the pass then runs with contiguous inputs.

    The steps through memory that a model gives may be those of contiguous tensors, and would read other numbers.
    """
    places: tuple[Any, ...] = (torch, Tensor)
    own = [(place, vars(place).get("as_strided")) for place in places]

    def checked(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def as_strided(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not input.is_contiguous():
                raise RuntimeError("the view size is not compatible with the tensor's strides")
            return function(input, *args, **kwargs)

        return as_strided

    try:
        for place, _ in own:
            place.as_strided = checked(place.as_strided)
        yield
    finally:
        for place, before in own:
            if before is None:
                del place.as_strided
            else:
                place.as_strided = before


class ChannelsLast:
    """Lends the convolutions of a model weights with the channels last, while a pass runs.

    Reordering them takes an eighth of a large network's gradient at batch 1, and copying them here a fifth of that.
    They are copied once in each run, since an older copy could miss a change of the weights; only its memory is kept,
    which takes as long to get as to fill. The parameters stay the same objects throughout.
    """

    def __init__(self, modules: Iterable[nn.Module], cache: dict[Any, Any]) -> None:
        self.convolutions = [part for part in modules if isinstance(part, nn.Conv2d)]
        self._cache = cache
        self._lent: list[tuple[nn.Parameter, Tensor]] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Lends the weights to the block."""
        if self._lent is None:
            self._lent = self._copied()
        own = [(weight, weight.data) for weight, _ in self._lent]
        try:
            for weight, copy in self._lent:
                weight.data = copy
            with _no_steps_of_other_formats():
                yield
        finally:
            for weight, before in own:
                weight.data = before

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """The weights that are to be reordered."""
        return [
            weight
            for weight in dict.fromkeys(part._parameters.get("weight") for part in self.convolutions)
            # Parameters of other types, such as those that are not filled yet, are not ours to exchange.
            if type(weight) is nn.Parameter and not weight.is_inference()
            if not weight.is_contiguous(memory_format=torch.channels_last)
        ]

    @property
    def bytes(self) -> int:
        """How much there is to reorder."""
        return sum(weight.numel() * weight.element_size() for weight in self.weights)

    def _copied(self) -> list[tuple[nn.Parameter, Tensor]]:
        copies = self._memory(self.weights)
        for weight, copy in zip(self.weights, copies, strict=True):
            copy.copy_(weight.detach())
        return list(zip(self.weights, copies, strict=True))

    def _memory(self, weights: Sequence[Tensor]) -> list[Tensor]:
        forms = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        known: list[Tensor] = self._cache.get("reordered", [])
        if forms != [(copy.shape, copy.dtype, copy.device) for copy in known]:
            known = [torch.empty_like(weight, memory_format=torch.channels_last) for weight in weights]
            self._cache["reordered"] = known
        return known
