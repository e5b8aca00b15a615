"""Several inputs that behave as one tensor."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pellucid import Leaves
from pellucid.protocol import each, per_example, tensors_of


def leaves(seed: int = 0) -> Leaves:
    generator = torch.Generator().manual_seed(seed)
    return Leaves(
        {
            "image": torch.rand(3, 2, 4, 4, generator=generator, dtype=torch.float64) + 0.5,
            "table": torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.5,
        }
    )


def same(found: Leaves, expected: dict[str, torch.Tensor]) -> None:
    assert isinstance(found, Leaves)
    assert list(found) == list(expected)
    for name, leaf in expected.items():
        torch.testing.assert_close(found[name], leaf, rtol=0, atol=0)


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a**b,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        torch.maximum,
        torch.add,
        lambda a, b: torch.where(a > b, a, b),
        lambda a, b: torch.stack([a, b]).sum(dim=0),
        lambda a, b: torch.cat([a, b], dim=1),
        lambda a, b: torch.lerp(a, b, weight=0.25),
        lambda a, b: a.lerp(end=b, weight=0.25),
        lambda a, b: a.add(b, alpha=2),
        lambda a, b: a.mul(other=b),
    ],
)
def test_two_are_combined_leaf_by_leaf(combine):
    one, two = leaves(1), leaves(2)
    same(combine(one, two), {name: combine(one[name], two[name]) for name in one})


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a * 2,
        lambda a: 2 * a,
        lambda a: a + 1.5,
        lambda a: 1.5 + a,
        lambda a: a - 1,
        lambda a: 1 - a,
        lambda a: a / 4,
        lambda a: 4 / a,
        lambda a: a**2,
        lambda a: -a,
        abs,
        lambda a: torch.tensor(2.0, dtype=torch.float64) * a,
        lambda a: a * torch.tensor(2.0, dtype=torch.float64),
        lambda a: a.flatten(1).sum(dim=1),
        lambda a: a.amax(1, keepdim=True),
        lambda a: a.clamp(min=0.7),
        torch.sqrt,
        torch.zeros_like,
        lambda a: torch.sum(a, dim=tuple(range(1, 2))),
        lambda a: a[1:],
        lambda a: a[torch.tensor([2, 0])],
        lambda a: a[torch.tensor([True, False, True])],
        lambda a: a.index_copy(0, torch.tensor([1]), a[:1]),
    ],
)
def test_one_is_changed_leaf_by_leaf(change):
    one = leaves()
    same(change(one), {name: change(one[name]) for name in one})


def test_what_is_done_to_one_leaf_is_seen_by_name_only():
    one = leaves()
    assert one["image"].shape == (3, 2, 4, 4)
    assert dict(one.items()).keys() == {"image", "table"}
    assert repr(one) == "Leaves(image: (3, 2, 4, 4), table: (3, 5))"
    with pytest.raises(KeyError):
        one["sound"]


@pytest.mark.parametrize(
    "combine", [lambda a, b: a + b, torch.mul, lambda a, b: torch.stack([a, b]), lambda a, b: a.add(b)]
)
def test_other_names_are_refused(combine):
    with pytest.raises(KeyError, match="image"):
        combine(leaves(), Leaves({"image": torch.ones(3, 1, 1, 1), "sound": torch.ones(3, 5)}))


def test_what_a_tensor_has_not_they_have_not():
    with pytest.raises(AttributeError, match="no_such_method"):
        leaves().no_such_method  # noqa: B018
    assert not hasattr(leaves(), "shape")  # each leaf has its own


def test_copies_and_pickles_keep_names_and_values():
    one = leaves()
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        same(other, dict(one.items()))


def test_gradients_flow_through_arithmetic():
    one = leaves().each(lambda leaf: leaf.clone().requires_grad_())
    total = sum(leaf.sum() for leaf in (one**2).values())
    for name, gradient in zip(one, torch.autograd.grad(total, list(one.values())), strict=True):
        torch.testing.assert_close(gradient, 2 * one[name].detach())


def test_the_helpers_take_a_tensor_or_leaves():
    tensor, several = torch.ones(2, 3), leaves()
    assert each(torch.neg, tensor).equal(-tensor)
    same(each(torch.neg, several), dict((-several).items()))
    assert tensors_of(tensor) == [tensor]
    assert [leaf.shape for leaf in tensors_of(several)] == [(3, 2, 4, 4), (3, 5)]
    assert per_example(torch.arange(3), several["image"]).shape == (3, 1, 1, 1)
