"""Per-example parameter gradients in factors, whose inner products need no gradient to be written out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pellucid.errors import ProtocolError
from pellucid.results.checks import Check

PAIRS_BYTES = 64 * 2**20
"""How much memory the position-by-position products of two layers of tokens take at once."""


@dataclass(frozen=True, eq=False)
class Factor:
    """The gradients of n examples by the parameters of one layer.

    Either written out in `parts`, or as the sum over positions t of the outer products slopes_t inputs_t, which is
    kept where inner products are cheaper that way: one position, or few in a wide layer.

    Attributes:
        names: the parameters, a weight before its bias.
        shapes: their shapes.
        parts: for each parameter its gradients (n, numel); () where they are factored.
        inputs: (n, T, p) what the layer was given, or (n, T) the rows that were looked up in a table.
        slopes: (n, T, q) the score's gradient by the layer's output.
        order: the parameter's axes in the order in which the numbers of the only part lie; () is their own.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    parts: tuple[Tensor, ...] = ()
    inputs: Tensor | None = None
    slopes: Tensor | None = None
    order: tuple[int, ...] = ()

    @classmethod
    def outer(cls, names: Sequence[str], shapes: Sequence[tuple[int, ...]], inputs: Tensor, slopes: Tensor) -> Factor:
        """A factor of a linear layer or a table, written out where inner products are then cheaper."""
        made = cls(tuple(names), tuple(shapes), inputs=inputs, slopes=slopes)
        positions, width = slopes.shape[1], slopes.shape[2]
        depth = inputs.shape[2] if inputs.dim() == 3 else 1
        written = shapes[0][0] * shapes[0][1]
        return made.written if positions > 1 and written <= positions**2 * (depth + width) else made

    @property
    def _factors(self) -> tuple[Tensor, Tensor] | None:
        return None if self.inputs is None or self.slopes is None else (self.inputs, self.slopes)

    def __len__(self) -> int:
        return len(self.parts[0] if self.slopes is None else self.slopes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the factor keeps."""
        return self._factors or self.parts

    @property
    def biased(self) -> bool:
        """Whether a bias belongs to the layer."""
        return len(self.names) > 1

    @property
    def written(self) -> Factor:
        """The same gradients, written out."""
        # Not kept where it is the factor itself: such a circle would hold the memory until the next collection.
        return self if self._factors is None else self._written

    @cached_property
    def _written(self) -> Factor:
        assert self._factors is not None
        inputs, slopes = self._factors
        if inputs.dim() == 2:
            table = slopes.new_zeros(len(slopes), self.shapes[0][0], slopes.shape[2])
            parts = [table.scatter_add_(1, inputs[..., None].expand_as(slopes), slopes).flatten(1)]
        else:
            parts = [torch.bmm(slopes.transpose(1, 2), inputs).flatten(1)]
        if self.biased:
            parts.append(slopes.sum(dim=1))
        return replace(self, parts=tuple(parts), inputs=None, slopes=None)

    def by_parameter(self) -> dict[str, Tensor]:
        """For each parameter the gradients in its own form, (n, ...)."""
        if not self.order:
            parts = zip(self.names, self.shapes, self.written.parts, strict=True)
            return {name: part.reshape(len(part), *shape) for name, shape, part in parts}
        lying = self.parts[0].reshape(len(self), *(self.shapes[0][axis] for axis in self.order))
        places = [1 + self.order.index(axis) for axis in range(len(self.order))]
        return {self.names[0]: lying.permute(0, *places)}

    def rows(self, chosen: slice | Tensor) -> Factor:
        """The gradients of some of the examples."""
        return self._each([tensor[chosen] for tensor in self.tensors])

    def joined(self, others: Sequence[Factor]) -> Factor:
        """The gradients of these examples and then the others'; positions may be fewer, never of another form."""
        own = [self, *others]
        shapes = {tuple(tensor.shape[1:] for tensor in one.tensors) for one in own}
        if len(shapes) > 1:
            own = [one.written for one in own]
        return own[0]._each([torch.cat(several) for several in zip(*(one.tensors for one in own), strict=True)])

    def _each(self, tensors: Sequence[Tensor]) -> Factor:
        if self._factors is None:
            return replace(self, parts=tuple(tensors))
        return replace(self, inputs=tensors[0], slopes=tensors[1])

    def add_inner(self, other: Factor, total: Tensor) -> None:
        """Adds the inner products with other examples' gradients to `total`, (n, m)."""
        ours, theirs = self._factors, other._factors
        if ours is None or theirs is None:
            for one, two in zip(self.written.parts, other.written.parts, strict=True):
                total.addmm_(one, two.T)
        elif ours[1].shape[1] == theirs[1].shape[1] == 1 and ours[0].dim() == 3:
            of_inputs = ours[0][:, 0] @ theirs[0][:, 0].T
            total.addcmul_(of_inputs.add_(1) if self.biased else of_inputs, ours[1][:, 0] @ theirs[1][:, 0].T)
        else:
            positions = ours[1].shape[1] * theirs[1].shape[1] * len(other) * total.element_size()
            step = max(1, PAIRS_BYTES // positions)
            for start in range(0, len(self), step):
                block = self.rows(slice(start, start + step))._factors
                assert block is not None
                total[start : start + step] += (self._alike(block[0], theirs[0]) * _products(block[1], theirs[1])).sum(
                    dim=(1, 3)
                )

    def _alike(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """(n, T, m, S) the inner products of inputs, with one more where there is a bias."""
        if ours.dim() == 2:
            return ours[:, :, None, None] == theirs
        return _products(ours, theirs).add_(1) if self.biased else _products(ours, theirs)

    def squares(self) -> Tensor:
        """(n,) the gradients' squared norms."""
        if self._factors is None:
            return torch.stack([part.square().sum(dim=1) for part in self.parts]).sum(dim=0)
        inputs, slopes = self._factors
        if inputs.dim() == 2:
            alike = (inputs[:, :, None] == inputs[:, None]).to(slopes)
        else:
            alike = inputs @ inputs.transpose(1, 2) + self.biased
        return (alike * (slopes @ slopes.transpose(1, 2))).sum(dim=(1, 2))

    def weighted(self, weights: Tensor) -> tuple[Tensor, ...]:
        """For each parameter the sum of the gradients by weights (k, n), as (k, numel)."""
        if self._factors is not None and len(weights) == 1 and self._factors[0].dim() == 3:
            inputs, slopes = self._factors
            scaled = (slopes * weights[0, :, None, None]).flatten(0, 1)
            total = (scaled.T @ inputs.flatten(0, 1)).reshape(1, -1)
            return (total, scaled.sum(dim=0)[None]) if self.biased else (total,)
        return tuple(weights @ part for part in self.written.parts)


def _products(ours: Tensor, theirs: Tensor) -> Tensor:
    """(n, T, m, S) the inner products of (n, T, w) and (m, S, w)."""
    flat = ours.flatten(0, 1) @ theirs.flatten(0, 1).T
    return flat.reshape(*ours.shape[:2], *theirs.shape[:2])


@dataclass(frozen=True, eq=False)
class Factors:
    """The gradients of n examples' scores by a model's parameters, layer by layer.

    Attributes:
        layers: the factors of the layers that are covered.
        uncovered: the numbers of parameters that were asked for and are not covered, by name: those of recurrent
            layers, those of which the same is made for all examples, such as a table of positions, and those that the
            model uses by functions whose gradients are not known in closed form.
        doubtful: the engine's own: parameters of layers of which it had to guess where each example's rows lie.
    """

    layers: tuple[Factor, ...]
    uncovered: Mapping[str, int]
    doubtful: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.layers[0]) if self.layers else 0

    def __iter__(self) -> Iterator[Factor]:
        return iter(self.layers)

    def __getitem__(self, chosen: slice | Tensor) -> Factors:
        return replace(self, layers=tuple(layer.rows(chosen) for layer in self.layers))

    @classmethod
    def cat(cls, several: Sequence[Factors]) -> Factors:
        """The examples of several, one after the other."""
        first, *others = several
        if not others:
            return first
        by_names = [{layer.names: layer for layer in one} for one in several]
        if any(known.keys() != by_names[0].keys() for known in by_names):
            raise ProtocolError("the model used its parameters in other ways from one pass to the next")
        return replace(
            first, layers=tuple(layer.joined([known[layer.names] for known in by_names[1:]]) for layer in first)
        )

    def differing(self, others: Factors) -> frozenset[str]:
        """The parameters of which the first example's gradient is another one, or not known, among other examples."""
        expected, wrong = others[:1].by_parameter(), set()
        for name, values in self[:1].by_parameter().items():
            if name not in expected or (values - expected[name]).norm() > 1e-2 * expected[name].norm() + 1e-12:
                wrong.add(name)
        return frozenset(wrong)

    def without(self, names: frozenset[str]) -> Factors:
        """The same without the layers of some parameters, which are then not covered."""
        kept = tuple(layer for layer in self.layers if not names & set(layer.names))
        left = {
            name: torch.Size(shape).numel()
            for layer in self.layers
            if names & set(layer.names)
            for name, shape in zip(layer.names, layer.shapes, strict=True)
        }
        return Factors(kept, {**self.uncovered, **left})

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are covered."""
        return tuple(name for layer in self.layers for name in layer.names)

    @property
    def numel(self) -> int:
        """How many parameters are covered."""
        return sum(torch.Size(shape).numel() for layer in self.layers for shape in layer.shapes)

    @property
    def nbytes(self) -> int:
        """The memory that the factors take."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors)

    def inner(self, other: Factors) -> Tensor:
        """The inner products with other examples' gradients: the model's empirical tangent kernel, (n, m)."""
        theirs = {layer.names: layer for layer in other}
        if theirs.keys() != {layer.names for layer in self.layers}:
            raise ProtocolError("factors of different parameters have no inner products")
        tensor = self.layers[0].tensors[-1]
        total = tensor.new_zeros(len(self), len(other))
        for layer in self.layers:
            layer.add_inner(theirs[layer.names], total)
        return total

    def squares(self) -> Tensor:
        """The squared norms of the gradients, (n,)."""
        return torch.stack([layer.squares() for layer in self.layers]).sum(dim=0)

    def weighted(self, weights: Tensor) -> Tensor:
        """Sums of the gradients by weights (k, n), in the order of `names`: (k, numel)."""
        return torch.cat([part for layer in self.layers for part in layer.weighted(weights)], dim=1)

    def written(self) -> Tensor:
        """The gradients written out in the order of `names`, (n, numel)."""
        return torch.cat([part for layer in self.layers for part in layer.written.parts], dim=1)

    def by_parameter(self) -> dict[str, Tensor]:
        """The gradients written out, (n, ...) for each parameter by name."""
        return {name: values for layer in self.layers for name, values in layer.by_parameter().items()}

    def check(self) -> Check:
        """The share of the parameters that are left out, with their names."""
        missing = sum(self.uncovered.values())
        named = ", ".join(f"{name} ({count})" for name, count in self.uncovered.items())
        note = f"left out: {named}" if named else f"all {self.numel} parameters are covered"
        return Check.bound("uncovered parameters", missing / max(missing + self.numel, 1), 0.0, note)
