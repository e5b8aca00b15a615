"""Certificates: numbers that say how far an explanation can be trusted."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

Verdict: TypeAlias = Literal["pass", "fail", "info"]


@dataclass(frozen=True)
class Check:
    """One certificate: a value, what it may be at most, and whether it holds.

    Attributes:
        name: what is checked, such as `"completeness"`.
        value: the measured number; over several examples the worst, that is the greatest. None where there is none.
        tolerance: the most that the value may be, or None.
        passed: the verdict; None is information only.
        note: what a reader must know besides, in a sentence.
        each: the value of each example, where it was measured for each; slicing a result slices these as well.
    """

    name: str
    value: float | None = None
    tolerance: float | None = None
    passed: bool | None = None
    note: str = ""
    each: tuple[float, ...] = ()

    @classmethod
    def bound(cls, name: str, value: float | Sequence[float] | Tensor, tolerance: float, note: str = "") -> Check:
        """A check that passes when the value, or the worst of one for each example, is at most the tolerance.

        A value that is not a number fails.
        """
        each = _floats(value)
        worst = _worst(each)
        return cls(name, worst, float(tolerance), worst <= tolerance, note, each if _many(value) else ())

    @classmethod
    def info(cls, name: str, value: float | Sequence[float] | Tensor | None = None, note: str = "") -> Check:
        """A number or a remark that passes no judgement."""
        if value is None:
            return cls(name, note=note)
        each = _floats(value)
        return cls(name, _worst(each), note=note, each=each if _many(value) else ())

    @property
    def verdict(self) -> Verdict:
        """`"pass"`, `"fail"`, or `"info"` where the check passes no judgement."""
        if self.passed is None:
            return "info"
        return "pass" if self.passed else "fail"

    def pick(self, places: Sequence[int]) -> Check:
        """The check for some of the examples; unchanged where it was not measured for each."""
        if not self.each or not places:
            return self
        each = tuple(self.each[place] for place in places)
        worst = _worst(each)
        judged = self.passed is not None and self.tolerance is not None
        return replace(self, each=each, value=worst, passed=worst <= (self.tolerance or 0.0) if judged else self.passed)

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value:.3g}"
        limit = "" if self.tolerance is None else f" (at most {self.tolerance:.3g})"
        return f"{self.verdict}  {self.name}{value}{limit}" + (f": {self.note}" if self.note else "")


class Checks(tuple[Check, ...]):
    """A result's certificates: a tuple that prints as a table."""

    __slots__ = ()

    def __new__(cls, checks: Iterable[Check] = ()) -> Checks:
        """Takes the checks of any iterable."""
        return super().__new__(cls, checks)

    @property
    def failed(self) -> Checks:
        """Those that fail."""
        return Checks(check for check in self if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether none fails."""
        return not self.failed

    @property
    def summary(self) -> str:
        """The counts of the verdicts, such as `"2 pass, 1 fail"`; empty without checks."""
        verdicts = [check.verdict for check in self]
        return ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "fail", "info") if v in verdicts)

    def named(self, name: str) -> Check:
        """The first check of a name.

        Raises:
            KeyError: when there is none.
        """
        for check in self:
            if check.name == name:
                return check
        raise KeyError(f"no check is named '{name}'; there are {[check.name for check in self]}")

    def pick(self, places: Sequence[int], examples: int) -> Checks:
        """The checks for some of the examples; those not measured for each of them stay as they are."""
        return Checks(check.pick(places) if len(check.each) == examples else check for check in self)

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) if self else "Checks()"

    def _repr_html_(self) -> str:
        if not self:
            return ""
        colours = {"pass": "#1a7f37", "fail": "#cf222e", "info": "#57606a"}
        rows = "".join(
            f"<tr><td style='color:{colours[c.verdict]};font-weight:600'>{c.verdict}</td><td>{html.escape(c.name)}</td>"
            f"<td>{'' if c.value is None else f'{c.value:.3g}'}</td>"
            f"<td>{'' if c.tolerance is None else f'{c.tolerance:.3g}'}</td>"
            f"<td style='text-align:left'>{html.escape(c.note)}</td></tr>"
            for c in self
        )
        head = "<tr><th></th><th>check</th><th>value</th><th>at most</th><th></th></tr>"
        return f"<table style='font-size:90%'>{head}{rows}</table>"


def _many(value: object) -> bool:
    return value.dim() > 0 if isinstance(value, Tensor) else isinstance(value, Sequence)


def _floats(value: float | Sequence[float] | Tensor) -> tuple[float, ...]:
    if isinstance(value, Tensor):
        return tuple(value.detach().double().reshape(-1).tolist())
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)


def _worst(each: Sequence[float]) -> float:
    return math.nan if not each or any(map(math.isnan, each)) else max(each)
