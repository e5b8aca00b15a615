"""Samples: baselines, parts, generators and the lazily derived ones."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from pellucid import InputError, Leaves, ParameterError, ProtocolError, Sample
from pellucid.protocol import ClassLogit, Frame, Region


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 6, 8, generator=torch.Generator().manual_seed(0))


def sample(inputs=None, **options) -> Sample:
    return Sample(images() if inputs is None else inputs, ClassLogit(1), **options)


def several() -> Sample:
    return sample(Leaves({"image": images(), "table": torch.arange(6.0).reshape(3, 2)}))


# --- baselines -------------------------------------------------------------------------------------------------------


def test_baselines_are_what_their_names_say():
    one = sample(mean=(0.5, 0.25), std=(0.5, 0.1))
    assert one.baseline("zero").equal(torch.zeros(3, 2, 6, 8))
    black = one.baseline("black")
    assert black.shape == (3, 2, 6, 8)
    assert black[:, 0].unique().tolist() == [-1.0]
    torch.testing.assert_close(black[:, 1], torch.full((3, 6, 8), -2.5))
    torch.testing.assert_close(one.baseline("mean")[1, 0], images()[1, 0].mean().expand(6, 8))
    assert one.baseline(0.5).unique().tolist() == [0.5]
    assert one.baseline(torch.full((2, 1, 1), 3.0)).equal(torch.full((3, 2, 6, 8), 3.0))


def test_black_without_a_normalisation_is_each_examples_least_value():
    black = sample().baseline("black")
    for example in range(3):
        assert black[example].unique().tolist() == [images()[example].min().item()]


def test_blur_keeps_a_constant_and_the_mean_of_each_channel():
    assert torch.allclose(sample(torch.full((1, 2, 16, 16), 3.0)).baseline("blur"), torch.tensor(3.0))
    blurred = sample().baseline("blur")
    assert blurred.shape == images().shape
    assert blurred.var() < images().var() / 2


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 9), (1, 3, 5, 2)])
def test_blur_of_tiny_images(shape):
    assert sample(torch.randn(shape)).baseline("blur").isfinite().all()


def test_the_same_spec_gives_the_same_object():
    one, spec = sample(), torch.zeros(2, 6, 8)
    for given in ("zero", 0.5, spec):
        assert one.baseline(given) is one.baseline(given)
    assert one.baseline(torch.zeros(2, 6, 8)) is not one.baseline(spec)


def test_baselines_of_several_inputs():
    one = several()
    zero = one.baseline("zero")
    assert {name: tuple(leaf.shape) for name, leaf in zero.items()} == {"image": (3, 2, 6, 8), "table": (3, 2)}
    for given in (
        {"image": torch.ones(()), "table": torch.tensor([1.0, 2.0])},
        Leaves({"image": torch.ones(1), "table": torch.tensor([[1.0, 2.0]])}),
    ):
        made = one.baseline(given)
        assert made["image"].equal(torch.ones(3, 2, 6, 8))
        assert made["table"].tolist() == [[1.0, 2.0]] * 3


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("grey", "unknown; expected one of"),
        (torch.zeros(3, 3), "does not broadcast"),
        (torch.zeros(9, 3, 2, 6, 8), "does not broadcast"),
        (torch.full((2, 6, 8), torch.nan), "not finite"),
        (math.inf, "finite"),
        (None, "expected one of"),
        (object(), "expected one of"),
        ({"image": torch.zeros(1)}, "one input"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(spec, told):
    with pytest.raises(ParameterError, match=told):
        sample().baseline(spec)


def test_baselines_of_other_names_are_refused():
    with pytest.raises(ParameterError, match=r"\['image', 'table'\]"):
        several().baseline({"image": torch.zeros(1)})


def test_words_for_images_are_refused_for_tables():
    for word in ("mean", "blur"):
        with pytest.raises(ParameterError, match=word):
            sample(torch.randn(3, 4)).baseline(word)


# --- parts and other inputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([0, 2]), [0, 2]),
        (torch.tensor(2), [2]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
)
def test_parts_take_inputs_targets_and_extras_along(chosen, expected):
    target = ClassLogit(torch.tensor([5, 6, 7]))
    frame = Frame(lambda inputs, extras: ((inputs,), extras), {"ids": torch.arange(3) * 10})
    part = Sample(images(), target, 4, frame=frame)[chosen]
    assert part.inputs.equal(images()[expected])
    assert part.target.classes.tolist() == [[5, 6, 7][i] for i in expected]
    assert part.frame.extras["ids"].tolist() == [10 * i for i in expected]
    assert (len(part), part.seed) == (len(expected), 4)


def test_going_through_a_sample_in_parts():
    one = Sample(
        images(), ClassLogit(torch.tensor([0, 1, 0])), frame=Frame(lambda *_: ((), {}), {"mask": torch.arange(3)})
    )
    part = one.part(1, 3)
    assert part.inputs.equal(images()[1:])
    assert part.target.classes.tolist() == [1, 0]
    assert part.frame.extras["mask"].tolist() == [1, 2]
    assert one.part(0, 3) is one  # whose passes are shared
    assert one.part(0, 9) is one
    assert len(one.part(2, 9)) == 1
    assert one.held is one.inputs
    predicted = Sample(images(), ClassLogit())
    assert predicted.part(1, 2).target.base(predicted.part(1, 2)) is not predicted  # no pass of the whole for a part
    assert predicted[1:2].target.base(predicted[1:2]) is predicted


def test_parts_of_several_inputs():
    part = several()[1:]
    assert len(part) == 2
    assert part.inputs["table"].tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_no_such_example():
    with pytest.raises(IndexError):
        sample()[3]


def test_other_inputs_must_be_as_many():
    assert sample().at(torch.zeros(3, 2, 4, 4)).inputs.shape == (3, 2, 4, 4)
    for wrong in (torch.zeros(2, 2, 6, 8), torch.tensor(1.0)):
        with pytest.raises(ProtocolError, match=r"expected \(3, \.\.\.\)"):
            sample().at(wrong)


def test_the_generator_depends_on_seed_and_labels_alone():
    def draw(seed, *labels):
        return torch.rand(4, generator=sample(seed=seed).generator(*labels)).tolist()

    before = torch.get_rng_state()
    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({tuple(draw(*each)) for each in ((0, "a", 1), (1, "a", 1), (0, "a", 2), (0, "b", 1), (0, "a"))}) == 5
    assert before.equal(torch.get_rng_state())


# --- derived samples -------------------------------------------------------------------------------------------------


def all_rows(derived) -> torch.Tensor:
    """Every row by itself, put together as (n, B, ...)."""
    b = len(derived.sample)
    rows = [derived.rows(torch.tensor([d]), torch.tensor([e])) for d in range(derived.n) for e in range(b)]
    return torch.cat(rows).reshape(derived.n, b, *rows[0].shape[1:])


def at_once(derived) -> torch.Tensor:
    b = len(derived.sample)
    index = torch.arange(derived.n * b)
    return derived.rows(index // b, index % b).reshape(derived.n, b, *derived.sample.inputs.shape[1:])


def test_a_path_is_the_straight_line():
    x, start = images(), torch.full((2, 6, 8), 0.5)
    derived = sample().along(start, [0.0, 0.25, 1.0])
    assert (len(derived), derived.n) == (9, 3)
    expected = torch.stack([start + alpha * (x - start) for alpha in (0.0, 0.25, 1.0)])
    torch.testing.assert_close(all_rows(derived), expected)
    torch.testing.assert_close(at_once(derived), expected)


def test_noise_is_the_same_for_every_example_and_any_batch():
    x = images().double()
    derived = Sample(x, ClassLogit(0), 3).jittered(4, 0.1)
    assert all_rows(derived).equal(at_once(derived))
    width = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
    noise = (at_once(derived) - x) / width / 0.1
    torch.testing.assert_close(noise[:, 0], noise[:, 2])
    alone = Sample(x[2:], ClassLogit(0), 3).jittered(4, 0.1)
    torch.testing.assert_close(at_once(alone)[:, 0], at_once(derived)[:, 2])
    other = Sample(x, ClassLogit(0), 4).jittered(4, 0.1)
    assert not torch.allclose(at_once(other), at_once(derived))


def test_absolute_noise_and_labels():
    x = images(60)
    derived = Sample(x, ClassLogit(0)).jittered(50, 0.2, relative=False)
    noise = at_once(derived) - x
    assert abs(noise[:, 0].std() - 0.2) < 0.01
    other = Sample(x, ClassLogit(0)).jittered(50, 0.2, relative=False, label="other")
    assert not torch.allclose(at_once(other), at_once(derived))
    assert at_once(Sample(x, ClassLogit(0)).jittered(2, 0)).equal(x.expand(2, *x.shape))


def test_masks_show_the_inputs_where_they_are_one():
    x = images()
    masks = torch.rand(4, 1, 6, 8, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([mask * x + (1 - mask) * 7.0 for mask in masks])
    torch.testing.assert_close(all_rows(sample().masked(4, masks, 7.0)), expected)
    hard = masks > 0.5
    expected = torch.stack([torch.where(mask, x, torch.tensor(0.0)) for mask in hard])
    assert at_once(sample().masked(4, hard)).equal(expected)
    drawn = sample().masked(4, lambda draws, examples: masks[draws], 7.0)
    assert at_once(drawn).equal(at_once(sample().masked(4, masks, 7.0)))


def test_masks_of_several_inputs():
    masks = Leaves({"image": torch.zeros(2, 1, 6, 8), "table": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
    made = several().masked(2, masks).rows(torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert made["image"].equal(torch.zeros(2, 2, 6, 8))
    assert made["table"].tolist() == [[4.0, 0.0], [0.0, 5.0]]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_masks_without_the_axis_of_channels_are_refused_in_any_batch(rows):
    # With as many rows as channels, broadcasting would lay the masks over the channels and say nothing.
    derived = sample().masked(4, torch.ones(4, 6, 8))
    with pytest.raises(ProtocolError, match="as many axes as the inputs'"):
        derived.rows(torch.arange(rows), torch.zeros(rows, dtype=torch.long))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda one: one.masked(5, torch.ones(4, 1, 6, 8)), "expected \\(5, "),
        (lambda one: one.along("zero", torch.ones(2, 2)), "expected \\(n,\\)"),
        (lambda one: one.along("zero", []), "at least 1"),
        (lambda one: one.jittered(0, 0.1), "at least 1"),
        (lambda one: one.jittered(3, -0.1), "0 or more"),
        (lambda one: one.jittered(3, math.nan), "0 or more"),
        (lambda one: one.along("nowhere", [0.5]), "unknown"),
    ],
)
def test_wrong_parameters_of_derived_samples(make, told):
    with pytest.raises(ParameterError, match=told):
        make(sample())


def test_what_makes_a_derived_sample_may_not_change_the_inputs():
    def spoil(inputs, draws, examples):
        return inputs.mul_(0.5)

    with pytest.raises(ProtocolError, match="in place"):
        at_once(sample().derived(1, spoil))


@pytest.mark.parametrize("made", [lambda inputs, *_: inputs.mean(dim=0), lambda inputs, *_: inputs.tolist()])
def test_what_makes_a_derived_sample_gives_a_row_each(made):
    with pytest.raises(ProtocolError, match=r"expected \(6, \.\.\.\)"):
        at_once(sample().derived(2, made))


def test_flattened_holds_every_draw_of_every_example():
    target = ClassLogit(torch.tensor([5, 6, 7]))
    frame = Frame(lambda inputs, extras: ((inputs,), extras), {"ids": torch.arange(3)})
    derived = Sample(images(), target, 1, frame=frame).jittered(2, 0.1)
    flat = derived.flattened()
    assert flat.inputs.reshape(2, 3, 2, 6, 8).equal(at_once(derived))
    assert flat.target.classes.tolist() == [5, 6, 7, 5, 6, 7]
    assert flat.frame.extras["ids"].tolist() == [0, 1, 2, 0, 1, 2]
    masks = torch.rand(3, 6, 8)
    flat = Sample(images(), Region(0, masks)).jittered(2, 0.1).flattened()
    assert flat.target.mask.equal(torch.cat([masks, masks]))


def test_other_examples_for_the_same_model():
    base = sample(torch.zeros(2, 3, dtype=torch.float64))
    other = base.others(torch.ones(5, 3))
    assert other.inputs.dtype == torch.float64
    assert len(other) == 5
    target = ClassLogit(0)
    assert base.others(torch.ones(5, 3), target).target is target


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.ones(5, 4), "have shape (5, 4), the inputs (2, 3)"),
        (torch.full((1, 3), torch.nan), "not finite"),
        (torch.ones(5, 3, dtype=torch.long), "of type torch.int64"),
    ],
)
def test_other_examples_that_do_not_fit(inputs, words):
    with pytest.raises(InputError, match=re.escape(words)):
        sample(torch.zeros(2, 3)).others(inputs, what="the training inputs")
