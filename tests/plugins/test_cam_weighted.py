"""The gradient-weighted maps and Eigen-CAM: the formulas in plain loops, axioms, peers, bad input."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import pellucid
from pellucid import ClassLogit, Sample, Seen
from pellucid.protocol import Layer

GRADIENT = ["grad_cam", "grad_cam_pp", "hires_cam", "layer_cam", "xgrad_cam"]


def net(seed: int = 0, *, loud: float = 1.0) -> nn.Sequential:
    """A small network whose head sees the positions, so that its gradients differ from place to place."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 7, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(28, 9),
        nn.ReLU(),
        nn.Linear(9, 4),
    ).eval()
    with torch.no_grad():
        model[-1].weight *= loud
    return model


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def maps_and_slopes(model: nn.Sequential, x: torch.Tensor, wanted: int, layer: int = 4):
    maps = model[: layer + 1](x).detach().requires_grad_(True)
    (slopes,) = torch.autograd.grad(model[layer + 1 :](maps)[:, wanted].sum(), maps)
    return maps.detach(), slopes


def slowly(name: str, maps: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Each formula as its paper writes it, one channel and one position at a time, before the ReLU."""
    out = torch.zeros(len(maps), *maps.shape[2:], dtype=maps.dtype)
    for b in range(len(maps)):
        for c in range(maps.shape[1]):
            a, g = maps[b, c], slopes[b, c]
            if name == "grad_cam":
                out[b] += g.mean() * a
            elif name == "hires_cam":
                out[b] += g * a
            elif name == "layer_cam":
                out[b] += g.clamp_min(0) * a
            elif name == "xgrad_cam" and a.sum() != 0:
                out[b] += (g * a / a.sum()).sum() * a
            elif name == "grad_cam_pp":
                weight = 0.0
                for slope in g.flatten().tolist():
                    if slope > 0:
                        weight += slope**2 / (2 * slope**2 + a.sum().item() * slope**3) * slope
                out[b] += weight * a
    return out


@pytest.mark.parametrize("name", GRADIENT)
def test_the_formula_in_float64(name):
    model, x = net().double(), images().double()
    expected = slowly(name, *maps_and_slopes(model, x, 2))
    for relu, values in ((True, expected.relu()), (False, expected)):
        done = pellucid.explain(model, x, pellucid.create(name, layer="4", relu=relu), target=2)
        assert done.values.dtype == torch.float64
        assert done.over == "4"
        torch.testing.assert_close(done.values, values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", GRADIENT)
def test_layer_auto_is_the_last_map_before_the_head_and_is_recorded(name):
    model = nn.Sequential(*net()[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)).eval()
    done = pellucid.explain(model, images(), name, target=1)
    named = pellucid.explain(model, images(), pellucid.create(name, layer="4"), target=1)
    assert done.values.shape == (3, 6, 6)
    assert done.over == "4"
    assert torch.equal(done.values, named.values)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "tokens"])
@pytest.mark.parametrize("name", [*GRADIENT, "eigen_cam"])
def test_the_layout_of_a_layer_does_not_matter(name, layout):
    maps, slopes = (torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))

    def lay(values: torch.Tensor) -> torch.Tensor:
        if layout == "channels_first":
            return values
        last = values.movedim(1, -1)
        return last if layout == "channels_last" else torch.cat([torch.ones(2, 1, 5), last.flatten(1, 2)], dim=1)

    def run(maps: torch.Tensor, slopes: torch.Tensor, layout: str) -> torch.Tensor:
        passes = pellucid.create(name, layer="here").explain(Sample(torch.zeros(2, 3), ClassLogit(0)))
        next(passes)
        layer = Layer("here", tuple(maps.shape[1:]), layout, (3, 4), 1 if layout == "tokens" else 0)
        with pytest.raises(StopIteration) as end:
            passes.send(
                Seen(torch.zeros(2), activations={"here": maps}, gradients={"here": slopes}, layers={"here": layer})
            )
        return end.value.value.values

    torch.testing.assert_close(run(lay(maps), lay(slopes), layout), run(maps, slopes, "channels_first"))


def test_hires_and_xgrad_cam_sum_to_the_score_less_its_bias():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 64, 3, bias=False),
    ).double().eval()  # fmt: skip
    x = images().double()
    for name in ("hires_cam", "xgrad_cam"):
        values = pellucid.explain(model, x, pellucid.create(name, layer="1", relu=False), target=2).values
        torch.testing.assert_close(values.sum(dim=(1, 2)), model(x)[:, 2].detach())


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "xgrad_cam"])
def test_without_relu_it_is_linear_in_the_class_scores(name):
    model, x = net().double(), images().double()
    technique = pellucid.create(name, layer="4", relu=False)
    both = pellucid.explain(model, x, technique, target=lambda out: 2 * out[:, 0] - 3 * out[:, 1]).values
    one, other = (pellucid.explain(model, x, technique, target=k).values for k in (0, 1))
    torch.testing.assert_close(both, 2 * one - 3 * other)


def test_grad_cam_pp_does_not_fade_with_the_size_of_the_gradients():
    model, x = net(loud=1e-6).double(), images().double()
    expected = slowly("grad_cam_pp", *maps_and_slopes(model, x, 1))
    values = pellucid.explain(model, x, pellucid.create("grad_cam_pp", layer="4", relu=False), target=1).values
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)


def test_a_channel_that_sums_to_zero_has_no_weight_in_xgrad_cam():
    maps = torch.tensor([[[[1.0, -1.0]], [[1.0, 3.0]]]])
    weights = pellucid.create("xgrad_cam").weights(maps, torch.ones_like(maps))
    assert weights.flatten().tolist() == [0.0, 1.0]


def peer_map(kind: str, model: nn.Sequential, layer: int, x: torch.Tensor, wanted: int) -> torch.Tensor:
    """What pytorch-grad-cam computes before it resizes and rescales."""
    peers = pytest.importorskip("pytorch_grad_cam")
    target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(wanted)
    peer = getattr(peers, kind)(model=model, target_layers=[model[layer]])
    targets = [target] * len(x)
    peer(x, targets=targets)
    taken = peer.activations_and_grads
    image = peer.get_cam_image(
        x,
        model[layer],
        targets,
        taken.activations[0].detach().numpy(),
        taken.gradients[0].detach().numpy() if taken.gradients else None,
        False,
    )
    return torch.as_tensor(image)


@pytest.mark.parametrize(
    ("name", "kind", "loud"),
    [
        ("grad_cam", "GradCAM", 1.0),
        ("hires_cam", "HiResCAM", 1.0),
        ("layer_cam", "LayerCAM", 1.0),
        # The peer adds small numbers to its denominators: it is right where what they are added to is large.
        ("grad_cam_pp", "GradCAMPlusPlus", 1e4),
        ("xgrad_cam", "XGradCAM", 1.0),
    ],
)
def test_agrees_with_pytorch_grad_cam(name, kind, loud):
    model, x = net(loud=loud), images()
    theirs = peer_map(kind, model, 4, x, 3)
    # LayerCAM of the peer applies the ReLU itself.
    relu = kind == "LayerCAM"
    ours = pellucid.explain(model, x, pellucid.create(name, layer="4", relu=relu), target=3).values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_grad_cam_agrees_with_captum():
    attr = pytest.importorskip("captum.attr")
    model, x = net(), images()
    theirs = attr.LayerGradCam(model, model[4]).attribute(x, target=2, relu_attributions=True).detach()[:, 0]
    ours = pellucid.explain(model, x, pellucid.create("grad_cam", layer="4"), target=2).values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_eigen_cam_projects_on_the_first_singular_vector_with_a_fixed_sign():
    model, x = net().double(), images().double()
    maps = model[:5](x).detach()
    done = pellucid.explain(model, x, pellucid.create("eigen_cam", layer="4"))
    for b in range(3):
        matrix = maps[b].flatten(1).T
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        component = (matrix @ vectors[:, -1]).reshape(6, 6)
        component = component * component.sum().sign()
        torch.testing.assert_close(done.values[b], component, rtol=1e-6, atol=1e-9)
        assert done.checks.named("share").each[b] == pytest.approx((values[-1] / values.sum()).item())
    # Behind a ReLU the first component has one sign.
    assert done.values.min() >= -1e-12


def test_eigen_cam_does_not_know_the_class():
    model, x = net(), images()
    one, other = (pellucid.explain(model, x, "eigen_cam", target=k).values for k in (0, 3))
    assert torch.equal(one, other)
    assert "class_agnostic" in pellucid.technique("eigen_cam").tags
    assert "gradients" not in pellucid.technique("eigen_cam").uses


def test_centred_eigen_cam_agrees_with_pytorch_grad_cam_up_to_its_arbitrary_sign():
    model, x = net(), images()
    theirs = peer_map("EigenCAM", model, 4, x, 0)
    ours = pellucid.explain(model, x, pellucid.create("eigen_cam", layer="4", centre=True)).values
    signs = (ours * theirs).sum(dim=(1, 2), keepdim=True).sign()
    assert (ours - signs * theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_eigen_cam_of_dead_maps_is_zero():
    model = net()
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.fill_(-1)
    values = pellucid.explain(model, images(), pellucid.create("eigen_cam", layer="4")).values
    assert values.abs().max() == 0


@pytest.mark.parametrize("name", [*GRADIENT, "eigen_cam", "cam", "score_cam"])
def test_unknown_layers_and_layers_without_positions_are_refused(name):
    with pytest.raises(pellucid.LayerError, match="no layer 'laier4'"):
        pellucid.explain(net(), images(), pellucid.create(name, layer="laier4"), target=0)
    with pytest.raises(pellucid.LayerError, match="no map of positions"):
        pellucid.explain(net(), images(), pellucid.create(name, layer="7"), target=0)


@pytest.mark.parametrize("name", GRADIENT)
def test_bad_parameters_are_named(name):
    with pytest.raises(pellucid.ParameterError, match="layer"):
        pellucid.create(name, layer=4)
    with pytest.raises(pellucid.ParameterError, match="relu"):
        pellucid.create(name, relu="maybe")
    with pytest.raises(pellucid.ParameterError, match="Did you mean 'layer'"):
        pellucid.create(name, layers="4")
