"""Watching how a forward pass uses the model's parameters, for the gradients of each example by them.

What is watched are the functions that a parameter is given to, not modules: functional layers, reused ones, tied
weights and the projections inside of attention are thereby no special cases.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pellucid.engine.forms import Form
from pellucid.engine.functions import FORMS
from pellucid.engine.outputs import first_tensor, tensors_in
from pellucid.engine.watch import version_of
from pellucid.errors import LayerError, ModelError, Unsuitable, nearest
from pellucid.protocol.factors import Factor, Factors

ATTENTION = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
    closure=F.multi_head_attention_forward.__closure__,
)
"""Multi-head attention that shows the linear layers inside of it, which torch otherwise hides as one function."""


class ArgumentChanged(ModelError):
    """The model changed in place what it had given to a layer, so that copies must be kept."""


@dataclass(frozen=True)
class Parameters:
    """What a score is differentiated by, where it is the parameters.

    Attributes:
        patterns: which, as names with wildcards.
    """

    patterns: tuple[str, ...]

    def among(self, names: Sequence[str]) -> frozenset[str]:
        """The names that match.

        Raises:
            LayerError: when a pattern matches none.
        """
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise LayerError(
                    f"the model has no parameters '{pattern}'; expected names with wildcards, such as 'layer4.*'."
                    f"{nearest(pattern, names)}"
                )
        return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in self.patterns))


@dataclass(eq=False)
class Use:
    """One use of parameters in a forward pass.

    Attributes:
        form: what the gradients are made of.
        edge: where in the graph the result is.
        argument: what the layer was given.
        version: how often that was changed in place before.
        zero: the gradient by the result where the score does not depend on it; it takes no memory.
    """

    form: Form
    edge: Any
    argument: Tensor | None
    version: int
    zero: Tensor


class ParameterWatch(TorchFunctionMode):
    """Notes the uses of parameters while it is active.

    Where a result has no graph yet, one starts there, so that nothing before the first layer is recorded.

    Attributes:
        rows: how many examples go through the model.
        copies: whether arguments are copied, since the model changes them in place.
    """

    def __init__(self, parameters: Mapping[str, Tensor], wanted: frozenset[str], rows: int, *, copies: bool) -> None:
        super().__init__()
        self.rows = rows
        self.copies = copies
        self._names: dict[int, tuple[str, int]] = {
            id(tensor): (name, 0) for name, tensor in parameters.items() if name in wanted
        }
        self._shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items() if name in wanted}
        self._kept = dict(parameters)  # so that identities stay their own
        self._views: list[Tensor] = []
        self._seen: set[str] = set()
        self._unknown: set[str] = set()
        self._doubtful: set[str] = set()
        self._uses: list[Use] = []
        self._sequences: int | None = None
        self._spark = torch.zeros((), requires_grad=True)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function, and notes what it makes of parameters."""
        kwargs = kwargs or {}
        if function is F.batch_norm:
            self._check_norm(*args, **kwargs)
        if function is F.multi_head_attention_forward:
            query = args[0] if args else kwargs["query"]
            before, self._sequences = self._sequences, query.shape[1] if query.dim() == 3 else 1
            try:
                with self:
                    return ATTENTION(*args, **kwargs)
            finally:
                self._sequences = before
        given = [tensor for tensor in tensors_in((args, kwargs)) if id(tensor) in self._names]
        if not given:
            return function(*args, **kwargs)
        return self._used(function, args, kwargs, given)

    def _used(self, function: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        form = FORMS[function](self._role, *args, **kwargs) if function in FORMS else None
        argument = None if form is None else form.argument
        version = 0 if argument is None else version_of(argument)
        result = function(*args, **kwargs)
        if not any(True for _ in tensors_in(result)):
            return result  # a size or a type
        if self._are_rows(result, given):
            return result
        names = {self._names[id(tensor)][0] for tensor in given}
        again = not names.isdisjoint(self._seen)
        self._seen |= names
        start = first_tensor(result)
        if (
            form is None
            or start is not result
            or not torch.is_grad_enabled()
            or not form.take(start, self.rows, self._sequences)
            or (argument is not None and version_of(argument) != version)
        ):
            self._unknown |= names
            return result
        # Inputs are differentiable here: what is not may be the same for all examples, and have rows of its own.
        constant = not start.requires_grad
        if constant:
            start = _Start.apply(start.clone() if form.is_view else start, self._spark)
        if argument is not None:
            argument = argument.detach().clone() if self.copies else argument.detach()
            version = version_of(argument)
        # Outside of attention the examples are taken to come first, alone or outermost of joined axes. One example is
        # read in any case, and held against several, of which the same must be read. Where parameters are used again,
        # it may be for one example after the other.
        doubt = again or len(start) != self.rows or self.rows in start.shape[1:]
        if constant or self.rows == 1 or (doubt and self._sequences is None):
            self._doubtful |= names
        zero = start.detach().new_zeros(()).expand(start.shape)
        self._uses.append(Use(form, torch.autograd.graph.get_gradient_edge(start), argument, version, zero))
        return start

    def _check_norm(self, input: Tensor, mean: Any = None, var: Any = None, *args: Any, **kwargs: Any) -> None:
        """Refuses a normalisation by the statistics of the batch.

        Raises:
            Unsuitable: since no example has a gradient of its own then.
        """
        mixed = FORMS[F.batch_norm](self._role, input, mean, var, *args, **kwargs) is None
        if mixed and self.rows > 1 and len(input) % self.rows == 0:
            raise Unsuitable(
                "the model normalises by the statistics of the batch, such as a BatchNorm without running ones, so "
                "that no example has a gradient of its own; expected a model that sees each example alone"
            )

    def _role(self, tensor: Any) -> tuple[str, int, tuple[int, ...]] | None:
        """A parameter's name, the first of its rows that a tensor is, and its shape; None where it is none."""
        if not isinstance(tensor, Tensor) or id(tensor) not in self._names:
            return None
        name, offset = self._names[id(tensor)]
        return name, offset, self._shapes[name]

    def _are_rows(self, result: Any, given: list[Tensor]) -> bool:
        """Whether a function took some of a parameter's rows, which then go by its name."""
        views = list(tensors_in(result))
        (base, *others) = given
        name, offset = self._names[id(base)]
        if others or not all(
            view._base is not None
            and view._base.data_ptr() == self._kept[name].data_ptr()
            and view.is_contiguous()
            and view.shape[1:] == base.shape[1:]
            and view.shape[:1] != base.shape[:1]
            for view in views
        ):
            return False
        step = max(base[0].numel(), 1)
        for view in views:
            self._names[id(view)] = (name, offset + int(view.storage_offset() - base.storage_offset()) // step)
        self._views.extend(views)
        return True

    @property
    def edges(self) -> list[Any]:
        """Where in the graph the layers' outputs are."""
        return [use.edge for use in self._uses]

    def check(self) -> None:
        """Refuses arguments that were changed in place since.

        Raises:
            ArgumentChanged: when one was.
        """
        for use in self._uses:
            if use.argument is not None and version_of(use.argument) != use.version:
                raise ArgumentChanged(f"what was given to '{use.form.names[0]}' was changed in place")

    def factors(self, gradients: Sequence[Tensor | None], asked: Parameters) -> Factors:
        """The gradients of each example by the parameters, from those by the layers' outputs."""
        made: dict[tuple[str, ...], list[Factor]] = {}
        for use, gradient in zip(self._uses, gradients, strict=True):
            if self._unknown.issuperset(use.form.names):
                continue
            # A zero is kept: another score, which the same layers' factors are held against, may depend on the layer.
            slopes = use.zero if gradient is None else gradient
            for factor in use.form.factors(use.argument, slopes, self.rows):
                for part in _among(factor, frozenset(factor.names) - self._unknown):
                    made.setdefault(part.names, []).append(part)
        layers = _without_overlap([_summed(several) for several in made.values()])
        covered = {name for layer in layers for name in layer.names}
        names = asked.among(list(self._shapes))
        left = [name for name in self._shapes if name in names - covered]
        return Factors(
            tuple(part for layer in layers for part in _among(layer, names)),
            {name: torch.Size(self._shapes[name]).numel() for name in left},
            frozenset(self._doubtful & covered),
        )


class _Start(torch.autograd.Function):
    """Makes a tensor the start of a graph, without a copy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, spark: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None


def _summed(several: list[Factor]) -> Factor:
    """The gradient of parameters that were used several times: the sum over their uses."""
    first, *others = several
    if not others:
        return first
    if len({one.order for one in several}) > 1:
        several = [part for one in several for part in _split(one)]
        first = several[0]
    forms = {(one.inputs is None, one.inputs is not None and one.inputs.dim()) for one in several}
    if len(forms) == 1 and first.inputs is not None:
        inputs = torch.cat([one.inputs for one in several if one.inputs is not None], dim=1)
        slopes = torch.cat([one.slopes for one in several if one.slopes is not None], dim=1)
        return Factor.outer(first.names, first.shapes, inputs, slopes)
    parts = zip(*(one.written.parts for one in several), strict=True)
    return replace(first.written, parts=tuple(torch.stack(part).sum(dim=0) for part in parts))


def _without_overlap(layers: list[Factor]) -> list[Factor]:
    """The same gradients with every parameter in one factor only: tied weights are used by layers of several kinds."""
    names = [name for layer in layers for name in layer.names]
    shared = {name for name in names if names.count(name) > 1}
    alone: dict[tuple[str, ...], list[Factor]] = {}
    kept = []
    for layer in layers:
        if not shared & set(layer.names):
            kept.append(layer)
            continue
        for part in _split(layer):
            alone.setdefault(part.names, []).append(part)
    return [*kept, *(_summed(several) for several in alone.values())]


def _among(layer: Factor, names: frozenset[str]) -> list[Factor]:
    """The layer, or those of its parameters alone that are among some names."""
    parts = [layer] if names.issuperset(layer.names) else _split(layer)
    return [part for part in parts if names.issuperset(part.names)]


def _split(layer: Factor) -> Iterator[Factor]:
    for name, shape in zip(layer.names, layer.shapes, strict=True):
        yield Factor((name,), (shape,), (layer.by_parameter()[name].flatten(1),))
