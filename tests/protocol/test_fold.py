"""Folds, against stacking everything in float64."""

from __future__ import annotations

import pytest
import torch

from pellucid import Leaves, Mean, Moments, Part, ProtocolError, Sum

N, B = 7, 3


def rows(dtype: torch.dtype = torch.float64, shift: float = 0.0) -> torch.Tensor:
    return (torch.randn(N, B, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + shift).to(dtype)


def parts(values, sizes=(4, 1, 9, 7)):
    """The rows, draw by draw, in parts of uneven sizes."""
    start = 0
    for size in sizes:
        index = torch.arange(start, start + size)
        start += size
        draws, examples = index // B, index % B
        several = isinstance(values, Leaves)
        chosen = values.each(lambda leaf, d=draws, e=examples: leaf[d, e]) if several else values[draws, examples]
        yield Part(
            draws, examples, chosen, chosen.sum() if several else chosen.sum(dim=(1, 2)), gradients={"input": chosen}
        )
    assert start == N * B


def folded(fold, values):
    folding = fold.start(N, B)
    for part in parts(values):
        folding.add(part)
    return folding.finish()


def test_the_mean_without_weights_is_the_plain_mean():
    torch.testing.assert_close(folded(Mean(), rows())["gradients"]["input"], rows().mean(dim=0))


@pytest.mark.parametrize("shape", [(N,), (N, B)])
def test_the_mean_with_weights_is_the_weighted_sum(shape):
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros(B, 2, 4, dtype=torch.float64)
    for draw in range(N):
        for example in range(B):
            weight = weights[draw] if len(shape) == 1 else weights[draw, example]
            expected[example] += weight * rows()[draw, example]
    torch.testing.assert_close(folded(Mean(weights), rows())["gradients"]["input"], expected)


@pytest.mark.parametrize("shape", [(N + 1,), (B, N), (N, B, 1), ()])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(ProtocolError, match=r"weights of shape .* expected \(7,\) or \(7, 3\)"):
        Mean(torch.ones(shape)).start(N, B)


def test_moments_are_the_mean_and_the_variance_that_divides_by_n():
    found = folded(Moments(), rows())
    torch.testing.assert_close(found["gradients"]["input"], rows().mean(dim=0))
    torch.testing.assert_close(found["spread"]["gradients"]["input"], rows().var(dim=0, unbiased=False))


def test_moments_are_exact_where_the_mean_is_large():
    found = folded(Moments(), rows(torch.float32, shift=1e4))
    expected = rows(torch.float32, shift=1e4).double().var(dim=0, unbiased=False)
    torch.testing.assert_close(found["spread"]["gradients"]["input"].double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_half_precision_and_whole_numbers_are_summed_in_single(dtype):
    values = (rows() * 10).to(dtype)
    weights = torch.full((N,), 1 / N)
    for fold in (Mean(), Mean(weights), Moments()):
        mean = folded(fold, values)["gradients"]["input"]
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean.double(), values.double().mean(dim=0), rtol=1e-4, atol=1e-4)


def test_a_sum_of_what_a_function_makes():
    found = folded(Sum(lambda part: {"square": part.inputs**2, "ones": torch.ones(len(part.draws))}), rows())["folded"]
    torch.testing.assert_close(found["square"], (rows() ** 2).sum(dim=0))
    assert found["ones"].tolist() == [N] * B


def test_a_sum_knows_draws_and_examples():
    found = folded(Sum(lambda part: part.draws * 10.0 + part.examples), rows())["folded"]
    assert found.tolist() == [10 * sum(range(N)) + N * example for example in range(B)]


@pytest.mark.parametrize("returned", [lambda part: part.inputs.sum(), lambda part: part.inputs[1:], lambda part: 3.0])
def test_a_sum_over_anything_but_rows_is_refused(returned):
    with pytest.raises(ProtocolError, match=r"expected \(4, \.\.\.\), a row each"):
        folded(Sum(returned), rows())


def test_a_function_of_sum_may_not_change_what_it_is_shown():
    with pytest.raises(ProtocolError, match="in place"):
        folded(Sum(lambda part: part.gradients["input"].mul_(2)), rows())


def test_folds_take_leaves_and_trees():
    one, two = rows(), rows()[..., 0] * 2
    for fold in (Mean(), Moments(), Sum(lambda part: part.inputs / N)):
        found = folded(fold, Leaves({"a": one, "b": two}))
        found = found.get("folded", None) if isinstance(fold, Sum) else found["gradients"]["input"]
        assert isinstance(found, Leaves)
        torch.testing.assert_close(found["a"], one.mean(dim=0))
        torch.testing.assert_close(found["b"], two.mean(dim=0))


@pytest.mark.parametrize("fold", [Mean(), Moments()])
def test_outputs_without_a_row_each_have_no_mean(fold):
    part = next(parts(rows()))
    strange = Part(part.draws, part.examples, part.inputs, part.scores, outputs={"loss": torch.tensor(1.0)})
    with pytest.raises(ProtocolError, match="a row each"):
        fold.start(N, B).add(strange)


def test_one_fold_serves_several_runs():
    fold = Mean()
    assert folded(fold, rows())["gradients"]["input"].equal(folded(fold, rows())["gradients"]["input"])
