"""Surrogates: simple models that imitate the explained one and can be read."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.base import Explanation, per_example, record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@record
@dataclass(frozen=True)
class Node:
    """A node of a surrogate that is a tree or a graph; nodes refer to each other by their places.

    Attributes:
        text: what the node says: a question such as `"petal length <= 2.5"`, or an answer.
        children: the places of the nodes that follow.
        labels: what is written on the way to each child, such as `("yes", "no")`.
        size: how many examples reach it, or another weight.
        value: its number, such as a share or an activation; or None.
    """

    text: str
    children: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    size: float = 0.0
    value: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Surrogate(Explanation):
    """A simple model that imitates the explained one: a tree, a linear model or a graph.

    Attributes:
        values: (B, outputs) what the surrogate predicts for each example.
        outputs: (B, outputs) what the explained model gives, or None.
        description: what the surrogate is, in a line.
        rules: the surrogate as text, a line each.
        fidelity: how well it imitates, by measure, such as `{"R2": 0.93, "agreement on held-out examples": 0.97}`.
        nodes: of a tree or a graph, the root first; or none.
        coefficients: (outputs, features) of a linear model, or None.
        features: the features' names, or None.
    """

    values: Tensor = field(metadata=per_example())
    outputs: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    description: str = field(default="", kw_only=True)
    rules: tuple[str, ...] = field(default=(), kw_only=True)
    fidelity: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    nodes: tuple[Node, ...] = field(default=(), kw_only=True)
    coefficients: Tensor | None = field(default=None, kw_only=True)
    features: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rules", "nodes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for place, node in enumerate(self.nodes):
            if wrong := [child for child in node.children if not 0 <= child < len(self.nodes)]:
                raise InputError(f"node {place} leads to node {wrong[0]}; there are {len(self.nodes)}")
            if node.labels and len(node.labels) != len(node.children):
                raise InputError(f"node {place} has {len(node.children)} children and {len(node.labels)} labels")
        if self.coefficients is not None:
            wide = self.coefficients.shape[-1]
            if self.coefficients.dim() != 2 or (self.features is not None and len(self.features) != wide):
                raise InputError(
                    f"coefficients of shape {tuple(self.coefficients.shape)} for {len(self.features or ())} features; "
                    "expected (outputs, features)"
                )

    def text(self) -> str:
        """The surrogate in words: what it is, how well it imitates, its rules."""
        told = [f"{name}: {value:.3g}" for name, value in self.fidelity.items()]
        return "\n".join(filter(None, (self.description, ", ".join(told), *self.rules)))

    def feature_names(self) -> tuple[str, ...]:
        """The features' names, made up where none were given."""
        wide = 0 if self.coefficients is None else self.coefficients.shape[1]
        return self.features or tuple(f"feature {place}" for place in range(wide))

    def plot(self, output: int | None = None) -> Figure:
        """Draws the tree or graph, or else the coefficients as bars, or else its predictions against the model's.

        Args:
            output: which output of a linear model; None is all, at most six.
        """
        from pellucid.results import trees

        return trees.surrogate(self, output)

    def to_dataframe(self) -> pd.DataFrame:
        """The coefficients with a line for each output and feature, or the nodes, or the predictions."""
        import pandas as pd

        if self.coefficients is not None:
            return pd.DataFrame(self.coefficients.detach().cpu().numpy(), columns=list(self.feature_names()))
        if self.nodes:
            return pd.DataFrame(
                [(node.text, node.children, node.size, node.value) for node in self.nodes],
                columns=["text", "children", "size", "value"],
            )
        both = self.values if self.outputs is None else torch.cat([self.values, self.outputs], dim=1)
        wide = self.values.shape[1]
        names = [f"surrogate {place}" for place in range(wide)]
        names += [f"model {place}" for place in range(both.shape[1] - wide)]
        return pd.DataFrame(both.detach().cpu().numpy(), columns=names)

    def _about(self) -> str:
        return self.description

    def _repr_html_(self) -> str:
        return super()._repr_html_() + f"<pre>{html.escape(self.text())}</pre>"
