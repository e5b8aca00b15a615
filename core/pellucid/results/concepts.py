"""Concepts: how much human or found concepts count for a decision, and whether more than chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.base import ENTRY_PER_EXAMPLE, Explanation, per_example

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Concepts(Explanation):
    """How much each concept counts for each class, or for each example, held against random concepts.

    Attributes:
        values: (rows, K) the scores; a row for each class, or for each example.
        names: (K,) the concepts' names.
        over: the layer in whose activations the concepts are directions.
        rows: what each row is of, or None.
        p_values: (rows, K) of the null hypothesis that a random concept scores the same, corrected for the number of
            tests; or None.
        significant: (rows, K) whether the concept differs from random ones at the technique's level; or None.
        spread: (rows, K) the standard deviation over the runs; or None.
        magnitudes: (rows, K) the mean directional derivative, which does not saturate as a share of signs does; or
            None.
        control: (rows, K) the mean score of the random concepts that each was held against; or None.
        vectors: (d,) each concept's direction in its layer; or None.
        patches: for each concept pictures (n, C, h, w) that show it; or None.
        masks: (examples, K, H, W) which pixels of each explained example belong to each concept; or None.
    """

    values: Tensor = field(metadata=per_example())
    names: tuple[str, ...] = ()
    over: str = field(default="", kw_only=True)
    rows: tuple[str, ...] | None = field(default=None, kw_only=True, metadata=ENTRY_PER_EXAMPLE)
    p_values: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    significant: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    spread: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    magnitudes: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    control: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    vectors: tuple[Tensor, ...] | None = field(default=None, kw_only=True)
    patches: tuple[Tensor, ...] | None = field(default=None, kw_only=True)
    masks: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "names", tuple(self.names))
        if self.values.dim() != 2 or len(self.names) != self.values.shape[1]:
            raise InputError(f"scores of shape {self._shape()} do not fit {len(self.names)} concepts")
        for name in ("p_values", "significant", "spread", "magnitudes", "control"):
            part = getattr(self, name)
            if part is not None and part.shape != self.values.shape:
                raise InputError(f"{name} has shape {tuple(part.shape)}; expected {tuple(self.values.shape)}")
        for name in ("vectors", "patches"):
            part = getattr(self, name)
            if part is not None and len(part) != len(self.names):
                raise InputError(f"{name} is of {len(part)} concepts; there are {len(self.names)}")
            if part is not None:
                object.__setattr__(self, name, tuple(part))
        if self.masks is not None and (self.masks.dim() != 4 or self.masks.shape[1] != len(self.names)):
            raise InputError(
                f"masks have shape {tuple(self.masks.shape)}; expected (examples, {len(self.names)}, height, width)"
            )

    def row_names(self) -> tuple[str, ...]:
        """What each row is of: its given name, its target class, or its number."""
        named = zip(self.rows or self.class_names(), range(len(self)), strict=True)
        return tuple(name or f"row {place}" for name, place in named)

    def plot(self, k: int = 12) -> Figure:
        """Draws each row's scores as bars, and pictures of the concepts where they are kept.

        A concept that is not significant is pale; a grey mark is the score of random concepts, a line the spread.

        Args:
            k: at most how many concepts, those with the greatest scores in sum.
        """
        from pellucid.results import galleries

        return galleries.concepts(self, k)

    def to_dataframe(self) -> pd.DataFrame:
        """A line for each row and concept, with every statistic that is known."""
        import pandas as pd

        count = len(self.names)
        table = pd.DataFrame(
            {
                "row": [name for name in self.row_names() for _ in range(count)],
                "concept": list(self.names) * len(self),
                "score": self.values.detach().cpu().reshape(-1).numpy(),
            }
        )
        statistics = {
            "magnitude": self.magnitudes,
            "p_value": self.p_values,
            "significant": self.significant,
            "spread": self.spread,
            "control": self.control,
        }
        for name, part in statistics.items():
            if part is not None:
                table[name] = part.detach().cpu().reshape(-1).numpy()
        return table
