"""Techniques without a model: driving them, side by side and nested."""

from __future__ import annotations

import pytest
import torch

from pellucid import Look, ProtocolError, Sample, Seen, together
from pellucid.protocol import ClassLogit, Looks, SeenTogether, as_passes


def sample() -> Sample:
    return Sample(torch.zeros(2, 3), ClassLogit(0))


def seen(value: float) -> Seen:
    return Seen(torch.full((2,), value))


def asks(times: int, log: list | None = None, name: str = ""):
    """A technique of some looks, whose result is the list of what it saw."""
    found = []
    try:
        for _ in range(times):
            found.append((yield Look(at=sample())).scores[0].item())
        return found
    finally:
        if log is not None:
            log.append(name)


def drive(passes, values):
    """Answers every look of a round with the next value; returns the result and the rounds' sizes."""
    sizes, values = [], iter(values)

    def answer(look):
        if isinstance(look, Looks):
            parts = tuple(answer(part) for part in look.parts)
            return SeenTogether(parts[0].scores, parts=parts)
        return seen(next(values))

    def count(look):
        return sum(map(count, look.parts)) if isinstance(look, Looks) else 1

    look = next(passes)
    while True:
        sizes.append(count(look))
        try:
            look = passes.send(answer(look))
        except StopIteration as stop:
            return stop.value, sizes


def test_side_by_side_until_the_last_has_ended():
    results, sizes = drive(together(asks(1), asks(3), asks(2)), range(10))
    assert results == ([0], [1, 3, 5], [2, 4])
    assert sizes == [3, 2, 1]


def test_nested():
    def two():
        return (yield from together(asks(2), asks(1)))

    (inner, last), sizes = drive(together(two(), asks(1)), range(10))
    assert inner == ([0, 3], [1])
    assert last == [2]
    assert sizes == [3, 1]


def test_results_without_a_look_and_looks_without_a_technique():
    results, sizes = drive(together("at once", asks(0), Look(at=sample())), range(3))
    assert results[:2] == ("at once", [])
    assert results[2].scores.tolist() == [0, 0]
    assert sizes == [1]
    with pytest.raises(StopIteration) as end:
        next(together("a", "b"))
    assert end.value.value == ("a", "b")
    with pytest.raises(StopIteration) as end:
        next(together())
    assert end.value.value == ()


def test_all_are_closed_when_one_fails():
    log: list[str] = []

    def fails():
        yield Look(at=sample())
        raise ValueError("no luck")

    passes = together(asks(2, log, "a"), fails(), asks(2, log, "c"))
    next(passes)
    with pytest.raises(ValueError, match="no luck"):
        passes.send(SeenTogether(torch.zeros(2), parts=(seen(0), seen(1), seen(2))))
    assert log == ["a", "c"]


def test_all_are_closed_when_the_run_ends_early():
    log: list[str] = []
    passes = together(asks(2, log, "a"), asks(2, log, "b"))
    next(passes)
    passes.close()
    assert log == ["a", "b"]


def test_what_is_no_look_is_refused():
    def strange():
        yield "a look"

    with pytest.raises(ProtocolError, match="yielded a str; expected a Look"):
        next(together(strange()))


def test_it_must_be_sent_an_answer_for_each():
    for wrong in (seen(0), SeenTogether(torch.zeros(2), parts=(seen(0),))):
        passes = together(asks(1), asks(1))
        next(passes)
        with pytest.raises(ProtocolError, match="expected a Seen for each"):
            passes.send(wrong)


def test_what_a_look_asks_in_the_words_of_a_record():
    one = sample()
    assert Look(at=one).asks == {"outputs"}
    assert Look(at=one, activations=["a"]).asks == {"outputs", "activations"}
    both = Looks(at=one, parts=(Look(at=one, gradients=["input"]), Look(at=one, activations=["a"])))
    assert both.asks == {"outputs", "activations", "gradients"}
    with pytest.raises(ProtocolError, match="without parts"):
        Looks(at=one)


def test_as_passes_makes_a_generator_of_anything():
    generator = asks(1)
    assert as_passes(generator) is generator
    with pytest.raises(StopIteration) as end:
        next(as_passes(42))
    assert end.value.value == 42
