"""Lowering: a captured graph rewritten for a rule set, and what is known of each of its operations."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.rules.expansions import EXPANSIONS
from pellucid.rules.graph import Graph, Op, Slot, replay, slots_in
from pellucid.rules.node import Node, Site
from pellucid.rules.record import Recorder
from pellucid.rules.rule import RuleSet
from pellucid.rules.signs import nonnegative

EXACT = frozenset({"sum", "weighted"})
"""The kinds that the vector-Jacobian product is the rule for where a gradient is carried and nothing else is said."""


def sites_of(graph: Graph, leaves: int) -> list[Site]:
    """What is known of every operation of a graph.

    Args:
        graph: the graph.
        leaves: how many of its inputs are explained; the others are constants of a pass.
    """
    depends = set(graph.inputs[:leaves])
    active = {slot for slot in depends if graph.dtypes[slot].is_floating_point}
    used = set(graph.outputs)
    for op in graph.ops:
        operands = set(slots_in((op.args, op.kwargs)))
        used |= operands
        if operands & depends:
            depends.update(op.out)
        if set(slots_in(op.args)) & active and not op.cut:
            active.update(slot for slot in op.out if slot >= 0 and graph.dtypes[slot].is_floating_point)
    fixed, varying, carrying = frozenset(active), frozenset(depends), frozenset(active & used)
    sites = []
    for op in graph.ops:
        site = Site(op, fixed, varying, graph.shapes, graph.dtypes)
        site.settle(carrying)
        sites.append(site)
    _order(sites)
    made_by: dict[int, Site] = {}
    for number, site in enumerate(sites):
        site.name = f"{site.layer}/{site.op}:{number}"
        site.sources = tuple(made_by.get(slot) for slot in site.slots)
        made_by.update(dict.fromkeys(site.made.out, site))
    positive = nonnegative(sites)
    for site in sites:
        site.nonnegative = tuple(slot in positive for slot in site.slots)
    return sites


def _order(sites: Sequence[Site]) -> None:
    """Finds the weighted operations' places."""
    fed: set[int] = set()
    weighted = [site for site in sites if site.kind == "weighted"]
    for depth, site in enumerate(weighted):
        site.depth = depth
    for site in sites:
        after = bool(fed.intersection(site.slots))
        if site.kind == "weighted":
            site.first = not after
        if after or site.kind == "weighted":
            fed.update(site.out)
    feeding: set[int] = set()
    for site in reversed(sites):
        before = bool(feeding.intersection(site.out))
        if site.kind == "weighted":
            site.last = not before
        if before or site.kind == "weighted":
            feeding.update(site.slots)


def expanded(site: Site, rules: RuleSet) -> bool:
    """Whether an operation is written out, since the rule set has nothing to say of it."""
    if site.op not in EXPANSIONS or site.kind == "constant":
        return False
    if rules.carries == "gradient" and site.kind in EXACT:
        return False
    return rules.rule_for(Node(site)) is None


@dataclass(frozen=True)
class Rewriting:
    """How a graph is rewritten.

    Attributes:
        expand: the operations, by their number, that are written out.
        fold: operations by their number, each with the BatchNorm that is folded into it.
    """

    expand: frozenset[int]
    fold: tuple[tuple[int, int], ...]


def rewriting(graph: Graph, sites: Sequence[Site], rules: RuleSet) -> Rewriting:
    """How a graph is rewritten for a rule set."""
    expand = frozenset(number for number, site in enumerate(sites) if expanded(site, rules))
    return Rewriting(expand, _folds(graph, sites) if "batch_norm" in rules.canonizers else ())


def lowered(
    graph: Graph, sites: list[Site], change: Rewriting, leaves: int, inputs: Sequence[Tensor]
) -> tuple[Graph, list[Site]]:
    """A graph rewritten: BatchNorms folded, operations without a rule written out.

    Args:
        graph: as captured; it is not changed.
        sites: what is known of its operations.
        change: what is rewritten.
        leaves: how many of its inputs are explained.
        inputs: tensors of the form that the graph was captured for.
    """
    if not change.expand and not change.fold:
        return graph, sites
    started = time.perf_counter()
    expand = {id(sites[number].made) for number in change.expand}
    folds = [(sites[one].made, sites[norm].made) for one, norm in change.fold]
    norms = {id(norm) for _, norm in folds}
    statistics = {id(op): norm for op, norm in folds}
    by_op = {id(site.made): site for site in sites}
    recorder = Recorder(inputs, cuts=True)
    values: dict[int, Any] = {}
    made_of: dict[int, tuple[Tensor, Tensor]] = {}

    def run(op: Op, args: Any, kwargs: Any) -> Any:
        recorder.layer = op.layer
        with torch.set_grad_enabled(not op.cut):
            if id(op) in norms:
                return (args[0], None, None)[: len(op.out)] if not op.single else args[0]
            if id(op) in statistics:
                # Parameters that are computed, such as normalised ones, are known only now.
                known = made_of or _scales([(op, statistics[id(op)])], values)
                args = _folded(args, *known[id(op)])
            if id(op) in expand:
                made = EXPANSIONS[by_op[id(op)].op](*args, **kwargs)
                if made is not NotImplemented:
                    return made
            return _reshaping(op.target)(*args, **kwargs)

    with recorder:
        if all(slot in graph.constants for fold in folds for slot in _parameters(*fold) if slot is not None):
            made_of.update(_scales(folds, graph.constants))
        outputs = replay(graph, inputs, run, values)
    made = recorder.finish(outputs)
    made.seconds = graph.seconds + time.perf_counter() - started
    return made, sites_of(made, leaves)


def _reshaping(target: Any) -> Any:
    """A view may not fit the memory format that an expansion left; a reshape always does."""
    aten = torch.ops.aten
    return aten.reshape.default if target in (aten.view.default, aten._unsafe_view.default) else target


def _folds(graph: Graph, sites: Sequence[Site]) -> tuple[tuple[int, int], ...]:
    """Convolutions and linear functions, each with the BatchNorm that alone takes its result, by their numbers."""
    uses = Counter(slot for op in graph.ops for slot in slots_in((op.args, op.kwargs)))
    uses.update(graph.outputs)
    made_by = {site.made.out[0]: number for number, site in enumerate(sites) if site.op in ("convolution", "addmm")}
    folds = []
    for number, site in enumerate(sites):
        if site.op != "batch_norm" or site.kind != "sum":
            continue
        slot = site.slots[0]
        source = made_by.get(slot)
        if source is None or sites[source].kind != "weighted" or uses[slot] != 1:
            continue
        if sites[source].op == "convolution" or len(sites[source].operand_shapes[0]) == 1:  # one bias for all rows
            folds.append((source, number))
    return tuple(folds)


def _parameters(op: Op, norm: Op) -> list[int | None]:
    """The slots of a BatchNorm's factor, shift, mean and variance, and of the bias of what it is folded into."""
    own = op.args[2] if len(op.args) > 3 else op.args[0]  # of a convolution, or of a matrix product
    return [one.index if isinstance(one, Slot) else None for one in (*norm.args[1:5], own)]


def _scales(folds: Sequence[tuple[Op, Op]], values: Mapping[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """The factor and the bias that each BatchNorm folds into its operation, by that operation's identity.

    Those of one kind are computed together, since each is too small to be worth an operation of its own in every pass.
    """
    alike: dict[Any, list[tuple[Op, list[Tensor | None]]]] = {}
    for op, norm in folds:
        parts = [None if slot is None else values[slot] for slot in _parameters(op, norm)]
        forms = tuple(None if part is None else (part.dtype, part.device) for part in parts)
        alike.setdefault((norm.args[-1], forms), []).append((op, parts))
    found = {}
    for (eps, _), group in alike.items():
        columns = zip(*(parts for _, parts in group), strict=True)
        gamma, beta, mean, var, own = (None if one[0] is None else torch.cat(one) for one in columns)
        assert mean is not None  # in eval mode there are statistics
        assert var is not None
        scale = torch.rsqrt(var + eps)
        scale = scale if gamma is None else scale * gamma
        shifted = (-mean if own is None else own - mean) * scale
        shifted = shifted if beta is None else shifted + beta
        sizes = [math.prod(parts[2].shape) for _, parts in group if parts[2] is not None]
        pieces = zip(torch.split(scale, sizes), torch.split(shifted, sizes), strict=True)
        found.update({id(op): piece for (op, _), piece in zip(group, pieces, strict=True)})
    return found


def _folded(args: Sequence[Any], scale: Tensor, bias: Tensor) -> list[Any]:
    """The arguments of a convolution or linear function with a BatchNorm folded in."""
    made = list(args)
    if len(made) > 3:  # a convolution: input, weight, bias, ...
        transposed, weight = made[6], made[1]
        if transposed:
            groups = made[8]
            wide = scale.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).reshape(weight.shape[0], -1)
            made[1] = weight * wide.reshape(*wide.shape, *(1,) * (weight.dim() - 2))
        else:
            made[1] = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        made[2] = bias
    else:
        made[2] = made[2] * scale
        made[0] = bias
    return made
