"""Exemplars: examples of a data set that stand for it, resemble an input, or excite a unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.base import ENTRY_PER_EXAMPLE, ONLY_FOR_PLOTS, Explanation, per_example

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Exemplars(Explanation):
    """Examples chosen from a data set: prototypes and criticisms, similar ones, those that excite a unit most.

    Attributes:
        values: (rows, k) the weight, similarity or activation of each chosen example; a row for each query, unit or
            class, or a single one for the data set.
        indices: (rows, k) which examples these are, in the caller's order; -1 is an empty place.
        kind: what they are, such as `"similar"` or `"maximal"`; or what each column is: `("prototype", "criticism")`.
        over: the layer whose activations were compared or excited, or "input".
        names: what each row is of, or None.
        crops: (rows, k, C, h, w) the part of each example that counts, such as a unit's receptive field; or None.
        boxes: (rows, k, 4) where in its example each crop lies: top, left, bottom and right, the last two exclusive; or
            None.
        examples: (N, C, H, W) the data set, for plots; or None.
    """

    values: Tensor = field(metadata=per_example())
    indices: Tensor = field(metadata=per_example())
    kind: str | tuple[str, ...] = "similar"
    over: str = field(default="input", kw_only=True)
    names: tuple[str, ...] | None = field(default=None, kw_only=True, metadata=ENTRY_PER_EXAMPLE)
    crops: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    boxes: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    examples: Tensor | None = field(default=None, kw_only=True, metadata=ONLY_FOR_PLOTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values.dim() != 2 or self.indices.shape != self.values.shape or self.indices.is_floating_point():
            raise InputError(
                f"exemplars have values {self._shape()} and {self.indices.dtype} indices {tuple(self.indices.shape)}; "
                "expected (rows, k) and integers (rows, k)"
            )
        if self.crops is not None and self.crops.shape[:2] != self.values.shape:
            raise InputError(
                f"crops have shape {tuple(self.crops.shape)}; expected {tuple(self.values.shape)} + (C, h, w)"
            )
        if self.boxes is not None and self.boxes.shape != (*self.values.shape, 4):
            raise InputError(f"boxes have shape {tuple(self.boxes.shape)}; expected {(*self.values.shape, 4)}")
        if not isinstance(self.kind, str):
            object.__setattr__(self, "kind", tuple(self.kind))
            if len(self.kind) != self.values.shape[1]:
                raise InputError(f"{len(self.kind)} kinds were given for {self.values.shape[1]} columns")
        known = self.examples is not None and self.indices.numel() > 0 and not self.indices.is_meta
        if known and self.examples is not None and int(self.indices.max()) >= len(self.examples):
            raise InputError(f"example {int(self.indices.max())} was chosen; there are {len(self.examples)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each column is."""
        return (self.kind,) * self.values.shape[1] if isinstance(self.kind, str) else self.kind

    def of(self, kind: str) -> Tensor:
        """The indices of one kind, (rows, how many); -1 is an empty place.

        Raises:
            InputError: when no column is of that kind.
        """
        places = [place for place, one in enumerate(self.kinds) if one == kind]
        if not places:
            raise InputError(f"no exemplar is a '{kind}'; there are {', '.join(sorted(set(self.kinds)))}")
        return self.indices[:, places]

    def row_names(self) -> tuple[str, ...]:
        """What each row is of, made up where no names were given."""
        return self.names or tuple(f"row {place}" if len(self) > 1 else "" for place in range(len(self)))

    def plot(self, rows: Iterable[int] | None = None, k: int | None = None) -> Figure:
        """Draws the chosen examples, or their crops, a line for each row; the row's own input first where it is kept.

        Without photos, the values are drawn as bars named by the examples' indices.

        Args:
            rows: which; None is the first eight.
            k: at most how many in a row, shared by the kinds where there are several; None is ten.
        """
        from pellucid.results import galleries

        return galleries.exemplars(self, rows, k)

    def to_dataframe(self) -> pd.DataFrame:
        """A line for each chosen example: row, kind, rank, index, value; empty places are left out."""
        import pandas as pd

        names = self.row_names() if self.names else range(len(self))
        lines = [
            (name, kind, rank, int(self.indices[row, rank]), float(self.values[row, rank]))
            for row, name in enumerate(names)
            for rank, kind in enumerate(self.kinds)
            if int(self.indices[row, rank]) >= 0
        ]
        return pd.DataFrame(lines, columns=["row", "kind", "rank", "index", "value"])

    def _about(self) -> str:
        return " and ".join(dict.fromkeys(self.kinds))
