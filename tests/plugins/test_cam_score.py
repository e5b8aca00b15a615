"""Score-CAM: the algorithm in a plain loop, its options, pytorch-grad-cam, bad input."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid


def net(stride: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=stride), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def slowly(model, x, wanted, weighting="softmax", channels=None):
    """The paper's algorithm, one example and one channel at a time."""
    out = []
    for image in x:
        maps = model[:4](image[None]).detach()[0]
        order = maps.square().sum((1, 2)).argsort(descending=True)[: channels or len(maps)]
        nothing = model(torch.zeros_like(image)[None])[0, wanted].item()
        scores, used = [], []
        for k in order.tolist():
            mask = F.interpolate(maps[k][None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
            if mask.max() == mask.min():
                continue
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(model((image * mask)[None])[0, wanted].item() - nothing)
            used.append(maps[k])
        weights = torch.tensor(scores, dtype=x.dtype)
        weights = weights.softmax(0) if weighting == "softmax" else weights
        out.append(sum(w * m for w, m in zip(weights, used, strict=True)).clamp_min(0))
    return torch.stack(out)


@pytest.mark.parametrize("weighting", ["softmax", "increase"])
@pytest.mark.parametrize("channels", [None, 3, 100])
def test_it_equals_a_plain_loop_in_float64(weighting, channels):
    model, x = net().double(), images().double()
    technique = pellucid.create("score_cam", layer="3", channels=channels, weights=weighting)
    done = pellucid.explain(model, x, technique, target=2)
    assert done.values.dtype == torch.float64
    torch.testing.assert_close(done.values, slowly(model, x, 2, weighting, channels), rtol=1e-9, atol=1e-12)


def test_flat_maps_get_no_weight():
    model, x = net().double(), images().double()
    with torch.no_grad():
        model[2].weight[:2] = 0
        model[2].bias[0], model[2].bias[1] = 50, -1
    done = pellucid.explain(model, x, pellucid.create("score_cam", layer="3"), target=1)
    torch.testing.assert_close(done.values, slowly(model, x, 1), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        model[2].weight[:] = 0
    for weighting in ("softmax", "increase"):
        technique = pellucid.create("score_cam", layer="3", weights=weighting)
        assert pellucid.explain(model, x, technique, target=1).values.abs().max() == 0


def test_it_needs_no_gradient_and_one_pass_for_each_channel():
    assert pellucid.technique("score_cam").uses == {"outputs", "activations"}
    done = pellucid.explain(net(), images(), pellucid.create("score_cam", layer="3"), target=0)
    assert done.meta.passes["backward"] == 0
    assert done.meta.passes["forward"] <= 8 + 3


def test_the_batch_does_not_matter():
    together = pellucid.explain(net(), images(), pellucid.create("score_cam", channels=3), target=0).values
    alone = pellucid.explain(net(), images()[1:], pellucid.create("score_cam", channels=3), target=0).values
    torch.testing.assert_close(together[1:], alone)


def test_it_agrees_with_pytorch_grad_cam_where_no_upsampling_is_needed():
    """Elsewhere the peer aligns corners when it upsamples, which the authors' code does not."""
    peers = pytest.importorskip("pytorch_grad_cam")
    target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(3)
    model, x = net(stride=1), images()
    peer = peers.ScoreCAM(model=model, target_layers=[model[3]])
    peer(x, targets=[target] * 2)
    # The peer's hooks collect the maps of every masked image as well; the first are those of the clean ones.
    maps = peer.activations_and_grads.activations[0].detach().numpy()
    theirs = torch.as_tensor(peer.get_cam_image(x, model[3], [target] * 2, maps, None, False)).relu()
    ours = pellucid.explain(model, x, pellucid.create("score_cam", layer="3"), target=3).values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_inputs_that_are_no_image_are_refused():
    with pytest.raises(pellucid.Unsuitable, match="score_cam masks one image"):
        pellucid.explain(nn.Linear(4, 2), torch.randn(2, 4), "score_cam", target=0)


@pytest.mark.parametrize("parameters", [{"channels": 0}, {"channels": 1.5}, {"weights": "sum"}])
def test_bad_parameters_are_named(parameters):
    with pytest.raises(pellucid.ParameterError, match=next(iter(parameters))):
        pellucid.create("score_cam", **parameters)
