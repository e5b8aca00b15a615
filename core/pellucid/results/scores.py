"""Scores: how good explanations are, by metrics, with controls beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results.base import Explanation, per_example, record
from pellucid.results.checks import Checks
from pellucid.results.meta import Meta

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Better: TypeAlias = Literal["higher", "lower"]


@record
@dataclass(frozen=True)
class Row:
    """What a row of scores is of.

    Attributes:
        explanation: the explanation's name.
        metric: the evaluator's name.
        better: which scores are good.
        control: whether the explanation is a control, which a useful one must beat.
        whole: whether it is one score of the whole data set, repeated for each example.
    """

    explanation: str
    metric: str
    better: Better
    control: bool = False
    whole: bool = False


class Rank(NamedTuple):
    """A place in a ranking: the mean score and its standard error over examples (NaN for fewer than two)."""

    explanation: str
    mean: float
    standard_error: float
    control: bool


class Curves(NamedTuple):
    """A metric's curves: the axis (n,), and for each explanation the mean over examples and its standard error (n,)."""

    x: Tensor
    mean: dict[str, Tensor]
    standard_error: dict[str, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Explanation):
    """A table of scores: a row for each explanation and metric, a column for each example.

    Attributes:
        values: (rows, B); NaN where an example could not be scored, and means leave it out.
        rows: what each row is of.
        curve_x: for each row the axis (n,) of the curve that its scores sum up, or None.
        curve_y: for each row its curves (B, n), or None.
    """

    values: Tensor = field(metadata=per_example(axis=-1))
    rows: tuple[Row, ...] = ()
    curve_x: tuple[Tensor | None, ...] = field(default=(), kw_only=True)
    curve_y: tuple[Tensor | None, ...] = field(default=(), kw_only=True, metadata=per_example())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "curve_x", "curve_y"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("curve_x", "curve_y"):
            if not getattr(self, name):
                object.__setattr__(self, name, (None,) * len(self.rows))
        if self.values.dim() != 2 or {len(self.values), len(self.curve_x), len(self.curve_y)} != {len(self.rows)}:
            raise InputError(f"scores of shape {self._shape()} do not fit {len(self.rows)} rows; expected (rows, B)")

    @classmethod
    def single(
        cls,
        *,
        metric: str,
        values: Tensor | float,
        better: Better,
        explanation: str = "",
        control: bool = False,
        curve: tuple[Any, Tensor] | None = None,
        checks: Iterable[Any] = (),
        meta: Meta | None = None,
    ) -> Self:
        """The scores of one explanation by one metric.

        Args:
            metric: the metric's name.
            values: (B,), or a number that scores the whole data set.
            better: which scores are good, `"higher"` or `"lower"`.
            explanation: the explanation's name.
            control: whether it is a control.
            curve: what the scores sum up: the axis (n,), and for each example its curve (B, n).
            checks: certificates.
            meta: provenance, as far as it is known.

        Raises:
            InputError: when the shapes do not fit together, or `better` is neither.
        """
        if better not in ("higher", "lower"):
            raise InputError(f"better={better!r} for metric '{metric}'; expected 'higher' or 'lower'")
        scores = torch.as_tensor(values)
        scores = scores if scores.is_floating_point() else scores.double()
        if scores.dim() > 1:
            raise InputError(f"metric '{metric}' gave scores of shape {tuple(scores.shape)}; expected (B,) or a number")
        xs = ys = None
        if curve is not None:
            xs, ys = torch.as_tensor(curve[0]), curve[1]
            if xs.dim() != 1 or ys.shape != (scores.numel(), len(xs)):
                raise InputError(
                    f"metric '{metric}' gave a curve of shape {tuple(ys.shape)} over an axis {tuple(xs.shape)}; "
                    f"expected (n,) and ({scores.numel()}, n)"
                )
        row = Row(explanation, metric, better, control, whole=scores.dim() == 0)
        return cls(
            scores.reshape(1, -1), (row,), curve_x=(xs,), curve_y=(ys,), checks=Checks(checks), meta=meta or Meta()
        )

    @classmethod
    def merge(cls, scores: Sequence[Scores]) -> Self:
        """One table of several: their rows one after the other, their costs added up, their checks named by row.

        Scores of a whole data set go with any number of examples.

        Raises:
            InputError: when there are none, a row occurs twice, or they are of different numbers of examples.
        """
        if not scores:
            raise InputError("there are no scores to merge; expected at least one")
        rows = [row for one in scores for row in one.rows]
        names = [(row.metric, row.explanation) for row in rows]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"metric '{twice[0]}' of explanation '{twice[1]}' occurs twice; name the results apart")
        loose = [all(row.whole for row in one.rows) for one in scores]
        counts = {len(one) for one, free in zip(scores, loose, strict=True) if not free} or {max(map(len, scores))}
        if len(counts) > 1:
            raise InputError(f"the scores are of {sorted(counts)} examples; expected the same examples for all")
        count = counts.pop()
        parts = [
            one if len(one) == count or not free else one[[0] * count] for one, free in zip(scores, loose, strict=True)
        ]
        first = next((part for part, free in zip(parts, loose, strict=True) if not free), parts[0])
        kind = first.values.dtype
        for part in parts:
            kind = torch.promote_types(kind, part.values.dtype)
        return cls(
            torch.cat([part.values.to(first.values.device, kind) for part in parts]),
            tuple(rows),
            curve_x=tuple(x for part in parts for x in part.curve_x),
            curve_y=tuple(y for part in parts for y in part.curve_y),
            target=first.target,
            inputs=first.inputs,
            meta=_common_meta(parts),
            checks=Checks(_told_apart(parts)),
        )

    def named(self, explanation: str, *, control: bool | None = None) -> Self:
        """The same scores under the name that the explanation has beside others.

        Args:
            explanation: the name.
            control: whether it is a control; None leaves what the rows say.
        """
        rows = (
            replace(row, explanation=explanation, control=row.control if control is None else control)
            for row in self.rows
        )
        return replace(self, rows=tuple(rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics' names in their first order."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    @property
    def explanations(self) -> tuple[str, ...]:
        """The explanations' names in their first order."""
        return tuple(dict.fromkeys(row.explanation for row in self.rows))

    @property
    def curves(self) -> dict[str, Curves]:
        """For each metric that has curves, their means over the examples.

        Raises:
            InputError: when the curves of one metric have different axes.
        """
        found: dict[str, Curves] = {}
        for row, x, y in zip(self.rows, self.curve_x, self.curve_y, strict=True):
            if x is None or y is None:
                continue
            curves = found.setdefault(row.metric, Curves(x, {}, {}))
            if x.shape != curves.x.shape or not torch.allclose(x, curves.x):
                raise InputError(f"the curves of metric '{row.metric}' have different axes; name the metrics apart")
            curves.mean[row.explanation] = y.double().nanmean(dim=0)
            curves.standard_error[row.explanation] = _standard_error(y.double().T)
        return found

    def ranking(self) -> dict[str, tuple[Rank, ...]]:
        """For each metric the explanations, controls among them, the best mean first; NaN means come last."""
        ranked: dict[str, tuple[Rank, ...]] = {}
        means, errors = self._summaries()
        for metric in self.metrics:
            places = [
                (Rank(row.explanation, mean, error, row.control), row.better)
                for row, mean, error in zip(self.rows, means, errors, strict=True)
                if row.metric == metric
            ]
            order = sorted(places, key=lambda p: math.inf if math.isnan(p[0].mean) else _loss(p[0].mean, p[1]))
            ranked[metric] = tuple(place for place, _ in order)
        return ranked

    def to_dataframe(self) -> pd.DataFrame:
        """A line for each row and example: explanation, metric, example, value, better, control."""
        import pandas as pd

        count = len(self)
        return pd.DataFrame(
            {
                "explanation": [row.explanation for row in self.rows for _ in range(count)],
                "metric": [row.metric for row in self.rows for _ in range(count)],
                "example": [example for _ in self.rows for example in range(count)],
                "value": self.values.detach().cpu().double().reshape(-1).numpy(),
                "better": [row.better for row in self.rows for _ in range(count)],
                "control": [row.control for row in self.rows for _ in range(count)],
            }
        )

    def plot(self, metrics: Iterable[str] | None = None, kind: Literal["auto", "bars", "curves"] = "auto") -> Figure:
        """Draws each metric and returns a matplotlib figure, without showing it; controls are grey.

        Bars are means with two standard errors, the best on top; the band marks what the best control reaches. Curves
        are means over the examples.

        Args:
            metrics: which; None is all.
            kind: `"auto"` draws the bars, and the curves of those metrics that have some.

        Raises:
            InputError: when a metric has no scores here.
            ParameterError: when the kind is unknown.
        """
        from pellucid.results import charts

        return charts.scores(self, metrics, kind)

    def _summaries(self) -> tuple[list[float], list[float]]:
        values = self.values.detach().cpu().double()
        errors = _standard_error(values)
        whole = torch.tensor([row.whole for row in self.rows], dtype=torch.bool)
        return values.nanmean(dim=1).tolist(), torch.where(whole, torch.nan, errors).tolist()

    def _shape(self) -> str:
        counts = {"explanation": len(self.explanations), "metric": len(self.metrics), "example": len(self)}
        return " x ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())


def _loss(mean: float, better: Better) -> float:
    return -mean if better == "higher" else mean


def _standard_error(values: Tensor) -> Tensor:
    """Of the mean over the last axis, without what is NaN; NaN for fewer than two values."""
    count = (~values.isnan()).sum(dim=-1)
    spread = (values - values.nanmean(dim=-1, keepdim=True)).square().nansum(dim=-1)
    error = (spread / (count - 1).clamp_min(1) / count.clamp_min(1)).sqrt()
    return torch.where(count > 1, error, torch.nan)


def _common_meta(parts: Sequence[Scores]) -> Meta:
    """What the parts' provenances agree on; costs are added up, parameters are kept by metric."""
    metas = [part.meta for part in parts]
    common: dict[str, Any] = {}
    for part in fields(Meta):
        values = [getattr(meta, part.name) for meta in metas]
        if all(value == values[0] for value in values):
            common[part.name] = values[0]
    common["technique"] = ", ".join(dict.fromkeys(meta.technique for meta in metas if meta.technique))
    if "parameters" not in common:
        common["parameters"] = {
            metric: meta.parameters for part, meta in zip(parts, metas, strict=True) for metric in part.metrics
        }
    passes: dict[str, float] = {}
    for meta in metas:
        for kind, used in meta.passes.items():
            passes[kind] = passes.get(kind, 0.0) + used
    common["passes"] = passes
    times = [meta.seconds for meta in metas if meta.seconds is not None]
    common["seconds"] = sum(times) if times else None
    common["notes"] = tuple(dict.fromkeys(note for meta in metas for note in meta.notes))
    return Meta(**common)


def _told_apart(parts: Sequence[Scores]) -> Iterable[Any]:
    """The parts' checks, those that are the same once, the others with the names of their rows."""
    for part in parts:
        for check in part.checks:
            if len(parts) == 1 or all(check in other.checks for other in parts):
                if part is parts[0]:
                    yield check
            elif len(part.rows) == 1:
                row = part.rows[0]
                yield replace(check, name=f"{row.metric} of {row.explanation}: {check.name}")
            else:
                yield check
