"""The types of parameters, as `pellucid show` words them."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import InstanceOf
from torch import Tensor

from pellucid.cli._types import type_name, type_names
from pellucid.registry.lookup import technique


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (int, "int"),
        (Any, "Any"),
        (Tensor | None, "Tensor | None"),
        (Annotated[int, Ge(1)], "int >= 1"),
        (Annotated[float, Gt(0), Lt(1)], "float > 0 and < 1"),
        (Annotated[float, Le(2)] | None, "float <= 2 | None"),
        (Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)], "tuple[int >= 1, ...] of at least 1"),
        (Literal["logistic", "ridge"], "'logistic' | 'ridge'"),
        (Callable[[Tensor], Any], "Callable[[Tensor], Any]"),
        (Sequence[float] | float, "Sequence[float] | float"),
        (InstanceOf[ValueError], "ValueError"),
    ],
)
def test_types_are_told_by_what_may_be_given(hint, told):
    assert type_name(hint) == told


def test_names_that_are_for_the_type_checker_alone_stay_as_they_are_written():
    class Odd:
        def __init__(self, layer: "SurelyNot" = None, size=3):  # noqa: F821
            self.layer, self.size = layer, size

        layer: "SurelyNot"  # noqa: F821

    from inspect import signature

    assert type_names(Odd, list(signature(Odd).parameters.values())) == {"layer": "SurelyNot", "size": ""}


def test_aliases_are_resolved_to_their_choices():
    record = technique("ace")
    types = type_names(record.load(), record.parameters())
    assert types["classifier"] == "'logistic' | 'ridge'"
    assert types["segments"] == "'slic' | Callable[[Tensor], Any]"
