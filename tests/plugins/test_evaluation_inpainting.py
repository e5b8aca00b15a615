"""Inpainting: against the dense system that it relaxes, and on a photo."""

import pytest
import torch
from torch.nn import functional as F

from pellucid_evaluation.inpainting import inpaint


def solved(images, shown):
    """Every hidden pixel as the weighted sum of its eight neighbours, by a dense solver."""
    height, width = images.shape[2:]
    count = height * width
    kernel = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]).double()[None, None] / 12
    units = torch.eye(count).double().reshape(count, 1, height, width)
    weights = F.conv2d(F.pad(units, (1, 1, 1, 1), mode="replicate"), kernel).reshape(count, count).T
    filled = torch.empty_like(images)
    for example, mask in enumerate(shown.reshape(len(images), count)):
        system = torch.eye(count).double() - torch.where(mask[:, None], 0.0, weights)
        known = torch.where(mask, images[example].reshape(-1, count), 0.0)
        filled[example] = torch.linalg.solve(system, known.T).T.reshape(images[example].shape)
    return filled


def cells(share, side, size=24, seed=0):
    """Which cells of an image stay."""
    count = -(-size // side)
    kept = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)) > share
    return kept.repeat_interleave(side, 0).repeat_interleave(side, 1)[None, None, :size, :size]


def photo():
    """A smooth picture with an edge, (1, 3, 24, 24) within 0 and 1."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, 24, dtype=torch.float64),) * 2, indexing="ij")
    return torch.stack([y * x, (x - 0.5).abs(), (x + y > 1).double() * 0.5 + 0.3 * y])[None]


@pytest.mark.parametrize(("share", "side"), [(0.3, 1), (0.5, 2), (0.6, 1), (0.4, 4), (0.5, 8)])
def test_the_pyramid_comes_near_the_exact_solution(share, side):
    images, shown = photo(), cells(share, side)
    assert (inpaint(images, shown) - solved(images, shown)).abs().max() < 0.1
    assert (inpaint(images, shown) - solved(images, shown)).square().mean().sqrt() < 0.015


def test_many_sweeps_reach_the_exact_solution():
    images, shown = photo(), cells(0.5, 2)
    torch.testing.assert_close(inpaint(images, shown, sweeps=400), solved(images, shown), rtol=0, atol=1e-6)


def test_a_smooth_picture_is_filled_far_better_than_by_its_mean():
    images, shown = photo()[:, :2], cells(0.4, 2)
    hidden = ~shown.expand_as(images)
    by_mean = (images - images.mean(dim=(2, 3), keepdim=True))[hidden].square().mean()
    assert (inpaint(images, shown) - images)[hidden].square().mean() < 0.1 * by_mean


def test_what_is_shown_stays_and_a_constant_is_restored():
    images, shown = photo(), cells(0.7, 3)
    kept = shown.expand_as(images)
    assert torch.equal(inpaint(images, shown)[kept], images[kept])
    torch.testing.assert_close(inpaint(torch.full_like(images, 0.3), shown), torch.full_like(images, 0.3))


def test_images_of_a_batch_are_filled_by_themselves():
    images = torch.cat([photo(), photo().flip(3), photo()])
    shown = torch.cat([cells(0.5, 2), cells(0.5, 2, seed=1), torch.ones(1, 1, 24, 24, dtype=torch.bool)])
    together = inpaint(images, shown)
    for example in range(3):
        one = slice(example, example + 1)
        torch.testing.assert_close(together[one], inpaint(images[one], shown[one]))


def test_where_nothing_is_shown_zero_is_left():
    assert not inpaint(photo(), torch.zeros(1, 1, 24, 24, dtype=torch.bool)).any()


def test_a_signal_is_filled_in_a_straight_line():
    signal = torch.linspace(0, 1, 15).double()[None, None]
    shown = torch.ones(1, 1, 15, dtype=torch.bool)
    shown[..., 4:9] = False
    torch.testing.assert_close(inpaint(signal, shown, sweeps=200), signal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 7), (1, 2, 5, 1), (2, 1, 3, 2)])
def test_small_and_narrow_pictures(shape):
    images = torch.rand(shape).double()
    shown = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    shown[..., 0, 0] = True
    torch.testing.assert_close(inpaint(images, shown, sweeps=400), images[..., :1, :1].expand(shape), rtol=0, atol=1e-4)
