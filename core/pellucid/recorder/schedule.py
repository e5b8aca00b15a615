"""Schedules: at which steps a training run is looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from pellucid.errors import ParameterError

Schedule: TypeAlias = "str | int | Collection[int] | Callable[[int], bool]"
"""`"log"`, every so many steps, a collection of steps, or a function that says of a step whether it is looked at."""


DENSER = 10
"""From which power of two on the logarithmic schedule has a step between two powers."""


def due(every: Schedule) -> Callable[[int], bool]:
    """Makes a function of a schedule: whether a step is to be looked at. Step 0 always is.

    `"log"` is 0 and the powers of two, and beyond 1024 those of its square root, rounded: 1, 2, 4, 8, ..., 512, 1024,
    1448, 2048, 2896, ... A network changes most in its first steps, so that equal ratios show more of it than equal
    distances, and a million steps need 31. The steps do not depend on how fast anything is, so that runs share them;
    before step 1024 they are fewer because a look at a few hundred examples costs a short training one or two steps.

    Raises:
        ParameterError: when the schedule is none of those.
    """
    if every == "log":
        return _on_log_steps
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return lambda step: step % every == 0
    if callable(every):
        return lambda step: step == 0 or bool(every(step))
    if isinstance(every, Collection) and not isinstance(every, str):
        steps = frozenset(every)
        if all(isinstance(step, int) and not isinstance(step, bool) and step >= 0 for step in steps):
            return lambda step: step == 0 or step in steps
    raise ParameterError(
        f"every={every!r}: expected 'log', a number of steps of at least 1, a collection of steps, or a function of "
        "the step"
    )


def _on_log_steps(step: int) -> bool:
    if step == 0:
        return True
    power = step.bit_length() - 1
    return step == 1 << power or (power >= DENSER and step == round(2 ** (power + 0.5)))
