"""A captured model: its graph, and the programs that rule sets made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from pellucid.rules.graph import Graph
from pellucid.rules.lower import Rewriting, lowered, rewriting, sites_of
from pellucid.rules.node import Site
from pellucid.rules.program import Program
from pellucid.rules.rule import RuleSet

MOST_KEPT = 4
"""How many lowered graphs, and how many rule sets' programs, a captured model keeps."""


@dataclass(eq=False)
class Captured:
    """A model captured for inputs of one form.

    Attributes:
        graph: its operations.
        leaves: how many of the graph's inputs are explained.
        form: what the caller keeps with it.
    """

    graph: Graph
    leaves: int
    form: Any = None
    _lowered: dict[Rewriting, tuple[Graph, list[Site]]] = field(default_factory=dict)
    _programs: dict[RuleSet, Program] = field(default_factory=dict)

    @cached_property
    def sites(self) -> list[Site]:
        """What is known of the graph's operations."""
        return sites_of(self.graph, self.leaves)

    def program(self, rules: RuleSet, inputs: Sequence[Tensor]) -> Program:
        """The program of a rule set; inputs of the captured form are needed where it is the first of its kind."""
        known = self._programs.get(rules)
        if known is None:
            change = rewriting(self.graph, self.sites, rules)
            if change not in self._lowered:
                _keep(self._lowered, change, lowered(self.graph, self.sites, change, self.leaves, inputs))
            known = Program(*self._lowered[change], self.leaves, rules)
            _keep(self._programs, rules, known)
        return known


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    """Adds to a cache, of which the oldest entry goes when it is full."""
    while len(cache) >= MOST_KEPT:
        del cache[next(iter(cache))]
    cache[key] = value
