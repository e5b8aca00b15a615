"""What the family shares: inputs, one tensor or several, as tensors by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def by_name(inputs: Any) -> dict[str, Tensor]:
    """The tensors of inputs by name; a single one is called "input"."""
    return {"input": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def formed_like(inputs: Any, tensors: dict[str, Tensor]) -> Any:
    """Tensors by name in the form that the inputs have."""
    return tensors["input"] if isinstance(inputs, Tensor) else type(inputs)(tensors)
