"""Samples made lazily from another: paths, noise, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pellucid.errors import ParameterError, ProtocolError
from pellucid.protocol.leaves import Leaves, each, per_example, tensors_of
from pellucid.protocol.sample import Sample

Make: TypeAlias = Callable[[Any, Tensor, Tensor], Any]
"""Rows of the inputs (rows, ...), draws (rows,), examples (rows,) -> what the model is shown (rows, ...)."""


@dataclass(frozen=True, eq=False)
class Derived:
    """`n` draws of every example of a sample, made when the engine shows them to the model.

    Row `draw * B + example` is made by `make` from the example's row, so that the memory of one batch is enough for any
    number of draws.

    Attributes:
        sample: what it is derived from.
        n: draws of every example.
        make: see `Make`.
        key: parameters by which two derived samples are known to be the same, or None.
    """

    sample: Sample
    n: int
    make: Make
    key: Any = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ParameterError(f"a derived sample has {self.n} draws; expected at least 1")

    def __len__(self) -> int:
        return self.n * len(self.sample)

    def rows(self, draws: Tensor, examples: Tensor) -> Any:
        """Makes the given rows.

        Raises:
            ProtocolError: when `make` changes the inputs in place, or makes another number of rows.
        """
        given = each(lambda leaf: _rows(leaf, examples), self.sample.inputs)
        before = [leaf._version for leaf in tensors_of(given)]
        made = self.make(given, draws, examples)
        if before != [leaf._version for leaf in tensors_of(given)]:
            raise ProtocolError("what makes a derived sample changed the inputs in place; clone them first")
        for leaf in tensors_of(made):
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != examples.shape:
                shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ProtocolError(f"what makes a derived sample returned {shape}; expected ({len(examples)}, ...)")
        return made

    def flattened(self) -> Sample:
        """All draws of all examples as one plain sample of n x B examples, draw by draw, in memory.

        For techniques that run another technique on every draw.
        """
        examples = torch.arange(len(self.sample)).repeat(self.n)
        draws = torch.arange(self.n).repeat_interleave(len(self.sample))
        return Sample(
            self.rows(draws, examples),
            self.sample.target.fixed_by(self.sample).repeated(self.n),
            self.sample.seed,
            self.sample.mean,
            self.sample.std,
            replace(
                self.sample.frame,
                extras={name: _rows(extra, examples) for name, extra in self.sample.frame.extras.items()},
            ),
        )


def _rows(tensor: Tensor, examples: Tensor) -> Tensor:
    """The rows of some examples, without a copy where they are all of them in order or all the same one."""
    count = len(examples)
    if tensor.shape[0] == 1:
        return tensor.expand(count, *tensor.shape[1:])
    if count == tensor.shape[0] and bool((examples == torch.arange(count)).all()):
        return tensor
    return tensor[examples.to(tensor.device)]


def along(sample: Sample, baseline: Any, alphas: Tensor | Sequence[float]) -> Derived:
    """See `Sample.along`."""
    places = torch.as_tensor(alphas, dtype=torch.float64)
    if places.dim() != 1:
        raise ParameterError(f"alphas have shape {tuple(places.shape)}; expected (n,)")
    start = sample.baseline(baseline)

    def make(inputs: Any, draws: Tensor, examples: Tensor) -> Any:
        def step(leaf: Tensor, origin: Tensor) -> Tensor:
            alpha = per_example(places[draws].to(leaf), leaf)
            return torch.lerp(_rows(origin, examples), leaf, alpha)

        return each(step, inputs, start)

    return Derived(sample, len(places), make, ("along", id(start), tuple(places.tolist())))


def jittered(sample: Sample, n: int, scale: float, *, relative: bool = True, label: str = "jitter") -> Derived:
    """See `Sample.jittered`."""
    if not scale >= 0:
        raise ParameterError(f"the noise has scale {scale}; expected 0 or more")

    def make(inputs: Any, draws: Tensor, examples: Tensor) -> Any:
        distinct, place = torch.unique(draws, return_inverse=True)

        def shake(leaf: Tensor, name: str = "") -> Tensor:
            noise = torch.stack(
                [torch.randn(leaf.shape[1:], generator=sample.generator(label, name, k)) for k in distinct.tolist()]
            )[place].to(leaf)
            dims = tuple(range(1, leaf.dim()))
            width = leaf.amax(dims, keepdim=True) - leaf.amin(dims, keepdim=True) if relative else 1.0
            return leaf + scale * width * noise

        if isinstance(inputs, Leaves):
            return Leaves({name: shake(leaf, name) for name, leaf in inputs.items()})
        return shake(inputs)

    return Derived(sample, n, make, ("jittered", n, scale, relative, label))


def masked(
    sample: Sample, n: int, masks: Tensor | Leaves | Callable[[Tensor, Tensor], Any], baseline: Any = "zero"
) -> Derived:
    """See `Sample.masked`."""
    ground = sample.baseline(baseline)
    fixed = None if callable(masks) else masks
    for leaf in [] if fixed is None else tensors_of(fixed):
        if leaf.dim() == 0 or leaf.shape[0] != n:
            raise ParameterError(f"the masks have shape {tuple(leaf.shape)}; expected ({n}, ...)")

    def make(inputs: Any, draws: Tensor, examples: Tensor) -> Any:
        chosen = masks(draws, examples) if callable(masks) else each(lambda mask: mask[draws.to(mask.device)], masks)

        def hide(leaf: Tensor, origin: Tensor, mask: Tensor) -> Tensor:
            mask = mask.to(device=leaf.device)
            # Broadcasting would lay the rows of a mask without the axis of channels over the channels.
            if mask.dim() != leaf.dim() or any(m not in (1, k) for m, k in zip(mask.shape, leaf.shape, strict=True)):
                raise ProtocolError(
                    f"the masks have rows of shape {tuple(mask.shape[1:])}; expected as many axes as the inputs' "
                    f"{tuple(leaf.shape[1:])}, each of that size or 1"
                )
            origin = _rows(origin, examples)
            return (
                torch.where(mask, leaf, origin) if mask.dtype == torch.bool else torch.lerp(origin, leaf, mask.to(leaf))
            )

        return each(hide, inputs, ground, chosen)

    return Derived(sample, n, make, ("masked", n, id(masks), id(ground)))
