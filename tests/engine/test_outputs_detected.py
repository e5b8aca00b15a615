"""Outputs with an entry for each row, of any length, wherever they stand in what a model returned."""

from __future__ import annotations

import pytest
import torch

from pellucid.engine.outputs import by_draw, cut, joined, tensors_in


def boxes(*counts):
    """Boxes with a first number that tells which row they are of."""
    return [torch.full((count, 4), float(row)) for row, count in enumerate(counts)]


FORMS = {
    "dictionaries": lambda *counts: [{"boxes": each, "scores": each[:, 0]} for each in boxes(*counts)],
    "tensors": boxes,
    "tuples": lambda *counts: [(each, each[:, 0]) for each in boxes(*counts)],
    "lists in a dictionary": lambda *counts: {
        "logits": torch.arange(float(len(counts))),
        "boxes": boxes(*counts),
        "found": [{"scores": each[:, 0]} for each in boxes(*counts)],
    },
    "lists in a tuple": lambda *counts: (boxes(*counts), torch.arange(float(len(counts)))[:, None]),
}


def rows_of(value):
    return {int(number) for tensor in tensors_in(value) for number in tensor.unique()}


def equal(one, other):
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    return type(one) is type(other) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts", [(2, 0, 5), (3, 1, 3), (0, 0, 1), (3, 3, 0)])
def test_each_row_keeps_its_own_entries(form, counts):
    value = FORMS[form](*counts)
    for row in range(3):
        part = cut(value, row, row + 1, 3)
        assert rows_of(part) <= {row}
        assert len(list(tensors_in(part))) > 0
    assert equal(joined([cut(value, 0, 2, 3), cut(value, 2, 3, 3)], [2, 1]), value)


@pytest.mark.parametrize("form", FORMS)
def test_draws_of_entries(form):
    value = FORMS[form](2, 0, 5, 1, 4, 3)
    drawn = by_draw(value, 2, 6)
    assert rows_of(drawn) == rows_of(value)
    lists = {
        "dictionaries": lambda: drawn,
        "tensors": lambda: drawn,
        "tuples": lambda: drawn,
        "lists in a dictionary": lambda: drawn["boxes"],
        "lists in a tuple": lambda: drawn[0],
    }[form]()
    assert [len(draw) for draw in lists] == [3, 3]
    assert [rows_of(draw) <= set(want) for draw, want in zip(lists, ((0, 1, 2), (3, 4, 5)), strict=True)] == [True] * 2


def test_a_single_row_with_a_single_detection_joins_with_others():
    first, second = boxes(1), [torch.full((3, 4), 1.0), torch.full((2, 4), 2.0)]
    assert [len(each) for each in joined([first, second], [1, 2])] == [1, 3, 2]


def test_parts_with_all_rows_are_no_entries_for_each():
    logits, features, loss = torch.arange(4.0).reshape(2, 2), torch.arange(6.0).reshape(2, 3), torch.tensor(7.0)
    for value in ([logits, features], [logits, loss], [loss, logits], {"hidden": [logits, features]}):
        part = cut(value, 1, 2, 2)
        tensors = list(tensors_in(part))
        assert [tensor.shape[0] for tensor in tensors if tensor.dim()] == [1] * sum(t.dim() > 0 for t in tensors)
        assert len(tensors) == 2
        again = joined([cut(value, 0, 1, 2), part], [1, 1])
        assert equal(again, value)
