"""Grad-CAM with `layer="auto"` on one architecture of every family; `benchmarks.layers` runs them all."""

from __future__ import annotations

import pytest
import torch
from benchmarks.layers import randomised, row, timm_models, torchvision_models

import pellucid

# The grid that a reader of the papers would name, at the size that the weights were trained with.
TORCHVISION = {
    "alexnet": [6, 6],
    "convnext_tiny": [7, 7],
    "densenet121": [7, 7],
    "efficientnet_b0": [7, 7],
    "googlenet": [7, 7],
    "inception_v3": [8, 8],
    "maxvit_t": [7, 7],
    "mnasnet0_5": [7, 7],
    "mobilenet_v2": [7, 7],
    "mobilenet_v3_small": [7, 7],
    "regnet_y_400mf": [7, 7],
    "resnet18": [7, 7],
    "shufflenet_v2_x0_5": [7, 7],
    "squeezenet1_1": [13, 13],
    "swin_t": [7, 7],
    "swin_v2_t": [8, 8],
    "vgg11": [7, 7],
    "vit_b_32": [7, 7],
}
TIMM = {
    "timm:vit_tiny_patch16_224": [14, 14],
    "timm:deit_tiny_distilled_patch16_224": [14, 14],
    "timm:swin_tiny_patch4_window7_224": [7, 7],
    "timm:convnext_atto": [7, 7],
    "timm:mobilenetv4_conv_small": [7, 7],
    "timm:efficientvit_b0": [7, 7],
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_auto_finds_the_last_map_of_every_family_of_torchvision(name):
    build, size = torchvision_models()[name]
    found = row(name, build, size)
    assert found["grid"] == TORCHVISION[name]
    assert found["finite"]
    assert found["varies"]


@pytest.mark.parametrize("name", TIMM)
def test_auto_finds_the_last_map_of_families_of_timm(name):
    pytest.importorskip("timm")
    build, size = timm_models()[name]
    found = row(name, build, size)
    assert found["grid"] == TIMM[name]
    assert found["finite"]
    assert found["varies"]


def test_auto_reads_a_transformers_tokens_where_the_class_token_still_depends_on_them():
    build, size = torchvision_models()["vit_b_32"]
    model = randomised(build, 0)
    inputs = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    chosen = pellucid.explain(model, inputs, "grad_cam")
    assert chosen.meta.layer == "encoder.layers.encoder_layer_11.ln_1"
    # After the last block only the class token is read, so that the patches' gradients are zero.
    last = pellucid.explain(model, inputs, pellucid.create("grad_cam", layer="encoder.ln"))
    assert not last.checks.passed
    assert not bool(last.values.any())
