"""Feature ablation: against captum, closed forms, and bad groups."""

import pytest
import torch
from torch import nn

import pellucid
from pellucid_perturbation.feature_ablation import FeatureAblation

TARGET = torch.tensor([0, 3, 1])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 13, 5)).double().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_captum_agrees_on_given_groups(net, images):
    captum = pytest.importorskip("captum.attr")
    groups = torch.randint(3, 9, (12, 15), generator=torch.Generator().manual_seed(2))  # numbers that do not start at 0
    found = pellucid.explain(net, images, FeatureAblation(groups=groups, baseline=0.2), target=TARGET)
    expected = captum.FeatureAblation(net).attribute(images, baselines=0.2, target=TARGET, feature_mask=groups - 3)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)


def test_every_feature_of_a_table_by_itself():
    torch.manual_seed(0)
    table, linear = torch.randn(5, 6), nn.Linear(6, 3)
    found = pellucid.explain(linear, table, "feature_ablation", target=2)
    torch.testing.assert_close(found.values, (linear.weight[2] * table).detach())
    assert found.meta.passes["forward"] == 1 + 6


def test_without_groups_an_image_is_cut_into_a_grid_whose_cells_differ_by_at_most_a_pixel():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 23, 2))
    found = pellucid.explain(net, torch.randn(2, 3, 20, 23), FeatureAblation(cells=7), target=0)
    assert found.meta.passes["forward"] == 1 + 7 * 7
    values, counts = found.values[0, 0].unique(return_counts=True)
    assert len(values) == 49
    assert counts.min() >= 2 * 3
    assert counts.max() <= 3 * 4
    assert (found.values == found.values[:, :1]).all()


def test_examples_may_have_groups_of_their_own(net, images):
    groups = torch.randint(0, 6, (3, 1, 12, 15), generator=torch.Generator().manual_seed(2))
    groups[2] = groups[2].clamp_max(2)  # fewer groups than the others
    together = pellucid.explain(net, images, FeatureAblation(groups=groups), target=TARGET).values
    for example in range(3):
        one = slice(example, example + 1)
        alone = FeatureAblation(groups=groups[example])
        torch.testing.assert_close(
            together[one], pellucid.explain(net, images[one], alone, target=TARGET[one], batch_size=2).values
        )


class Two(nn.Module):
    """A product of two inputs, so that hiding both is not the sum of hiding each."""

    def forward(self, left, right):
        return (left[:, :2] * right[:, :2]).cumsum(dim=1)


def test_a_group_may_span_several_inputs():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    left, right = torch.randn(3, 2).double(), torch.randn(3, 3).double()
    groups = {"left": torch.tensor([0, 1]), "right": torch.tensor([1, 2, 3])}
    found = pellucid.explain(Two(), {"left": left, "right": right}, FeatureAblation(groups=groups), target=1).values
    expected = captum.FeatureAblation(Two()).attribute(
        (left, right), target=1, feature_mask=tuple(group[None] for group in groups.values())
    )
    torch.testing.assert_close(found["left"], expected[0])
    torch.testing.assert_close(found["right"], expected[1])


def test_inputs_without_groups_have_features_of_their_own():
    torch.manual_seed(0)
    inputs = {"left": torch.randn(3, 2).double(), "right": torch.randn(3, 3).double()}
    some = pellucid.explain(Two(), inputs, FeatureAblation(groups={"right": torch.tensor([5, 5, 5])}), target=1).values
    product = inputs["left"] * inputs["right"][:, :2]
    torch.testing.assert_close(some["left"], product)
    torch.testing.assert_close(some["right"], product.sum(dim=1, keepdim=True).expand(3, 3))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.zeros(12, 14, dtype=torch.long), "does not broadcast"),
        (torch.zeros(12, 15), "whole numbers"),
        (torch.zeros(12, 15, dtype=torch.bool), "whole numbers"),
        ({"picture": torch.zeros(12, 15, dtype=torch.long)}, "the inputs are"),
    ],
)
def test_groups_that_do_not_fit_are_refused(net, images, groups, message):
    with pytest.raises(pellucid.ParameterError, match=message):
        pellucid.explain(net, images, FeatureAblation(groups=groups), target=TARGET)


def test_one_map_of_groups_for_several_inputs_is_refused():
    inputs = {"left": torch.randn(3, 2), "right": torch.randn(3, 2)}
    with pytest.raises(pellucid.ParameterError, match="several inputs"):
        pellucid.explain(Two(), inputs, FeatureAblation(groups=[0, 1]), target=1)
