"""Segments of images, tables and signals, what is shown of them, and what a result keeps of them."""

import sys

import pytest
import torch
from torch import nn

import pellucid
from pellucid_perturbation.exact_shapley import ExactShapley
from pellucid_perturbation.kernel_shap import KernelSHAP
from pellucid_perturbation.segments import Players


def sample(inputs, **kinds):
    return pellucid.Sample(inputs, pellucid.ClassLogit(0), **kinds)


IMAGES = torch.rand(2, 3, 10, 13, generator=torch.Generator().manual_seed(0)).double()


def test_a_grid_has_cells_of_nearly_equal_size_whose_channels_are_together():
    players = Players.of(sample(IMAGES), "auto", 3)
    assert players.counts.tolist() == [9, 9]
    sizes = players.groups["input"].unique(return_counts=True)[1]
    assert sizes.min() >= 3 * 4
    assert sizes.max() <= 4 * 5
    assert players.together


@pytest.mark.parametrize(
    ("shape", "segments", "count"),
    [
        ((2, 7), "auto", 7),
        ((2, 7), "grid", 7),
        ((2, 3, 20), "auto", 4),
        ((2, 3, 20), "features", 20),
        ((2,), "auto", 1),
    ],
)
def test_tables_have_features_and_signals_have_stretches(shape, segments, count):
    assert Players.of(sample(torch.rand(shape)), segments, 4).counts.tolist() == [count, count]


def test_a_label_map_may_be_for_all_examples_for_each_or_for_each_channel():
    wide = torch.rand(2, 3, 4, 5)
    one = torch.randint(-2, 5, (4, 5), generator=torch.Generator().manual_seed(1))
    each = torch.stack([one, one.clamp_min(1)])
    for given, counts in ((one, [7, 7]), (each, [7, 4]), (each[:, None], [7, 4]), (one.numpy(), [7, 7])):
        players = Players.of(sample(wide), given, 3)
        assert players.counts.tolist() == counts
        assert players.map(wide).shape == (2, 4, 5)
    by_channel = Players.of(sample(wide), torch.arange(3)[None, :, None, None].expand(1, 3, 4, 5), 3)
    assert by_channel.counts.tolist() == [3, 3]
    assert not by_channel.together
    assert by_channel.map(wide) is None


def test_only_the_segments_in_a_coalition_are_shown():
    wide = torch.rand(2, 3, 4, 5)
    each = torch.randint(0, 4, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    players = Players.of(sample(wide), each, 3)
    coalitions = torch.tensor([[True, False, False, True], [False, True, True, True]])
    (shown,) = players.shown(coalitions, torch.tensor([1, 0])).values()
    for row, example in enumerate([1, 0]):
        for i in range(4):
            for j in range(5):
                assert shown[row, 0, i, j] == coalitions[row, each[example, i, j]]


def test_slic_finds_the_halves_of_a_picture_in_each_example_by_itself():
    pytest.importorskip("skimage")
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, :, 16:], images[1, :, 16:] = 1, 1
    found = Players.of(sample(images), "slic", 2)
    for example, halves in enumerate((torch.arange(32) >= 16, (torch.arange(32) >= 16)[:, None])):
        labels = found.map(images)[example]
        inside = torch.zeros(32, 32, dtype=torch.bool) | halves
        assert not set(labels[inside].tolist()) & set(labels[~inside].tolist())
    again = Players.of(sample(images[1:]), "slic", 2)
    assert torch.equal(again.map(images[1:])[0], found.map(images)[1])
    # Colours are those of the photo, whatever it was normalised with.
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    photo = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    normalised = (photo - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    plain = Players.of(sample(photo, mean=(0.0,) * 3, std=(1.0,) * 3), "slic", 3)
    assert torch.equal(Players.of(sample(normalised, mean=mean, std=std), "slic", 3).map(photo), plain.map(photo))


def test_without_scikit_image_slic_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(pellucid.Unavailable, match="pip install"):
        Players.of(sample(IMAGES), "slic", 3)


def test_a_function_makes_the_segments_of_each_example():
    def bright(image):
        return (image.sum(dim=0) > 1.5).long()

    players = Players.of(sample(IMAGES), bright, 3)
    assert torch.equal(players.map(IMAGES), (IMAGES.sum(dim=1) > 1.5).long())


NET = nn.Sequential(nn.Flatten(), nn.Linear(390, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("name", ["exact_shapley", "kernel_shap", "shapley_sampling", "lime"])
def test_examples_with_different_numbers_of_segments_are_explained_as_alone(name):
    each = torch.randint(0, 7, (2, 10, 13), generator=torch.Generator().manual_seed(1))
    each[1] = each[1].clamp_max(4)
    torch.manual_seed(0)
    options = {} if name == "exact_shapley" else {"n_samples": 20}
    for target in (None, torch.tensor([0, 2])):
        made = pellucid.create(name, segments=each, baseline="mean", **options)
        whole = pellucid.explain(NET, IMAGES, made, target=target)
        for row in range(2):
            one = pellucid.create(name, segments=each[row], baseline="mean", **options)
            own = None if target is None else target[row : row + 1]
            alone = pellucid.explain(NET, IMAGES[row : row + 1], one, target=own, batch_size=3)
            torch.testing.assert_close(whole.values[row : row + 1], alone.values, rtol=0, atol=1e-10)
            torch.testing.assert_close(whole.error[row : row + 1], alone.error, rtol=0, atol=1e-10)


def test_a_result_keeps_the_value_and_the_error_of_each_segment(tmp_path):
    found = pellucid.explain(NET, IMAGES, KernelSHAP(n_samples=40, cells=3), target=1)
    values, errors = found.of_segments(), found.of_segments(found.error)
    assert values.shape == errors.shape == (2, 9)
    assert (errors > 0).all()
    segments = found.segments
    for example in range(2):
        for number in range(9):
            assert (found.values[example, :, segments[example] == number] == values[example, number]).all()
    torch.testing.assert_close(found.heatmap(), values.gather(1, segments.flatten(1)).view(2, 10, 13))
    read = pellucid.load(found.save(tmp_path / "result"))
    assert torch.equal(read.error, found.error)
    assert torch.equal(found[1].of_segments(), values[1:])
    assert torch.equal(found[1].error, found.error[1:])


def test_values_without_segments_cannot_be_read_by_segment():
    plain = pellucid.Attribution(torch.rand(1, 3, 4, 4))
    with pytest.raises(pellucid.InputError, match="no map of segments"):
        plain.of_segments()
    # Pixels in no segment, and a segment that an example does not have.
    segments = torch.tensor([[[0, -1], [2, 2]]])
    some = pellucid.Attribution(torch.tensor([[[[5.0, 0.0], [7.0, 7.0]]]]), segments=segments)
    assert some.of_segments().tolist() == [[5.0, 0.0, 7.0]]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ("pixels", "unknown"),
        (torch.zeros(10, 12, dtype=torch.long), "does not broadcast"),
        (torch.zeros(3, 10, 13, 1, dtype=torch.long), "does not broadcast"),
        (torch.zeros(10, 13), "whole numbers"),
        (torch.zeros(10, 13, dtype=torch.bool), "whole numbers"),
        (lambda image: torch.zeros(2, 2, dtype=torch.long), "does not broadcast"),
        ({"picture": "grid"}, "the inputs are"),
        (object(), "whole numbers"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, message):
    with pytest.raises(pellucid.ParameterError, match=message):
        pellucid.explain(NET, IMAGES, ExactShapley(segments=segments), target=1)


def test_three_maps_for_three_examples_of_three_channels_must_say_which_they_are():
    with pytest.raises(pellucid.ParameterError, match="each example or for each channel"):
        Players.of(sample(torch.rand(3, 3, 4, 4)), torch.zeros(3, 4, 4, dtype=torch.long), 3)


def test_superpixels_of_a_table_and_one_map_for_several_inputs_are_refused():
    with pytest.raises(pellucid.ParameterError, match="photos"):
        Players.of(sample(torch.rand(2, 5)), "slic", 3)
    several = pellucid.Leaves({"left": torch.rand(2, 3), "right": torch.rand(2, 2)})
    with pytest.raises(pellucid.ParameterError, match="several inputs"):
        Players.of(sample(several), torch.arange(3), 3)
    assert Players.of(sample(several), "auto", 3).counts.tolist() == [5, 5]
    assert Players.of(sample(several), {"left": torch.zeros(3, dtype=torch.long)}, 3).counts.tolist() == [3, 3]
