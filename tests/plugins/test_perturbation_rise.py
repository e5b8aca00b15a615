"""RISE: its masks and estimate in a plainer way, its expectation on linear models, and bad parameters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid_perturbation.rise import RISE


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 17, 5)).double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 19, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


TARGET = torch.tensor([0, 3])


def plain_masks(n, cells, p, sizes, seed=0):
    """Each mask enlarged by torch and cut out where its shift says."""
    random = pellucid.Sample(torch.zeros(1), pellucid.ClassLogit(0), seed)
    masks = []
    for draw in range(n):
        generator = random.generator("rise", "input", draw)
        grid = (torch.rand(cells, cells, generator=generator) < p).float()
        pitch = [-(-size // cells) for size in sizes]
        shift = [int(torch.randint(one, (), generator=generator)) for one in pitch]
        large = F.interpolate(grid[None, None], [(cells + 1) * one for one in pitch], mode="bilinear")[0, 0]
        masks.append(large[shift[0] : shift[0] + sizes[0], shift[1] : shift[1] + sizes[1]])
    return torch.stack(masks).double()


@pytest.mark.parametrize("centred", [True, False])
def test_the_estimate_is_that_of_a_plain_loop(net, images, centred):
    found = pellucid.explain(net, images, RISE(n_masks=90, cells=5, p=0.4, centred=centred), target=TARGET)
    masks = plain_masks(90, 5, 0.4, (16, 19))
    for example in range(2):
        scores = torch.stack([net(images[example : example + 1] * mask)[0, TARGET[example]] for mask in masks])
        if centred:
            scores = (scores - scores.mean()) * 90 / 89
        expected = sum(score * mask for score, mask in zip(scores, masks, strict=True)) / (90 * 0.4)
        torch.testing.assert_close(found.heatmap()[example], expected.detach(), rtol=0, atol=1e-6)


def test_on_a_linear_model_the_values_are_their_expectation_within_the_error_that_is_stated():
    torch.manual_seed(0)
    weight, inputs = torch.randn(8).double(), torch.randn(2, 8).double()
    found = pellucid.explain(lambda x: x @ weight[:, None], inputs, RISE(n_masks=4000, p=0.3, baseline=0.5), target=0)
    expected = (1 - 0.3) * weight * (inputs - 0.5)  # cov(s, m) / p, where var(m) = p (1 - p)
    share = torch.tensor(found.checks.named("Monte-Carlo standard error").each)
    error = share[:, None] * found.values.abs().amax(dim=1, keepdim=True)
    assert ((found.values - expected).abs() < 4 * error).all()
    assert (error < 0.1 * expected.abs().amax()).all()


def test_the_stated_error_is_the_spread_over_seeds(net, images):
    runs = [pellucid.explain(net, images, RISE(n_masks=60, cells=4), target=TARGET, seed=seed) for seed in range(30)]
    spread = torch.stack([run.heatmap() for run in runs]).std(dim=0)
    for example in range(2):
        stated = [
            run.checks.named("Monte-Carlo standard error").each[example] * run.heatmap()[example].abs().max()
            for run in runs
        ]
        # The stated one is the largest of all pixels.
        assert 0.6 < spread[example].max() / torch.stack(stated).mean() < 1.4


def test_leaving_out_how_often_a_pixel_was_shown_takes_nothing_but_noise_away(net, images):
    shifted = lambda inputs: net(inputs) + 20  # noqa: E731
    for centred in (True, False):
        runs = [
            pellucid.explain(shifted, images, RISE(n_masks=60, cells=4, centred=centred), target=TARGET, seed=seed)
            for seed in range(8)
        ]
        maps = torch.stack([run.heatmap() - run.heatmap().mean(dim=(1, 2), keepdim=True) for run in runs])
        noise = maps.std(dim=0).mean()
        if centred:
            quiet = noise
    assert quiet < 0.5 * noise


def test_a_constant_model_gives_zero():
    found = pellucid.explain(lambda x: torch.full((len(x), 2), 7.0), torch.rand(2, 3, 14, 14), RISE(n_masks=20))
    assert found.values.abs().max() < 1e-5
    assert found.checks.named("Monte-Carlo standard error").value == 0


def test_masks_depend_on_the_seed_and_not_on_the_batch(net, images):
    technique = RISE(n_masks=70, cells=4)
    whole = pellucid.explain(net, images, technique, target=TARGET, batch_size=64).values
    alone = pellucid.explain(net, images[1:], technique, target=TARGET[1:], batch_size=3).values
    torch.testing.assert_close(whole[1:], alone)
    assert not torch.allclose(whole, pellucid.explain(net, images, technique, target=TARGET, seed=1).values)


def test_probabilities_are_those_of_the_softmax(net, images):
    found = pellucid.explain(net, images, RISE(n_masks=40, probability=True))
    soft = pellucid.explain(nn.Sequential(net, nn.Softmax(dim=1)), images, RISE(n_masks=40))
    torch.testing.assert_close(found.values, soft.values)


class Two(nn.Module):
    """Scores an image and a table."""

    def forward(self, image, table):
        return torch.stack([image.sum(dim=(1, 2, 3)), table[:, 0]], dim=1)


def test_of_several_inputs_the_one_that_does_not_matter_gets_noise_within_the_error():
    torch.manual_seed(0)
    inputs = {"image": torch.rand(1, 1, 8, 8).double(), "table": torch.tensor([[2.0, 5.0]]).double()}
    found = pellucid.explain(Two(), inputs, RISE(n_masks=2000, cells=4), target=1).values
    assert found["table"][0, 0] == pytest.approx(0.5 * 2, abs=0.1)
    assert found["table"][0, 1].abs() < 0.15
    assert found["image"].abs().max() < 0.15


def test_the_masks_of_a_signal_run_along_it():
    found = pellucid.explain(lambda x: x[:, :, 30:].sum(dim=(1, 2))[:, None], torch.ones(1, 2, 60), RISE(), target=0)
    values = found.values.sum(dim=1)[0]
    assert values[35:].min() > values[:20].max()


@pytest.mark.parametrize(
    "parameters", [{"n_masks": 0}, {"n_masks": 1}, {"p": 0.0}, {"p": 1.0}, {"cells": 0}, {"n_masks": "many"}]
)
def test_bad_parameters_are_refused(parameters):
    with pytest.raises(pellucid.ParameterError):
        RISE(**parameters)


def test_probabilities_of_no_class_are_refused(net, images):
    with pytest.raises(pellucid.TargetError, match="class"):
        pellucid.explain(net, images, RISE(n_masks=4, probability=True), target=lambda output: output.sum(dim=1))


def test_the_masks_do_not_depend_on_the_default_type(net, images):
    technique = RISE(n_masks=30, cells=5)
    expected = pellucid.explain(net, images, technique, target=TARGET)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = pellucid.explain(net, images, technique, target=TARGET)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-6)


def test_within_another_technique_probabilities_are_those_of_the_class_predicted_for_the_sample_itself(net, images):
    inner = RISE(n_masks=20, cells=4, probability=True)
    composed = pellucid.create("smoothgrad", of=inner, n_samples=2, noise=0.5)
    predicted = net(images).argmax(dim=1)
    found, expected = (pellucid.explain(net, images, composed, target=target) for target in (None, predicted))
    assert found.target.classes.tolist() == predicted.tolist()
    torch.testing.assert_close(found.values, expected.values)
