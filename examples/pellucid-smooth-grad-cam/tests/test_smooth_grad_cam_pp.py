import pytest
import torch
from torch import nn

import pellucid
from pellucid import ClassLogit, Layer, ParameterError, Part, Sample, Seen, create
from pellucid.testing import parametrize_with_checks


@parametrize_with_checks(["smooth_grad_cam_pp"])
def test_it_keeps_the_contract(check):
    check()


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explained(maps, slopes):
    """What the technique makes of given maps (B, C, h, w) and gradients (n, B, C, h, w), without any model."""
    n, examples = slopes.shape[:2]
    layer = Layer("features", tuple(maps.shape[1:]), "channels_first", tuple(maps.shape[2:]))
    passes = create("smooth_grad_cam_pp", n_samples=n).explain(Sample(torch.zeros(examples, 3, 8, 8), ClassLogit(0)))
    first = next(passes)
    assert (list(first.activations), list(first.gradients)) == (["auto"], [])
    scores = torch.zeros(examples)
    second = passes.send(Seen(scores, activations={"auto": maps}, layers={"auto": layer}))
    assert second.at.n == n
    everyone = torch.arange(examples)
    sums = None
    for draw in range(n):
        part = Part(torch.full((examples,), draw), everyone, None, scores, gradients={"auto": slopes[draw]})
        powers = second.fold.function(part)
        sums = powers if sums is None else [total + power for total, power in zip(sums, powers, strict=True)]
    with pytest.raises(StopIteration) as stop:
        passes.send(Seen(scores.expand(n, -1), folded=tuple(sums), layers={"auto": layer}))
    return stop.value.value


def test_it_is_the_paper_s_formula_written_out():
    maps, slopes = random(2, 3, 4, 5, seed=1).abs(), random(6, 2, 3, 4, 5, seed=2)
    expected = torch.zeros(2, 4, 5, dtype=torch.float64)
    for example in range(2):
        for channel in range(3):
            image, gradients = maps[example, channel], slopes[:, example, channel]
            total = sum(float((image * gradient**3).sum()) / 6 for gradient in gradients)
            weight = 0.0
            for row in range(4):
                for column in range(5):
                    here = gradients[:, row, column]
                    second = float((here**2).mean())
                    weight += second / (2 * second + total) * max(0.0, float(here.mean()))
            expected[example] += weight * image
    result = explained(maps, slopes)
    torch.testing.assert_close(result.values, expected.clamp_min(0), rtol=1e-10, atol=1e-10)
    assert result.over == "auto"


def test_no_gradient_gives_zero_and_not_nan():
    maps = random(1, 2, 3, 3).abs()
    assert torch.equal(explained(maps, torch.zeros(2, 1, 2, 3, 3)).values, torch.zeros(1, 3, 3, dtype=torch.float64))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.head = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))  # its slope depends on the noise

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


def test_without_noise_it_is_grad_cam_pp_of_the_autograd_gradient():
    torch.manual_seed(0)
    model, images = Net().eval(), random(2, 3, 16, 16).float()
    technique = create("smooth_grad_cam_pp", layer="features", n_samples=3, noise=0.0)
    result = pellucid.explain(model, images, technique, target=[1, 3])
    maps = model.features(images).detach().requires_grad_()
    scores = model.head(maps.mean(dim=(2, 3)))[[0, 1], [1, 3]]
    [slopes] = torch.autograd.grad(scores.sum(), maps)
    shares = slopes**2 / (2 * slopes**2 + (maps * slopes**3).sum(dim=(2, 3), keepdim=True))
    weights = (shares * slopes.relu()).sum(dim=(2, 3), keepdim=True)
    expected = (weights * maps).sum(dim=1).relu().detach()
    torch.testing.assert_close(result.values, expected, rtol=1e-4, atol=1e-6)
    assert result.over == "features"


def test_the_seed_decides_the_noise():
    torch.manual_seed(0)
    model, images = Net().eval(), random(2, 3, 16, 16).float()
    technique = create("smooth_grad_cam_pp", layer="features", n_samples=3)
    one, same, other = (pellucid.explain(model, images, technique, target=1, seed=seed).values for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("parameters", [{"n_samples": 0}, {"noise": -0.1}, {"samples": 3}])
def test_wrong_parameters_are_refused(parameters):
    with pytest.raises(ParameterError):
        create("smooth_grad_cam_pp", **parameters)
