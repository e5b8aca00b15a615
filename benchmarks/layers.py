"""`grad_cam` with `layer="auto"` on every classifier of torchvision and on ten families of timm, with random weights.

`python -m benchmarks.layers [--only WORD]`
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch
from torch import nn

import pellucid
from benchmarks import measure

TIMM = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "resnetv2_50",
    "mobilenetv4_conv_small",
    "beit_base_patch16_224",
    "mixer_s32_224",
    "regnety_002",
    "vit_small_patch14_reg4_dinov2",
    "efficientvit_b0",
    "eva02_tiny_patch14_224",
]


def randomised(build: Any, seed: int) -> nn.Module:
    """A model with random weights, also where a builder starts with zeros, as in a head without gradients."""
    torch.manual_seed(seed)
    model: nn.Module = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.02)
    return model.eval()


def torchvision_models() -> dict[str, tuple[Any, int]]:
    """Builders of all of torchvision's classifiers, with the size of their inputs."""
    import torchvision

    made: dict[str, tuple[Any, int]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        size = 299 if name == "inception_v3" else 256 if name.startswith("swin_v2") else 224
        made[name] = (
            lambda name=name, options=options: torchvision.models.get_model(name, weights=None, **options),
            size,
        )
    return made


def timm_models() -> dict[str, tuple[Any, int]]:
    """Builders of some of timm's families."""
    import timm

    made: dict[str, tuple[Any, int]] = {}
    for name in TIMM:
        size = timm.get_pretrained_cfg(name).input_size[-1]
        made[f"timm:{name}"] = (lambda name=name: timm.create_model(name, pretrained=False), size)
    return made


def row(name: str, build: Any, size: int) -> dict[str, Any]:
    """What Grad-CAM gives on one model.

    With random weights the evidence for a class can be negative everywhere, and then Grad-CAM's ReLU rightly leaves
    nothing; further weights are drawn until it does not, and the seed is noted.
    """
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        model = randomised(build, seed)
        started = time.perf_counter()
        made = pellucid.explain(model, inputs, "grad_cam")
        seconds = time.perf_counter() - started
        values = made.values.flatten(1)
        varies = bool((values.amax(dim=1) > values.amin(dim=1)).all())
        if varies:
            break
    return {
        "name": name,
        "layer": made.meta.layer,
        "grid": list(made.values.shape[1:]),
        "finite": bool(torch.isfinite(values).all()),
        "varies": varies,
        "seed": seed,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only models whose name contains this; nothing is saved")
    only = parser.parse_args().only
    rows = []
    for name, (build, size) in {**torchvision_models(), **timm_models()}.items():
        if only not in name:
            continue
        rows.append(row(name, build, size))
        print(rows[-1], flush=True)
        gc.collect()
    bad = [one["name"] for one in rows if not (one["finite"] and one["varies"])]
    print(f"{len(rows)} models, {len(rows) - len(bad)} with a finite map that varies; not so: {bad or 'none'}")
    if not only:
        measure.save("layers", rows)


if __name__ == "__main__":
    main()
