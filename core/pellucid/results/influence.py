"""Influence: how much each training example counts for each query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.attribution import Top
from pellucid.results.base import ONLY_FOR_PLOTS, Explanation, per_example

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Influence(Explanation):
    """How much each training example counts for each query: above zero it helped, below zero it worked against.

    Attributes:
        values: (Q, N), a row for each query and a column for each training example in the caller's order.
        self_influence: (N,) the influence of each training example on itself, where it was computed; great where a
            label looks wrong.
        train_labels: (N,) the classes of the training examples, or None.
        train: (N, C, H, W) the training examples, for plots; or None.
    """

    values: Tensor = field(metadata=per_example())
    self_influence: Tensor | None = field(default=None, kw_only=True)
    train_labels: Tensor | None = field(default=None, kw_only=True)
    train: Tensor | None = field(default=None, kw_only=True, metadata=ONLY_FOR_PLOTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values.dim() != 2:
            raise InputError(f"influence has shape {self._shape()}; expected (queries, training examples)")
        for name in ("self_influence", "train_labels", "train"):
            part = getattr(self, name)
            if part is not None and len(part) != self.values.shape[1]:
                raise InputError(f"{name} is of {len(part)} training examples; the influence of {self.values.shape[1]}")

    def top(self, query: int | slice | Tensor, k: int = 10) -> Top:
        """The k training examples that helped most, the greatest first: values and places, (k,) for one query."""
        return _extreme(self.values[query], k, descending=True)

    def opponents(self, query: int | slice | Tensor, k: int = 10) -> Top:
        """The k training examples that worked against most, the most negative first."""
        return _extreme(self.values[query], k, descending=False)

    def plot(self, examples: Iterable[int] | None = None, k: int = 4) -> Figure:
        """Draws each query with the training examples that helped most and worked against most.

        Without the training examples' photos, their influences are drawn as bars.

        Args:
            examples: which queries; None is the first eight.
            k: how many training examples on each side.
        """
        from pellucid.results import galleries

        return galleries.influence(self, examples, k)

    def to_dataframe(self) -> pd.DataFrame:
        """A line for each query and training example: query, train, value."""
        import pandas as pd

        queries, train = self.values.shape
        return pd.DataFrame(
            {
                "query": torch.arange(queries).repeat_interleave(train).numpy(),
                "train": torch.arange(train).repeat(queries).numpy(),
                "value": self.values.detach().cpu().reshape(-1).numpy(),
            }
        )

    def _shape(self) -> str:
        return f"{self.values.shape[0]} queries x {self.values.shape[1]} training examples"


def _extreme(values: Tensor, k: int, *, descending: bool) -> Top:
    # What is not known, as that of examples that were not left out, comes last either way.
    known = values.masked_fill(values.isnan(), -torch.inf if descending else torch.inf)
    places = known.argsort(dim=-1, descending=descending, stable=True)[..., : max(0, k)]
    return Top(values.gather(-1, places), places)
