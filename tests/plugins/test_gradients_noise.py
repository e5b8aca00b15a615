"""SmoothGrad and VarGrad: plain loops over the same noise, composition, standard errors, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import ClassLogit, Sample


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(20, 3),
    ).double().eval()  # fmt: skip


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def noisy(x: torch.Tensor, n: int, scale: float, label: str = "jitter", seed: int = 0) -> torch.Tensor:
    """The noisy copies, (n, B, ...)."""
    sample = Sample(x, ClassLogit(0), seed)
    return sample.jittered(n, scale, label=label).flattened().inputs.unflatten(0, (n, len(x)))


def gradients(model: nn.Module, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The gradient at each draw, (n, B, ...)."""
    slopes = []
    for draw in rows:
        draw = draw.clone().requires_grad_(True)
        slopes.append(torch.autograd.grad(model(draw).gather(1, classes[:, None]).sum(), draw)[0])
    return torch.stack(slopes)


def test_the_noise_is_normal_with_the_share_of_each_examples_range():
    x = images() * torch.tensor([1.0, 10.0, 0.0])[:, None, None, None]
    noise = noisy(x, 400, 0.2) - x
    width = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    torch.testing.assert_close(noise.std(dim=(0, 2, 3, 4)), 0.2 * width, rtol=0.02, atol=0)
    assert noise.mean(dim=(0, 2, 3, 4)).abs().max() < 0.01 * width.max()


def test_mean_square_and_variance_equal_a_plain_loop():
    model, x = net(), images()
    classes = model(x).argmax(1)
    slopes = gradients(model, noisy(x, 12, 0.15), classes)
    done = pellucid.explain(
        model,
        x,
        {
            "mean": pellucid.create("smoothgrad", n_samples=12),
            "square": pellucid.create("smoothgrad", n_samples=12, squared=True),
            "variance": pellucid.create("vargrad", n_samples=12),
        },
    )
    expected = {"mean": slopes.mean(0), "square": (slopes**2).mean(0), "variance": slopes.var(0, correction=0)}
    for name, values in expected.items():
        assert done[name].values.dtype == torch.float64
        torch.testing.assert_close(done[name].values, values, rtol=1e-9, atol=1e-12)
    # The predicted class is the one of the clean image, also where noise changes the prediction.
    assert done["mean"].target.classes.tolist() == classes.tolist()


def test_the_standard_error_is_the_one_of_the_draws():
    model, x = net(), images()
    for squared in (False, True):
        slopes = gradients(model, noisy(x, 10, 0.3), torch.tensor([2, 2, 2])) ** (2 if squared else 1)
        error = slopes.std(0) / 10**0.5
        expected = error.flatten(1).norm(dim=1) / slopes.mean(0).flatten(1).norm(dim=1)
        technique = pellucid.create("smoothgrad", n_samples=10, noise=0.3, squared=squared)
        check = pellucid.explain(model, x, technique, target=2).checks.named("monte_carlo_error")
        assert check.each == pytest.approx(expected.tolist(), rel=1e-6)


def test_more_draws_lessen_the_error():
    model, x = net(), images(1)
    errors = [
        pellucid.explain(model, x, pellucid.create("smoothgrad", n_samples=n), target=0)
        .checks.named("monte_carlo_error")
        .value
        for n in (8, 128)
    ]
    assert errors[1] < errors[0] / 2


def test_without_noise_it_is_the_gradient_itself():
    model, x = net(), images()
    done = pellucid.explain(
        model,
        x,
        [
            pellucid.create("saliency", signed=True),
            pellucid.create("smoothgrad", n_samples=3, noise=0),
            pellucid.create("vargrad", n_samples=3, noise=0),
        ],
    )
    torch.testing.assert_close(done["smoothgrad"].values, done["saliency"].values)
    assert done["vargrad"].values.abs().max() < 1e-25
    assert done["smoothgrad"].checks.named("monte_carlo_error").value < 1e-10


@pytest.mark.parametrize("of", ["input_x_gradient", "saliency"])
def test_any_explainer_can_be_smoothed(of):
    model, x = net(), images()
    inner = pellucid.create(of)
    rows = noisy(x, 5, 0.2, label=f"jitter of {type(inner).__name__}")
    classes = model(x).argmax(1)
    slopes = gradients(model, rows, classes)
    draws = slopes * rows if of == "input_x_gradient" else slopes.abs()
    done = pellucid.explain(
        model,
        x,
        [
            pellucid.create(name, n_samples=5, noise=0.2, of=given)
            for name, given in (("smoothgrad", of), ("vargrad", inner))
        ],
    )
    torch.testing.assert_close(done["smoothgrad"].values, draws.mean(0))
    torch.testing.assert_close(done["vargrad"].values, draws.var(0, correction=0))
    assert done["smoothgrad"].meta.parameters["of"]["use"] == of


def test_a_map_over_a_layer_can_be_smoothed():
    model, x = net(), images()
    done = pellucid.explain(model, x, pellucid.create("smoothgrad", n_samples=3, noise=0, of="grad_cam"), target=1)
    plain = pellucid.explain(model, x, "grad_cam", target=1)
    torch.testing.assert_close(done.values, plain.values)
    assert done.over == plain.over


def test_a_control_without_looks_can_be_smoothed():
    x = images()
    done = pellucid.explain(net(), x, pellucid.create("smoothgrad", n_samples=3, of="constant"), target=1)
    torch.testing.assert_close(done.values, torch.ones_like(x))


def test_smoothgrad_agrees_with_captum_at_the_same_noise():
    attr = pytest.importorskip("captum.attr")
    model, x, classes = net(), images(), torch.tensor([0, 1, 2])
    peer = attr.Saliency(model)
    maps = [
        peer.attribute(draw.clone().requires_grad_(True), target=classes, abs=False).detach()
        for draw in noisy(x, 6, 0.15, seed=4)
    ]
    theirs = torch.stack(maps).mean(0)
    ours = pellucid.explain(model, x, pellucid.create("smoothgrad", n_samples=6), target=classes, seed=4).values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_seed_decides_and_the_batch_does_not():
    model, x = net(), images()
    technique = pellucid.create("smoothgrad", n_samples=4)
    one, same, other = (pellucid.explain(model, x, technique, seed=seed).values for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    alone = pellucid.explain(model, x[1:2], technique).values
    torch.testing.assert_close(alone, one[1:2])


def test_several_inputs():
    class Two(nn.Module):
        def forward(self, left, right):
            return torch.stack([(left**2).sum(1) * right.sum((1, 2)), left.sum(1)], dim=1)

    inputs = {"left": torch.rand(2, 3, dtype=torch.float64), "right": torch.rand(2, 2, 2, dtype=torch.float64)}
    for name in ("smoothgrad", "vargrad"):
        for of in (None, "input_x_gradient"):
            values = pellucid.explain(Two(), inputs, pellucid.create(name, n_samples=4, of=of), target=0).values
            assert {key: leaf.shape for key, leaf in values.items()} == {k: leaf.shape for k, leaf in inputs.items()}
            assert all(bool(torch.isfinite(leaf).all()) for leaf in values.values())


@pytest.mark.parametrize("name", ["smoothgrad", "vargrad"])
def test_bad_parameters_are_named(name):
    for parameters, word in (({"n_samples": 1}, "n_samples"), ({"noise": -0.1}, "noise"), ({"of": 3}, "of")):
        with pytest.raises(pellucid.ParameterError, match=word):
            pellucid.create(name, **parameters)
    with pytest.raises(pellucid.UnknownTechnique, match="saliency"):
        pellucid.create(name, of="salience")
    with pytest.raises(pellucid.ParameterError, match="evaluator"):
        pellucid.create(name, of="pixel_flipping")
