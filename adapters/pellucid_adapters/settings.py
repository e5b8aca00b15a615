"""What a user may say of any model when adapting it."""

from __future__ import annotations

from typing import Any

from pellucid import ParameterError, nearest

SETTINGS = ("name", "output", "categories", "transform", "mean", "std", "layer", "feature_names")


def settled(options: dict[str, Any], **known: Any) -> dict[str, Any]:
    """Joins what the user says of a model with what its adapter knows; the user's word counts.

    Raises:
        ParameterError: an option is none of `SETTINGS`, or its value is wrong.
    """
    for option in options:
        if option not in SETTINGS:
            raise ParameterError(
                f"this model cannot be adapted with the option '{option}': expected {', '.join(SETTINGS)}."
                + nearest(option, SETTINGS)
            )
    told = {option: value for option, value in options.items() if value is not None}
    for channels in ("mean", "std"):
        if channels in told:
            try:
                told[channels] = tuple(float(value) for value in told[channels])
            except (TypeError, ValueError):
                raise ParameterError(
                    f"{channels}={told[channels]!r}: expected a number for each channel, such as (0.5, 0.5, 0.5)"
                ) from None
    return {**known, **told}
