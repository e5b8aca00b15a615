"""Signs: which values of a graph are nowhere negative, and where what is carried is only where they are positive.

Found once, from the operations and the rules alone, so that rules need not look for signs in every pass. What cannot be
said is not claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pellucid.rules.graph import Slot
from pellucid.rules.rule import Gradient, Rule

if TYPE_CHECKING:
    from pellucid.rules.node import Site

KEEPS = frozenset(
    {"view", "permute", "transpose", "t", "clone", "squeeze", "unsqueeze", "alias", "contiguous", "slice", "select",
     "split", "unbind", "cat", "stack", "expand", "roll", "flip", "channel_shuffle", "pixel_shuffle",
     "pixel_unshuffle", "repeat", "to"}
)  # fmt: skip
"""Operations all of whose results are numbers of their operands, as they are."""

NEVER_NEGATIVE = frozenset(
    {"relu", "sigmoid", "hardsigmoid", "softmax", "exp", "exp2", "abs", "square", "sqrt", "softplus"}
)
"""Operations that give nothing negative, whatever they are given."""

NO_LESS = KEEPS | frozenset(
    {"max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "mean", "sum",
     "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
     "maximum", "minimum", "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d"}
)  # fmt: skip
"""Operations that give nothing negative of operands none of which are."""


def nonnegative(sites: Sequence[Site]) -> frozenset[int]:
    """The slots of a graph whose values are known to be nowhere negative."""
    found: set[int] = set()
    for site in sites:
        if _gives_nothing_negative(site, found):
            found.update(site.made.out if site.op in ("split", "unbind") else site.made.out[:1])
    return frozenset(found)


def _gives_nothing_negative(site: Site, found: set[int]) -> bool:
    if site.op in NEVER_NEGATIVE or ((least := _floor(site)) is not None and least >= 0):
        return True
    args = site.made.args
    operands = [part for arg in args for part in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    known = all(part.index in found for part in operands if isinstance(part, Slot))
    if site.op == "add":
        further = [*(arg for arg in args[1:] if not isinstance(arg, Slot)), *site.kwargs.values()]
        return known and all(isinstance(number, (int, float)) and number >= 0 for number in further)
    if site.op in ("constant_pad_nd", "mul", "div"):
        last = 0 if site.op == "constant_pad_nd" and len(args) < 3 else args[-1]
        return known and (isinstance(last, Slot) or (isinstance(last, (int, float)) and last >= 0))
    return known and site.op in NO_LESS


def _floor(site: Site) -> float | None:
    """The least value that a clamp gives, or None for another operation."""
    args = site.made.args
    if site.op == "hardtanh":
        least = args[1] if len(args) > 1 else -1.0
    elif site.op in ("clamp", "clamp_min"):
        least = args[1] if len(args) > 1 else site.kwargs.get("min")
    else:
        return None
    return least if isinstance(least, (int, float)) else None


def rectifies(site: Site) -> bool:
    """Whether an operation gives zero exactly where its operand is not positive."""
    return site.op == "relu" or _floor(site) == 0


def rectified(
    sites: Sequence[Site], rules: Sequence[Rule | None], outputs: Sequence[int], positive: frozenset[int]
) -> frozenset[int]:
    """The slots that carry relevance only where their values are positive, under rules that say what they give.

    Args:
        sites: the graph's operations.
        rules: the operations' rules.
        outputs: the slots at which relevance starts, as a multiple of their values.
        positive: the slots whose values are nowhere negative.
    """
    # What is carried vanishes where the value is zero (1), also where it is negative (2), or neither need be so (0).
    sure: dict[int, int] = {}

    def at(slot: int, level: int) -> None:
        level = 2 if level and slot in positive else level
        sure[slot] = min(sure.get(slot, 2), level)

    for slot in outputs:
        at(slot, 1)
    for site, rule in zip(reversed(sites), reversed(rules), strict=True):
        level = min((sure.get(slot, 2) for slot in site.out), default=2)
        for slot in site.slots:
            at(slot, _handed(site, rule, level))
    return frozenset(slot for slot, level in sure.items() if level == 2)


def _handed(site: Site, rule: Rule | None, level: int) -> int:
    """How sure what a node hands on vanishes, by how sure what it takes in does."""
    if site.kind == "move":
        return level if site.op in KEEPS or site.op == "constant_pad_nd" else 0
    if rule is None:
        return 1  # by shares of the linearisation
    if type(rule) is Gradient:
        return 2 if rectifies(site) else level if site.op.startswith("max_pool") else 0
    if rule.multiple_of == "inputs":
        return 1
    return 2 if rule.multiple_of == "carried" and rectifies(site) and level else 0
