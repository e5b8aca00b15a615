"""Rules and rule sets: how what a node's output carries is handed to its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from pellucid.errors import ParameterError, nearest
from pellucid.rules.kinds import known, names
from pellucid.rules.node import Node

Given: TypeAlias = Sequence[Tensor | None] | Mapping[Node, Sequence[Tensor | None]]
"""What a rule hands on."""

CARRIES = ("gradient", "relevance")


class Rule(ABC):
    """What one kind of node does with what its output carries.

    A rule is a frozen dataclass of parameters and holds no state, so that one instance serves any number of nodes.
    """

    needs: ClassVar[str] = "io"
    """Which values the rule reads: "i" the inputs', "o" the outputs', "s" those of the nodes that made the inputs
    (`node.sources`, through moves the ones before), any of them together, "" none. The fewer, the less memory a pass
    takes. What the node's own `vjp` needs is always there."""

    multiple_of: ClassVar[Literal["", "inputs", "carried"]] = ""
    """What the parts of relevance are known to be multiples of, number by number: "inputs", each part of its input, so
    that it vanishes where the input is zero; "carried", of what arrived, for operations on each number alone; "" leaves
    it open. It lets other rules know where nothing is carried. A subclass that hands on otherwise says it anew."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls) and "multiple_of" not in vars(cls):
            cls.multiple_of = ""  # what was promised of another's arithmetic

    def needs_at(self, node: Node) -> str:
        """Which values the rule reads at a node that has none yet: `needs`, unless a rule knows better."""
        return self.needs

    @abstractmethod
    def __call__(self, node: Node, carried: Tensor) -> Given:
        """What each active input of a node gets.

        Args:
            node: the node with its values.
            carried: what its output carries, of the output's shape.

        Returns:
            For each of `node.inputs` a tensor of its shape, or None for nothing. Or a mapping of nodes to such parts,
            the node itself and some that it comes from (`node.sources`, their sources, ...), whose inputs get theirs
            directly.
        """


@dataclass(frozen=True)
class Gradient(Rule):
    """The operation's vector-Jacobian product: the plain gradient."""

    needs: ClassVar[str] = ""

    def __call__(self, node: Node, carried: Tensor) -> Given:
        """One gradient of the operation."""
        return node.vjp(carried)


@dataclass(frozen=True, eq=False)
class RuleSet:
    """Which rule goes where.

    Looks with the same rule set, the very object, at the same sample share a pass.

    Attributes:
        name: what it is called in messages.
        table: rules by key; of the keys that fit a node the most specific counts: `"layer:GLOB"` (the name of the
            module that ran it), `"first"` and `"last"` (of the weighted nodes), the operation's name, its family, its
            kind, `"*"`.
        carries: `"gradient"`, a multiplier that starts as the score's gradient by the output; or `"relevance"`, which
            starts as that times the output.
        needs_reference: whether looks must name a reference, at which the model then runs in lockstep.
        canonizers: how the graph is rewritten first: `"batch_norm"` folds a BatchNorm into the convolution or linear
            function that alone feeds it.
        metered: whether the ledger sums what is carried, which takes one more pass over it.
        fills: whether a batch may be filled up with copies of its last row, to the size of one that was captured.

    Raises:
        ParameterError: for a key that fits no operation, a value that is no rule, or an unknown word.
    """

    name: str
    table: Mapping[str, Rule] = field(default_factory=dict)
    carries: str = "gradient"
    needs_reference: bool = False
    canonizers: tuple[str, ...] = ()
    metered: bool = True
    fills: bool = True

    def __post_init__(self) -> None:
        for key, rule in self.table.items():
            if not key.startswith("layer:") and not known(key):
                raise ParameterError(
                    f"rule set '{self.name}': there is no operation, family or kind '{key}'.{nearest(key, names())} "
                    "Keys are names of ATen operations ('relu'), families ('conv'), kinds ('weighted'), 'first', "
                    "'last', 'layer:GLOB' and '*'"
                )
            if not isinstance(rule, Rule):
                raise ParameterError(
                    f"rule set '{self.name}': the rule for '{key}' is a {type(rule).__name__}; expected an instance of "
                    "a subclass of pellucid.Rule"
                )
        if self.carries not in CARRIES:
            raise ParameterError(
                f"rule set '{self.name}': carries={self.carries!r}; expected 'gradient' or 'relevance'"
            )
        for canonizer in self.canonizers:
            if canonizer != "batch_norm":
                raise ParameterError(
                    f"rule set '{self.name}': there is no canonizer {canonizer!r}; expected 'batch_norm'"
                )

    def rule_for(self, node: Node) -> Rule | None:
        """The rule of a node, or None where the table has none. The node has no values yet."""
        table = self.table
        for key, rule in table.items():
            if key.startswith("layer:") and fnmatchcase(node.layer, key[6:]):
                return rule
        keys = ["first"] if node.first else []
        keys += ["last"] if node.last else []
        keys += [node.op, node.family, node.kind, "*"]
        return next((table[key] for key in keys if key in table), None)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """As a technique's parameter, a rule set is taken as it is."""
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)

    def __or__(self, table: Mapping[str, Rule]) -> RuleSet:
        """The same set with further rules, which come before its own."""
        return replace(self, table={**table, **{key: rule for key, rule in self.table.items() if key not in table}})
