"""Certificates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.results import Check, Checks, Meta, TargetRecord


@given(st.lists(st.floats(width=32), min_size=1, max_size=6), st.floats(0, 10))
def test_a_bound_passes_exactly_when_every_example_is_within_it(values, tolerance):
    check = Check.bound("sum", values, tolerance)
    assert check.passed is all(value <= tolerance for value in values)
    assert check.verdict == ("pass" if check.passed else "fail")
    for place in range(len(values)):
        assert check.pick([place]).passed is (values[place] <= tolerance)


def test_a_number_a_tensor_and_a_list_are_bounded_alike():
    assert Check.bound("a", 0.5, 1.0) == Check("a", 0.5, 1.0, True)
    assert Check.bound("a", torch.tensor(0.5), 1) == Check("a", 0.5, 1.0, True)
    assert Check.bound("a", torch.tensor([0.5, 2.0]), 1).each == (0.5, 2.0)
    assert Check.bound("a", 1.0, 1.0).passed is True


def test_what_is_not_a_number_fails():
    assert Check.bound("a", math.nan, math.inf).passed is False
    assert Check.bound("a", torch.tensor([0.0, math.nan]), 1.0).passed is False
    assert Check.bound("a", [], 1.0).passed is False


def test_information_passes_no_judgement():
    check = Check.info("share", torch.tensor([0.25, 0.5]), "of the energy")
    assert (check.value, check.passed, check.verdict) == (0.5, None, "info")
    assert check.pick([0]).value == 0.25
    assert check.pick([0]).passed is None
    assert Check.info("equals the plain gradient").value is None


def test_a_check_of_the_whole_result_is_not_sliced():
    checks = Checks([Check.bound("model", 0.1, 1.0), Check.bound("each", [0.1, 3.0], 1.0)])
    picked = checks.pick([0], 2)
    assert picked[0] is checks[0]
    assert picked[1].passed is True
    assert checks.pick([0], 5) == checks


def test_checks_are_found_counted_and_shown():
    checks = Checks([Check.bound("sum", 3.0, 1.0, "relative"), Check.bound("b", 0.0, 0.0), Check.info("c", 2.0)])
    assert checks.summary == "1 pass, 1 fail, 1 info"
    assert checks.failed == (checks[0],)
    assert not checks.passed
    assert checks.named("b") is checks[1]
    with pytest.raises(KeyError, match="no check is named 'd'"):
        checks.named("d")
    assert repr(checks).splitlines()[0] == "fail  sum 3 (at most 1): relative"
    assert repr(Checks()) == "Checks()"
    assert Checks()._repr_html_() == ""
    assert checks._repr_html_().count("<tr>") == 4


def test_the_target_is_told_and_sliced():
    record = TargetRecord([285, 967], torch.tensor([285, 967]))
    assert str(record) == "class 285, 967"
    assert str(TargetRecord("predicted", torch.tensor([3, 3]))) == "class 3 (predicted)"
    assert str(TargetRecord({"unit": 3})) == "{'unit': 3}"
    picked = record.pick(torch.tensor([1]), 2)
    assert picked.classes.tolist() == [967]
    assert picked.description == [967]


def test_categories_have_names_where_they_are_known():
    assert Meta(categories=("cat", "dog")).category(1) == "dog"
    assert Meta(categories=("cat", "dog")).category(2) is None
    assert Meta().category(0) is None
