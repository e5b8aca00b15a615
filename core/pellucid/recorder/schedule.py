"""Schedules: at which steps a training run is looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from pellucid.errors import ParameterError

Schedule: TypeAlias = "str | int | Collection[int] | Callable[[int], bool]"
"""`"log"`, every so many steps, a collection of steps, or a function that says of a step whether it is looked at."""


SPARSE, DENSE = 8, 10
"""Up to which power of two the logarithmic schedule has every second power, and from which on those of its root."""


def due(every: Schedule) -> Callable[[int], bool]:
    """Makes a function of a schedule: whether a step is to be looked at. Step 0 always is.

    `"log"` is 0, the powers of four up to 256, those of two up to 1024, and beyond those of its square root, rounded:
    1, 4, 16, 64, 256, 512, 1024, 1448, 2048, 2896, ... A network changes most in its first steps, so that equal ratios
    show more of it than equal distances, and a million steps need 27. The steps do not depend on how fast anything is,
    so that runs share them and can be repeated; they are sparse at first because a look at a few hundred examples costs
    as much as one or two steps on a batch, and eight looks at an epoch of MNIST are what two per cent of it allow.

    Raises:
        ParameterError: when the schedule is none of those.
    """
    if isinstance(every, str) and every == "log":
        return _on_log_steps
    if hasattr(every, "tolist"):  # numbers and arrays of NumPy's and torch's
        every = every.tolist()
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return lambda step: step % every == 0
    if callable(every):
        return lambda step: step == 0 or bool(every(step))
    if isinstance(every, Collection) and not isinstance(every, str):
        steps = frozenset(step.tolist() if hasattr(step, "tolist") else step for step in every)
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
    if step == 1 << power:
        return power >= SPARSE or power % 2 == 0
    return power >= DENSE and step == round(2 ** (power + 0.5))
