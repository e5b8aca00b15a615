"""Several named tensors that behave as one, for models with several inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Leaves(Mapping[str, Tensor]):
    """Named tensors with a common first axis that do arithmetic leaf by leaf.

    A technique that is written for one input tensor works unchanged on several: operators, methods of `Tensor` and
    functions of `torch` are applied to each leaf, and two `Leaves` are paired by name.

    Raises:
        KeyError: when two `Leaves` that are combined do not have the same names.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: Any) -> Any:
        """A leaf by its name, or every leaf indexed by anything else."""
        if isinstance(name, str):
            return self._tensors[name]
        return self.each(lambda tensor: tensor[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return "Leaves(" + ", ".join(f"{name}: {tuple(leaf.shape)}" for name, leaf in self.items()) + ")"

    def each(self, function: Callable[..., Any], *others: Any) -> Leaves:
        """Applies a function to every leaf, with the leaves of the same name of the others."""
        for other in others:
            if isinstance(other, Leaves) and set(other) != set(self):
                raise KeyError(f"these leaves are {sorted(self)}, the others' are {sorted(other)}")
        return Leaves(
            {
                name: function(leaf, *(other[name] if isinstance(other, Leaves) else other for other in others))
                for name, leaf in self.items()
            }
        )

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}

        def leaves_in(value: Any) -> Iterator[Leaves]:
            if isinstance(value, Leaves):
                yield value
            elif isinstance(value, (list, tuple)):
                for part in value:
                    yield from leaves_in(part)

        def pick(value: Any, name: str) -> Any:
            if isinstance(value, Leaves):
                return value[name]
            if isinstance(value, (list, tuple)):
                return type(value)(pick(part, name) for part in value)
            return value

        first, *others = leaves_in((*args, *kwargs.values()))
        first.each(lambda *_: None, *others)  # raises where the names differ
        return Leaves(
            {
                name: function(*pick(args, name), **{key: pick(value, name) for key, value in kwargs.items()})
                for name in first
            }
        )

    def __getattr__(self, method: str) -> Any:
        """The methods of a tensor, each applied to every leaf."""
        if method.startswith("_") or not callable(getattr(Tensor, method, None)):
            raise AttributeError(f"'Leaves' has no attribute '{method}'")

        def call(*args: Any, **kwargs: Any) -> Leaves:
            made: Leaves = self.__torch_function__(getattr(Tensor, method), (), (self, *args), kwargs)
            return made

        return call

    def __add__(self, other: Any) -> Leaves:
        return self.each(torch.add, other)

    def __radd__(self, other: Any) -> Leaves:
        return self.each(torch.add, other)

    def __sub__(self, other: Any) -> Leaves:
        return self.each(torch.sub, other)

    def __rsub__(self, other: Any) -> Leaves:
        return self.each(lambda leaf, value: value - leaf, other)

    def __mul__(self, other: Any) -> Leaves:
        return self.each(torch.mul, other)

    def __rmul__(self, other: Any) -> Leaves:
        return self.each(torch.mul, other)

    def __truediv__(self, other: Any) -> Leaves:
        return self.each(torch.div, other)

    def __rtruediv__(self, other: Any) -> Leaves:
        return self.each(lambda leaf, value: value / leaf, other)

    def __pow__(self, other: Any) -> Leaves:
        return self.each(torch.pow, other)

    def __neg__(self) -> Leaves:
        return self.each(torch.neg)

    def __abs__(self) -> Leaves:
        return self.each(torch.abs)

    def __lt__(self, other: Any) -> Leaves:
        return self.each(torch.lt, other)

    def __le__(self, other: Any) -> Leaves:
        return self.each(torch.le, other)

    def __gt__(self, other: Any) -> Leaves:
        return self.each(torch.gt, other)

    def __ge__(self, other: Any) -> Leaves:
        return self.each(torch.ge, other)


pytree.register_pytree_node(
    Leaves,
    lambda leaves: (list(leaves.values()), list(leaves)),
    lambda tensors, names: Leaves(dict(zip(names, tensors, strict=True))),
    serialized_type_name="pellucid.Leaves",
)

# The leaves act like one tensor (see `Leaves`), so that signatures and techniques speak of a Tensor and are right for
# both; `Inputs` is written where the difference matters.
Inputs: TypeAlias = Tensor | Leaves


def each(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Applies a function to a tensor, or to every leaf where there are several inputs."""
    if isinstance(first, Leaves):
        return first.each(function, *others)
    return function(first, *others)


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors of inputs, one or several."""
    return list(inputs.values()) if isinstance(inputs, Leaves) else [inputs]


def per_example(weights: Tensor, like: Tensor) -> Tensor:
    """Views weights (B,) so that they multiply a tensor (B, ...)."""
    return weights.reshape(weights.shape[0], *(1,) * (like.dim() - 1))
