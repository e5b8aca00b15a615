"""Nodes: the operations of a captured model, as rules see them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pellucid.rules.backward import args_at, backward_of, with_operands
from pellucid.rules.graph import Op, Slot, base_name, filled, slots_in
from pellucid.rules.kinds import NAMES, classify


class Site:
    """What is known of an operation before it runs.

    Attributes:
        op: its name, the same for variants that mean the same.
        name: the layer, the operation's name and its number in the graph.
        sources: what made each active operand, or None for an input.
        step: what runs it in a program.
        base: its ATen name.
        kind: see `Node`.
        family: see `Node`.
        layer: the module that ran it.
        depth: its place among the weighted operations, -1 for others.
        first: whether it is weighted and no weighted operation feeds it.
        last: whether it is weighted and feeds no weighted operation.
        active: which tensor operands, in their order, are active.
        slots: their slots.
        paths: where they are among the arguments.
        shapes: their shapes.
        dtypes: their types.
        operand_shapes: the shapes of all tensor operands.
        out: the slots of the results that carry something back; the first is the result that a rule sees.
        result_shapes: the shapes of all results.
        primary: whether only the first of several results counts.
        nonnegative: which active operands are known to be nowhere negative.
    """

    def __init__(self, made: Op, active: frozenset[int], depends: frozenset[int], shapes: Any, dtypes: Any) -> None:
        self.made = made
        self.target: Any = made.target
        self.base = base_name(made.target).removesuffix("_") if not base_name(made.target).startswith("__") else ""
        self.op = NAMES.get(self.base, self.base)
        operands = slots_in(made.args)
        self.active = tuple(index for index, slot in enumerate(operands) if slot in active) if not made.cut else ()
        varying = [slot for slot in slots_in((made.args, made.kwargs)) if slot in depends]
        if made.cut:
            varying = []
        self.slots = tuple(operands[index] for index in self.active)
        self.paths = tuple(path for path, slot in _paths(made.args) if slot in self.slots) if self.slots else ()
        self.shapes: list[tuple[int, ...]] = [shapes[slot] for slot in self.slots]
        self.dtypes: list[torch.dtype] = [dtypes[slot] for slot in self.slots]
        self.operand_shapes: list[tuple[int, ...]] = [shapes[slot] for slot in operands]
        self.result_shapes: list[tuple[int, ...]] = [() if slot < 0 else shapes[slot] for slot in made.out]
        self.kind, self.family = classify(self.op, self.active, varying, made.args, len(operands))
        self.layer = made.layer
        self.depth, self.first, self.last = -1, False, False
        self.name = self.op
        self.sources: tuple[Site | None, ...] = (None,) * len(self.slots)
        self.step: Any = None
        self.out: tuple[int, ...] = ()
        self.primary = False
        self.nonnegative: tuple[bool, ...] = (False,) * len(self.slots)
        self.kwargs = made.kwargs
        self._tensors_in_kwargs = bool(slots_in(made.kwargs))

    def settle(self, carrying: frozenset[int]) -> None:
        """Fixes which results carry something back, once all operations are known."""
        self.out = tuple(slot for slot in self.made.out if slot in carrying)
        self.primary = self.made.single or self.out in ((), (self.made.out[0],))
        self.needs, self.backward = backward_of(self)

    def kwargs_of(self, values: Any) -> dict[str, Any]:
        """The keyword arguments; tensors among them are constants of the run."""
        made: dict[str, Any] = filled(self.kwargs, values.values) if self._tensors_in_kwargs else self.kwargs
        return made

    @cached_property
    def weight_at(self) -> tuple[int | None, int | None]:
        """Where the weight and the bias are among the arguments of a weighted operation."""
        if self.kind != "weighted":
            return None, None
        if self.op in ("mm", "bmm", "mv", "dot", "matmul"):
            return 1 - self.active[0], None
        if self.op == "convolution" or self.op == "linear":
            return 1, 2
        return 3 - self.paths[0][0], 0  # addmm and its like: the bias comes first


class Arguments(list[Any]):
    """An operation's positional arguments, with all values of the run for its keyword arguments."""

    values: Sequence[Any]


class Node:
    """One operation of a captured model, with its values, as a rule sees it.

    Values are detached. Operands are *active* where they depend on the model's input; all others are constants, such as
    parameters, and are no business of a rule's, apart from the `weight` and `bias` of a weighted node.
    """

    __slots__ = ("_args", "_out", "_reference_args", "_reference_out", "rectified", "site")

    rectified: bool
    """Whether its output is known to carry relevance only where it is positive, as in front of a ReLU."""

    def __init__(
        self,
        site: Site,
        args: Arguments | None = None,
        out: Any = None,
        reference_args: Arguments | None = None,
        reference_out: Any = None,
        *,
        rectified: bool = False,
    ) -> None:
        self.site = site
        self.rectified = rectified
        self._args = args
        self._out = out
        self._reference_args = reference_args
        self._reference_out = reference_out

    def __repr__(self) -> str:
        return f"Node({self.op}, kind={self.kind}, layer='{self.layer}')"

    @property
    def op(self) -> str:
        """The operation's ATen name, such as "convolution", "addmm", "relu", "softmax", "layer_norm", "max_pool2d"."""
        return self.site.op

    @property
    def name(self) -> str:
        """A name that no other node of the model has, the same in every pass under rules that rewrite it alike."""
        return self.site.name

    @property
    def sources(self) -> tuple[Node | None, ...]:
        """The node that made each active operand, or None for the model's input; with values as far as they are kept.

        Before the pass there are none, but what they are is known.
        """
        here, there = (None if args is None else args.values for args in (self._args, self._reference_args))
        return tuple(
            None if site is None else Node(site) if here is None else site.step.node(here, there)
            for site in self.site.sources
        )

    @property
    def operands(self) -> tuple[int, ...]:
        """Numbers of the active operands: equal ones, of any nodes of a pass, are the same value."""
        return self.site.slots

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The operation's arguments in their order, such as a clamp's bounds; None for tensors."""
        return tuple(None if isinstance(part, Slot) else part for part in self.site.made.args)

    @property
    def kind(self) -> str:
        """What it does to its active operands, by which a table may be keyed.

        "move" (moves numbers about), "weighted" (a convolution or matrix product with a constant), "sum" (linear or
        affine in the active operands together), "product" (of active operands), "pointwise" (of one, number by
        number), "max", "softmax", "norm", or "other".
        """
        return self.site.kind

    @property
    def family(self) -> str:
        """A coarser common name: "conv", "linear" (matrix products), "activation" (in the place of a ReLU), or ""."""
        return self.site.family

    @property
    def layer(self) -> str:
        """The name of the module that ran it, "" at the top."""
        return self.site.layer

    @property
    def depth(self) -> int:
        """Its place among the weighted nodes, 0 for the first; -1 for others."""
        return self.site.depth

    @property
    def first(self) -> bool:
        """Whether it is a weighted node that no other weighted node feeds."""
        return self.site.first

    @property
    def last(self) -> bool:
        """Whether it is a weighted node that feeds no other weighted node."""
        return self.site.last

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the active operands."""
        return tuple(self.site.shapes)

    @property
    def nonnegative(self) -> tuple[bool, ...]:
        """Which of the active operands are known to be nowhere negative, by the operations that they come from."""
        return self.site.nonnegative

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The values of the active operands."""
        return tuple(args_at(self._known(self._args), path) for path in self.site.paths)

    @property
    def output(self) -> Any:
        """The result; of an operation with several, such as the indices of a max pooling, the first."""
        return self._first(self._out)

    @property
    def outputs(self) -> tuple[Any, ...]:
        """All results."""
        return tuple(self._out) if isinstance(self._out, (tuple, list)) else (self._out,)

    @property
    def reference_inputs(self) -> tuple[Tensor, ...] | None:
        """The values of the active operands at the reference, or None without one."""
        args = self._reference_args
        return None if args is None else tuple(args_at(args, path) for path in self.site.paths)

    @property
    def reference_output(self) -> Any:
        """The result at the reference, or None without one."""
        return None if self._reference_args is None else self._first(self._reference_out)

    @property
    def weight(self) -> Tensor | None:
        """The constant that a weighted node multiplies by; (outputs, inputs) for a matrix product on the right."""
        place, _ = self.site.weight_at
        if place is None:
            return None
        weight: Tensor = self._known(self._args)[place]
        return weight.transpose(-1, -2) if self._transposed else weight

    @property
    def bias(self) -> Tensor | None:
        """The constant that a weighted node adds, or None."""
        _, place = self.site.weight_at
        return None if place is None else self._known(self._args)[place]

    @property
    def _transposed(self) -> bool:
        """Whether the operation multiplies by the transpose of what `weight` shows."""
        place, _ = self.site.weight_at
        return self.op in ("mm", "bmm", "addmm", "baddbmm") and place is not None and self.site.paths[0][0] < place

    @staticmethod
    def _known(args: Arguments | None) -> Arguments:
        if args is None:
            raise RuntimeError("a node has no values before the pass")
        return args

    @staticmethod
    def _first(out: Any) -> Any:
        return out[0] if isinstance(out, (tuple, list)) else out

    def _with(self, inputs: Sequence[Tensor], weight: Tensor | None, bias: Tensor | bool | None) -> Arguments:
        """The arguments with other active operands and parameters."""
        args = self._known(self._args)
        site = self.site
        made = Arguments(with_operands(args, site.paths, inputs) if inputs else args)
        made.values = args.values
        if weight is not None or bias is not None:
            if site.kind != "weighted":
                raise TypeError(f"{self!r} has no weight or bias to exchange; only weighted nodes have")
            at_weight, at_bias = site.weight_at
            if weight is not None and at_weight is not None:
                made[at_weight] = weight.transpose(-1, -2) if self._transposed else weight
            if at_bias is not None and bias is not None:
                made[at_bias] = None if bias is False else bias
        return made

    def __call__(self, *inputs: Tensor, weight: Tensor | None = None, bias: Tensor | bool | None = None) -> Tensor:
        """The operation at its own inputs, or at others.

        Args:
            inputs: in place of all active operands.
            weight: in place of a weighted node's weight, in the form of `weight`.
            bias: in place of a weighted node's bias; False is without.
        """
        args = self._with(inputs, weight, bias)
        site = self.site
        at_bias = site.weight_at[1]
        added = bias if isinstance(bias, Tensor) and at_bias is None else None
        if at_bias == 0 and args[0] is None:
            made = torch.matmul(args[1], args[2])
        else:
            made = site.target(*args, **site.kwargs_of(args))
        result: Tensor = self._first(made)
        return result if added is None else result + added

    def product(self, carried: Any) -> Sequence[Tensor | None]:
        """The vector-Jacobian product as it comes: None for nothing; of several results from a list."""
        return self.site.backward(self.site, carried, self._known(self._args), self._out)

    def vjp(
        self, carried: Tensor, *inputs: Tensor, weight: Tensor | None = None, bias: Tensor | bool | None = None
    ) -> tuple[Tensor, ...]:
        """The operation's vector-Jacobian product, at its own inputs or at others.

        For a weighted node this is one transposed convolution or matrix product, whatever the inputs.

        Args:
            carried: of the output's shape.
            inputs: in place of all active operands.
            weight: in place of a weighted node's weight.
            bias: is of no consequence, and accepted so that it can be called as the node itself is.
        """
        site = self.site
        args = self._with(inputs, weight, None) if inputs or weight is not None else self._known(self._args)
        out = self._out
        if inputs and "o" in site.needs:
            out = site.target(*args, **site.kwargs_of(args))
        found = site.backward(site, carried, args, out)
        return tuple(
            torch.zeros_like(args_at(args, path)) if one is None else one
            for one, path in zip(found, site.paths, strict=True)
        )


def _paths(args: Sequence[Any]) -> list[tuple[tuple[int, ...], int]]:
    """Where the slots are among positional arguments, with their numbers."""
    found: list[tuple[tuple[int, ...], int]] = []
    for index, value in enumerate(args):
        if isinstance(value, Slot):
            found.append(((index,), value.index))
        elif isinstance(value, (tuple, list)):
            found += [((index, place), part.index) for place, part in enumerate(value) if isinstance(part, Slot)]
    return found
