"""Attributions: how much each part of an input, of a layer or of a table counts for the target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from pellucid.errors import InputError, nearest
from pellucid.protocol.leaves import Leaves
from pellucid.results.base import ENTRY_PER_EXAMPLE, Explanation, per_example

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Style: TypeAlias = Literal["overlay", "heatmap", "side", "bars", "beeswarm", "tokens"]


class Top(NamedTuple):
    """The parts that count most: their values (B, k) and their places (B, k) in each example's flattened map."""

    values: Tensor
    places: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Explanation):
    """How much each part counts for the target: positive speaks for it, negative against it.

    Attributes:
        values: of the inputs' shape for `over="input"`, such as (B, C, H, W) or (B, features); a grid (B, h, w) or maps
            (B, C, h, w) for a layer; (B, n) for segments, tokens, features, concepts or training examples; `Leaves` for
            a model with several inputs.
        over: what the values are over: `"input"`, the name of a layer, `"segments"`, `"tokens"`, `"features"`,
            `"concepts"` or `"training examples"`.
        segments: (B, H, W), or (H, W) for all examples: which segment each pixel belongs to, from 0; -1 is none.
        names: the names of the n parts.
        tokens: what the tokens of each example are; the values of an example with fewer than the others end in zeros.
            A token that continues a word starts with "##".
        reduce: how the values of a position's channels become one. `"sum"`: they are shares that add up. `"once"`: the
            channels were changed together, and each has the value of them all. `"norm"`: they are slopes, whose sum
            means nothing where channels have no unit in common, as the numbers of a word's embedding; there their
            Euclidean norm counts, while maps of photos add them up.
        error: the Monte-Carlo standard error of each value, in the form of the values; None where none was estimated.
        size: the height and width of the inputs, where these are not kept.
    """

    values: Any = field(metadata=per_example())
    over: str = "input"
    segments: Tensor | None = field(default=None, kw_only=True, metadata=per_example())
    names: tuple[str, ...] | None = field(default=None, kw_only=True)
    tokens: tuple[tuple[str, ...], ...] | None = field(default=None, kw_only=True, metadata=ENTRY_PER_EXAMPLE)
    reduce: Literal["sum", "once", "norm"] = field(default="sum", kw_only=True)
    error: Any = field(default=None, kw_only=True, metadata=per_example())
    size: tuple[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.values, (Tensor, Leaves)):
            raise InputError(
                f"the values of an Attribution are of type {type(self.values).__name__}; expected a tensor"
            )
        if self.segments is not None and self.segments.dim() == 2 and isinstance(self.values, Tensor):
            object.__setattr__(self, "segments", self.segments.expand(len(self.values), -1, -1))
        super().__post_init__()
        if self.over == "segments":
            self._check_segments()
        if self.names is not None and isinstance(self.values, Tensor):
            object.__setattr__(self, "names", tuple(self.names))
            if self.values.dim() == 2 and len(self.names) != self.values.shape[1]:
                raise InputError(f"{len(self.names)} names were given for {self.values.shape[1]} values")
        if self.tokens is not None:
            self._check_tokens(self.tokens)

    def _check_tokens(self, tokens: tuple[tuple[str, ...], ...]) -> None:
        most = max(map(len, tokens), default=0)
        if not isinstance(self.values, Tensor) or self.values.dim() != 2 or self.values.shape[1] < most:
            raise InputError(f"values over tokens have shape {self._shape()}; expected (B, {most}) or more")

    def _check_segments(self) -> None:
        values, segments = self.values, self.segments
        if not isinstance(values, Tensor) or values.dim() != 2:
            raise InputError(f"values over segments have shape {self._shape()}; expected (B, segments)")
        if segments is None:
            return
        if segments.dim() != 3:
            raise InputError(f"segments have shape {tuple(segments.shape)}; expected ({len(values)}, H, W) or (H, W)")
        if segments.numel() and not segments.is_meta and int(segments.max()) >= values.shape[1]:
            raise InputError(f"segment {int(segments.max())} has no value; there are {values.shape[1]}, from 0")

    def heatmap(self, size: tuple[int, int] | None = None, *, name: str | None = None) -> Tensor:
        """The signed map of each example, (B, H, W): channels summed, nothing rescaled.

        A layer's grid is enlarged bilinearly (half-pixel centres), segments are painted.

        Args:
            size: the height and width; None is the inputs', or the values' own where those are not known.
            name: which of several inputs.

        Raises:
            InputError: when the values have no place on a map, or there are several inputs and none is named.
        """
        from pellucid.results.draw import resize

        values = self._of(name)
        if self.over == "segments" and self.segments is not None:
            maps = self._painted()
        elif values.dim() == 4:
            maps = self._positions(values)
        elif values.dim() == 3 and self.over != "input":
            maps = values
        else:
            raise InputError(
                f"values of shape {tuple(values.shape)} over {self.over} have no place on a map; expected (B, C, H, W),"
                " a layer's (B, h, w), or segments with their map; use plot() or to_dataframe() instead"
            )
        size = size or self._input_size(name)
        return maps if size is None else resize(maps, size)

    def channels(self, *, name: str | None = None) -> Tensor:
        """What each channel contributes in all, (B, C): the sum over its positions.

        Raises:
            InputError: when the values have no axis of channels.
        """
        values = self._of(name)
        if values.dim() < 2 or (values.dim() == 3 and self.over != "input"):
            raise InputError(f"values of shape {tuple(values.shape)} over {self.over} have no channels")
        return values.flatten(2).sum(dim=2) if values.dim() > 2 else values

    def of_segments(self, values: Tensor | None = None) -> Tensor:
        """What each segment counts, once, (B, n), where its pixels have the value of the whole segment.

        Segments that an example does not have get 0.

        Args:
            values: others of the same shape, such as the result's `error`; None is the result's values.

        Raises:
            InputError: when there is no map of segments.
        """
        given = self._of(None) if values is None else values
        if self.over == "segments":
            return given
        if self.segments is None or given.dim() != 4:
            raise InputError("there is no map of segments that these values belong to; they are read at their features")
        places = self.segments.to(given.device).long().flatten(1) + 1  # what is in no segment comes first
        found = given.new_zeros(len(given), int(places.max()) + 1)
        return found.scatter(1, places, given[:, 0].flatten(1))[:, 1:]

    def top(self, k: int, *, by: Literal["value", "magnitude"] = "value", name: str | None = None) -> Top:
        """The k parts that count most in each example: pixels of the map (channels summed), or entries of a table.

        Args:
            k: how many; fewer where there are fewer.
            by: whether the greatest values come first, or the greatest magnitudes.
            name: which of several inputs.
        """
        values = self._of(name)
        flat = (self._positions(values) if values.dim() == 4 else values).flatten(1)
        rank = flat.abs() if by == "magnitude" else flat
        if self.tokens is not None:  # padding comes after all tokens
            ends = torch.tensor([len(one) for one in self.tokens], device=rank.device)
            rank = rank.masked_fill(torch.arange(rank.shape[1], device=rank.device) >= ends[:, None], -torch.inf)
        order = rank.argsort(dim=1, descending=True, stable=True)
        places = order[:, : max(0, k)]
        return Top(flat.gather(1, places), places)

    def plot(
        self,
        examples: Iterable[int] | None = None,
        style: Style | None = None,
        *,
        name: str | None = None,
        bound: float | None = None,
        columns: int = 4,
    ) -> Figure:
        """Draws the examples and returns a matplotlib figure, without showing it.

        Maps are signed, symmetric about zero, and their colours end at the 99.5th percentile of each example's
        magnitudes; the colour bar has the true values.

        Args:
            examples: which; None is the first eight, and all for a beeswarm.
            style: maps: `"overlay"` over the photo, `"heatmap"` alone, or `"side"` by side; without photos, alone.
                Tables: `"bars"` for each example, or `"beeswarm"`: a line for each feature with a point for each
                example, coloured by the feature's value. Texts: `"tokens"`, or their `"bars"`. None takes what the
                values are: an overlay, coloured tokens, bars, or a beeswarm for more than eight examples.
            name: which of several inputs; None is the first that can be drawn.
            bound: one magnitude at which all colours end, so that examples can be compared.
            columns: how many examples stand in a row.

        Raises:
            ParameterError: when the style is unknown.
            InputError: when the values cannot be drawn in this style.
        """
        from pellucid.results import pictures

        return pictures.attribution(self, examples, style, name, bound, columns)

    def to_dataframe(self) -> pd.DataFrame:
        """The values (B, n) with a row for each example and a named column for each part.

        For texts there is a row for each token: its example, position, token and value.

        Raises:
            InputError: when the values are not a table.
        """
        import pandas as pd

        if not isinstance(self.values, Tensor) or self.values.dim() != 2:
            raise InputError(f"values of shape {self._shape()} are not a table; expected (B, n)")
        if self.tokens is not None:
            listed = zip(self.tokens, self.values.detach().cpu().float().tolist(), strict=True)
            rows = [
                (example, position, token, row[position])
                for example, (tokens, row) in enumerate(listed)
                for position, token in enumerate(tokens)
            ]
            return pd.DataFrame(rows, columns=["example", "position", "token", "value"])
        return pd.DataFrame(self.values.detach().cpu().float().numpy(), columns=list(self.part_names()))

    def part_names(self) -> tuple[str, ...]:
        """The names of the n parts, made up where none were given."""
        if self.names is not None:
            return self.names
        word = {"input": "feature", "features": "feature", "training examples": "example"}.get(self.over, "")
        word = word or (self.over[:-1] if self.over in ("segments", "tokens", "concepts") else "unit")
        return tuple(f"{word} {place}" for place in range(self.values.shape[1]))

    def _of(self, name: str | None) -> Tensor:
        if isinstance(self.values, Tensor):
            values: Tensor = self.values
            return values
        if name is None and len(self.values) == 1:
            name = next(iter(self.values))
        if name is None or name not in self.values:
            said = "several inputs were explained; name one" if name is None else f"no input is named '{name}'"
            raise InputError(f"{said}: {', '.join(self.values)}.{nearest(name or '', self.values)}")
        leaf: Tensor = self.values[name]
        return leaf

    def _positions(self, values: Tensor) -> Tensor:
        """One value for each position of photos, (B, H, W)."""
        return values[:, 0] if self.reduce == "once" else values.sum(dim=1)

    def _painted(self) -> Tensor:
        """The segments' values at their pixels, (B, H, W); 0 where there is no segment."""
        if self.segments is None:
            raise InputError("the segments' map is not kept; expected `segments`")
        segments = self.segments.long()
        painted: Tensor = self.values.gather(1, segments.flatten(1).clamp_min(0)).view(segments.shape)
        return torch.where(segments >= 0, painted, torch.zeros_like(painted))

    def _input_size(self, name: str | None) -> tuple[int, int] | None:
        inputs: Any = self.inputs
        if isinstance(inputs, Leaves):
            pictures = [inputs[name]] if name in inputs else [leaf for leaf in inputs.values() if leaf.dim() == 4]
            inputs = pictures[0] if pictures else None
        if isinstance(inputs, Tensor) and inputs.dim() == 4:
            return (inputs.shape[-2], inputs.shape[-1])
        return None if self.over == "input" else self.size

    def _without_references(self) -> Self:
        return replace(super()._without_references(), size=self._input_size(None) or self.size)

    def _about(self) -> str:
        return f"over {self.over}"

    def _picture_html(self) -> str:
        if self.tokens is None:
            return super()._picture_html()
        from pellucid.results.draw_tokens import markup

        return markup(self)
