"""What must hold for every kind of result: saving, slicing, moving, showing."""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pellucid
from pellucid.protocol.leaves import Leaves
from pellucid.results import (
    Attribution,
    Check,
    Checks,
    Concepts,
    Exemplars,
    Influence,
    Meta,
    Node,
    Projection,
    Scores,
    Surrogate,
    Synthesis,
    TargetRecord,
    load,
)

KINDS = [Attribution, Concepts, Exemplars, Influence, Projection, Scores, Surrogate, Synthesis]
texts = st.text(max_size=8)
floats = st.floats(allow_nan=True, allow_infinity=True, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def numbers(draw, *shape, dtype=None, positive=False):
    """A tensor with all that may go wrong in it: NaN, infinities, zeros, other types, views of larger tensors."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = dtype or draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    values = torch.randn(shape, generator=generator)
    values = values.abs() if positive else values
    if values.numel():
        flat = values.view(-1)
        for special in draw(st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0]), max_size=2)):
            flat[draw(st.integers(0, flat.numel() - 1))] = special
    values = values.to(dtype)
    return values.repeat_interleave(2, dim=0)[::2] if draw(st.booleans()) else values


@st.composite
def results(draw, kind=None, least=0):
    kind = kind or draw(st.sampled_from(KINDS))
    size = draw(st.integers(least, 4))
    width = draw(st.integers(1, 4))
    names = tuple(draw(st.lists(texts, min_size=width, max_size=width)))
    rows = tuple(draw(st.lists(texts, min_size=size, max_size=size)))
    common = {
        "target": TargetRecord(draw(json_values), torch.arange(size) if draw(st.booleans()) else None),
        "meta": Meta(
            technique=draw(texts),
            parameters=draw(st.dictionaries(texts, json_values, max_size=3)),
            seed=draw(st.none() | st.integers(0, 2**60)),
            passes={"forward": draw(floats)},
            categories=draw(st.none() | st.just(("cat", "<b>dog</b>", "\u732b"))),
            mean=draw(st.none() | st.just((0.5, 0.4, 0.3))),
            notes=("folded BatchNorm",),
        ),
        "checks": [
            Check.bound("sum", draw(st.lists(floats, min_size=size, max_size=size)) if size else 0.1, 0.5),
            Check.info("note", note=draw(texts)),
        ],
        "inputs": draw(
            st.sampled_from(
                [None, torch.rand(size, 3, 5, 6), Leaves({"a": torch.rand(size, 1, 4, 4), "b": torch.rand(size, 2)})]
            )
        ),
    }
    if kind is Attribution:
        shape = draw(st.sampled_from([(3, 5, 6), (5, 6), (width,)]))
        values = numbers(draw, size, *shape)
        if draw(st.booleans()):
            values = Leaves({"a": values, "b": numbers(draw, size, 2)})
        over = "input" if len(shape) != 2 else "layer4"
        named = names if shape == (width,) and isinstance(values, torch.Tensor) else None
        return Attribution(values, over=over, names=named, **common)
    values = numbers(draw, size, width)
    if kind is Concepts:
        return Concepts(
            values,
            names,
            rows=rows,
            p_values=torch.rand(size, width),
            significant=torch.rand(size, width) < 0.5,
            control=torch.rand(size, width),
            vectors=torch.randn(width, 3),
            patches=tuple(torch.rand(place + 1, 3, 4, 4) for place in range(width)) if draw(st.booleans()) else None,
            **common,
        )
    if kind is Exemplars:
        return Exemplars(
            values,
            torch.randint(-1, 5, (size, width)),
            kind=draw(st.sampled_from(["maximal", ("prototype",) * width])),
            names=rows,
            crops=torch.rand(size, width, 3, 4, 4) if draw(st.booleans()) else None,
            examples=torch.rand(5, 3, 4, 4) if draw(st.booleans()) else None,
            **common,
        )
    if kind is Influence:
        train = torch.rand(width, 3, 4, 4) if draw(st.booleans()) else None
        return Influence(values, self_influence=torch.rand(width), train=train, **common)
    if kind is Projection:
        moving = draw(st.booleans())
        points = numbers(draw, 3, size, width) if moving else values
        times = torch.arange(3) if moving else None
        labels = torch.arange(size) % 2 if draw(st.booleans()) else None
        return Projection(points, names=rows, explained=torch.rand(width), times=times, labels=labels, **common)
    if kind is Scores:
        curve = (torch.linspace(0, 1, 4), numbers(draw, size, 4, dtype=torch.float32)) if draw(st.booleans()) else None
        scores = [
            Scores.single(
                metric=metric,
                explanation=explanation,
                values=numbers(draw, size, dtype=torch.float32),
                better=draw(st.sampled_from(["higher", "lower"])),
                control=explanation == "random",
                curve=curve,
            )
            for metric in ("one", "two")
            for explanation in ("saliency", "random")
        ]
        return dataclasses.replace(Scores.merge(scores), **common)
    if kind is Surrogate:
        tree = (Node("a <= 1", (1, 2), ("yes", "no"), 10), Node("b", size=4, value=0.5), Node("c", size=6))
        return Surrogate(
            values,
            outputs=torch.rand(size, width),
            description=draw(texts),
            rules=("if a", "else b"),
            fidelity={"R2": draw(floats)},
            nodes=draw(st.sampled_from([(), tree])),
            coefficients=draw(st.sampled_from([None, torch.randn(2, 3)])),
            **common,
        )
    return Synthesis(
        numbers(draw, size, 3, 4, 4), trace=torch.rand(size, 5), names=rows, compare=draw(st.booleans()), **common
    )


def same(one, two):
    """Whether two parts of results are the same, bit by bit, NaN for NaN."""
    assert type(one) is type(two) or (isinstance(one, dict) and isinstance(two, dict))
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, (dict, Leaves)):
        assert list(one) == list(two)
        for name in one:
            same(one[name], two[name])
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            same(left, right)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(two, field.name))
    else:
        assert one == two or (one != one and two != two)


@settings(deadline=None, max_examples=120)
@given(results())
def test_a_saved_result_comes_back_the_same(result):
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "result")
        assert path.name == "result.safetensors"
        assert [file.name for file in Path(folder).iterdir()] == ["result.safetensors"]
        same(load(path), result)
        same(type(result).load(path), result)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_every_class_survives_saving_without_its_inputs(kind, data):
    result = data.draw(results(kind))
    with tempfile.TemporaryDirectory() as folder:
        found = load(result.save(Path(folder) / "x.safetensors", inputs=False))
    assert found.inputs is None
    same(found.values, result.values)
    for part in ("train", "examples"):
        assert getattr(found, part, None) is None
    assert len(found) == len(result)


@settings(deadline=None, max_examples=120)
@given(results(least=1), st.data())
def test_slicing_picks_the_same_examples_everywhere(result, data):
    count = len(result)
    index = data.draw(
        st.integers(-count, count - 1)
        | st.slices(count)
        | st.lists(st.integers(-count, count - 1), max_size=5)
        | st.lists(st.booleans(), min_size=count, max_size=count)
        | st.lists(st.integers(0, count - 1), max_size=5).map(lambda places: torch.tensor(places, dtype=torch.long))
    )
    if isinstance(index, slice):
        expected = torch.tensor(range(count)[index], dtype=torch.long)
    else:
        expected = torch.arange(count)[slice(0) if isinstance(index, list) and not index else index].reshape(-1)
    picked = result[index]
    assert type(picked) is type(result)
    assert len(picked) == len(expected)
    axis = {Scores: -1, Projection: -2}.get(type(result), 0)
    leaves = result.values.items() if isinstance(result.values, Leaves) else [("", result.values)]
    for name, leaf in leaves:
        got = picked.values[name] if name else picked.values
        torch.testing.assert_close(got, leaf.index_select(axis, expected), rtol=0, atol=0, equal_nan=True)
    if result.target.classes is not None:
        assert picked.target.classes.tolist() == expected.tolist()
    each = result.checks[0].each
    if len(expected):
        same(picked.checks[0].each, tuple(each[place] for place in expected))
    if isinstance(result.inputs, torch.Tensor):
        assert torch.equal(picked.inputs, result.inputs[expected])


@settings(deadline=None, max_examples=60)
@given(results())
def test_a_result_prints_shortly_and_never_its_numbers(result):
    told = repr(result)
    assert told.startswith(type(result).__name__ + "(")
    assert "tensor(" not in told
    assert len(told) < 600


@pytest.mark.filterwarnings("ignore:Glyph .* missing")  # the font at hand need not have every letter
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_every_class_shows_itself_in_a_notebook_from_its_own_bytes(kind, data):
    result = data.draw(results(kind))
    page = result._repr_html_()
    assert 'src="data:image/png;base64,' in page
    assert "<b>dog</b>" not in page
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_moving_to_a_device_and_copying_keep_everything(kind, data):
    result = data.draw(results(kind))
    same(result.to("cpu"), result)
    same(copy.copy(result), result)
    moved = result.to("meta")
    leaves = moved.values.values() if isinstance(moved.values, Leaves) else [moved.values]
    assert {leaf.device.type for leaf in leaves} == {"meta"}


def attribution(**changes):
    return Attribution(torch.arange(6.0).view(2, 3), over="features", **changes)


def test_iteration_ends_and_an_example_that_is_not_there_is_an_error():
    assert [float(one.values[0, 0]) for one in attribution()] == [0.0, 3.0]
    for wrong in (2, -3, [0, 5], torch.tensor([7])):
        with pytest.raises(IndexError, match="out of range; there are 2"):
            attribution()[wrong]
    with pytest.raises(IndexError, match=r"expected \(2,\)"):
        attribution()[[True, False, True]]
    with pytest.raises(IndexError, match="integer"):
        attribution()[torch.tensor([0.5])]
    with pytest.raises(IndexError, match="integer"):
        attribution()[torch.zeros(1, 1, dtype=torch.long)]


def test_numpy_indices_do():
    import numpy as np

    assert len(attribution()[np.int64(1)]) == 1
    assert len(attribution()[np.array([True, False])]) == 1
    assert len(attribution()[np.array([1, 1, 0])]) == 3


def test_slices_share_memory_in_the_file_without_storing_the_batch(tmp_path):
    whole = Attribution(torch.randn(64, 3, 32, 32), inputs=torch.randn(64, 3, 32, 32))
    path = whole[:1].save(tmp_path / "one")
    assert path.stat().st_size < 2 * 3 * 32 * 32 * 4 + 4000


def test_one_tensor_in_two_places_is_saved(tmp_path):
    values = torch.rand(2, 3, 4, 4)
    found = load(Attribution(values, inputs=values).save(tmp_path / "x"))
    assert torch.equal(found.values, found.inputs)


def test_results_keep_no_graph():
    values = torch.rand(2, 3, requires_grad=True) * 2
    result = Attribution(values, over="features", inputs=values)
    assert not result.values.requires_grad
    assert not result.inputs.requires_grad


def test_the_parts_must_be_of_the_same_examples():
    with pytest.raises(pellucid.InputError, match="differ in their number of examples"):
        Synthesis(torch.rand(2, 3, 4, 4), trace=torch.rand(3, 5))
    with pytest.raises(pellucid.InputError, match="differ in their number of examples"):
        Synthesis(torch.rand(2, 3, 4, 4), names=("a",))


def test_inputs_of_other_length_stay_whole():
    chosen = Exemplars(torch.rand(1, 3), torch.arange(3)[None], kind="prototype", inputs=torch.rand(9, 3, 4, 4))
    assert len(chosen[0].inputs) == 9


def test_checks_are_made_from_any_iterable_and_print_as_a_table():
    result = attribution(checks=(check for check in [Check.bound("sum", 0.2, 0.1, "a <b>")]))
    assert isinstance(result.checks, Checks)
    assert attribution().checks == Checks()
    assert "1 fail" in repr(result)
    assert "&lt;b&gt;" in result._repr_html_()
