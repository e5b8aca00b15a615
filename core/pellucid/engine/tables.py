"""Tables: features that have names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results import Attribution


def table(known: Sequence[str] | None, inputs: Any) -> tuple[Any, tuple[str, ...] | None]:
    """The numbers of a table and its features' names; other inputs as they are.

    Columns are put into the order that the model knows. A column is a pandas one, or another library's whose frames
    have `columns` and `to_numpy`.

    Args:
        known: the features' names in the order that the model takes them, or None.
        inputs: a frame, or anything that is none.

    Raises:
        InputError: when columns are missing, too many, twice there or not numeric.
    """
    names = None if known is None else tuple(map(str, known))
    if not (hasattr(inputs, "columns") and hasattr(inputs, "to_numpy")):
        return inputs, names
    columns = {str(column): column for column in inputs.columns}
    if len(columns) < len(inputs.columns):
        raise InputError(f"the table has columns of the same name: {list(inputs.columns)}; expected different ones")
    if names is not None and set(names) != set(columns):
        missing, unknown = sorted(set(names) - set(columns)), sorted(set(columns) - set(names))
        raise InputError(
            f"the table's columns are not the model's features: missing {missing or 'none'}, unknown "
            f"{unknown or 'none'}; give a table with exactly the columns {list(names)}"
        )
    names = tuple(columns) if names is None else names
    arrays = [np.asarray(inputs[columns[name]].to_numpy()) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"column '{name}' is of type {array.dtype}; expected numbers: encode it as the model wants"
            )
    # Whole numbers, such as counts, are features like any.
    kinds = {array.dtype for array in arrays if array.dtype.kind == "f"} or {np.dtype(np.float64)}
    return np.stack(arrays, axis=1).astype(np.result_type(*kinds)), names


def check_names(names: tuple[str, ...], values: Tensor) -> None:
    """Refuses rows that have not one value for each name."""
    if values.dim() == 2 and values.shape[1] != len(names):
        raise InputError(
            f"the inputs have {values.shape[1]} features and the model {len(names)} feature names; expected one name "
            "for each feature"
        )


def named(names: tuple[str, ...], result: Attribution) -> Attribution:
    """An attribution of a table's features, with their names."""
    values = result.values
    of_features = isinstance(values, Tensor) and values.dim() == 2 and result.over in ("input", "features")
    fits = of_features and result.names is None and values.shape[1] == len(names)
    return replace(result, names=names) if fits else result
