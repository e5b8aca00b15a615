"""How well relevance is conserved over torchvision's architectures, and what a pass of LRP costs.

`python -m benchmarks.relevance [conservation|speed] [--only WORD]`
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import pellucid
from benchmarks import limits, measure, models

ARCHITECTURES = {
    "alexnet": 64, "vgg11": 64, "vgg11_bn": 64, "resnet18": 64, "resnet50": 64, "wide_resnet50_2": 64,
    "resnext50_32x4d": 64, "densenet121": 64, "googlenet": 64, "inception_v3": 96, "squeezenet1_1": 64,
    "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mnasnet0_5": 64, "shufflenet_v2_x0_5": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "regnet_y_400mf": 64, "regnet_x_400mf": 64, "convnext_tiny": 64, "vit_b_32": 224,
    "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
}  # fmt: skip
"""The architectures and the size of their inputs."""

ADDED = ("running_mean", "bias", "class_token", "pos_embedding")


def bias_free(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size at which relevance neither dies nor explodes, and nothing that is added, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.requires_grad_(False)
        if name.endswith(ADDED):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1.0)
        elif tensor.dim() > 1 and tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.dim() != 2 else tensor.shape[1]
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model.double().eval()


def conservation(word: str) -> None:
    """The relative error of the sum of relevance, and what the checks say of ops without a rule."""
    for name, size in ARCHITECTURES.items():
        if word not in name:
            continue
        model = bias_free(torchvision.models.get_model(name, weights=None, **_whole(name, size)))
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        with torch.no_grad():
            score = model(x)[0, 3]
        cells, row = [], {"name": name}
        for composite in ("lrp_0", "z_plus", "deep_taylor"):
            if composite == "deep_taylor":
                technique = pellucid.create("deep_taylor", stabilizer=0.0)
            else:
                technique = pellucid.create("lrp", composite=composite, stabilizer=0.0, attention="constant")
            result = pellucid.explain(model, x, technique, target=3, progress=False)
            error = float((result.values.sum() - score).abs() / score.abs())
            cells.append(f"{composite} {error:.1e} ({result.checks.named('ruled').verdict})")
            row[composite] = error
        print(f"{name:20s} " + "   ".join(cells), flush=True)
        measure.save("conservation", measure.merged("conservation", [row]))


def _whole(name: str, size: int) -> dict[str, object]:
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False}
    return {"image_size": size} if name == "vit_b_32" and size != 224 else {}


def _contenders(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    target = torch.zeros(len(x), dtype=torch.long)
    raw = limits.locked(copy.deepcopy(model))
    adapted = pellucid.adapt(model)
    technique = pellucid.create("lrp")

    def plain() -> object:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(raw(leaf)[:, 0].sum(), leaf)

    def ours() -> object:
        return pellucid.explain(adapted, x, technique, target=target, progress=False)

    found: dict[str, Callable[[], object]] = {"forward + backward": plain, "pellucid": ours}
    try:
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonPlus
    except ImportError:
        return found
    peer = copy.deepcopy(model).requires_grad_(False)

    def theirs() -> object:
        with Gradient(model=peer, composite=EpsilonPlus()) as attributor:
            return attributor(x, lambda output: output * nn.functional.one_hot(target, output.shape[1]))

    try:
        theirs()
    except RuntimeError as error:  # its hooks know no attention
        print(f"zennit: {error}")
        return found
    return found | {"zennit": theirs}


def speed(word: str) -> None:
    """One pass of `epsilon_plus` as a multiple of a plain forward and backward pass by the input."""
    for name in ("resnet50", "efficientnet_lite0", "vit_b_16"):
        if word not in name:
            continue
        row = {"name": f"lrp, {name}, batch 1", "aim": 2.0}
        row |= measure.ratios(_contenders(models.build(name), models.photos(1)), "forward + backward", repeats=7)
        print(row)
        measure.save("rules", measure.merged("rules", [row]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="conservation", choices=["conservation", "speed"])
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    {"conservation": conservation, "speed": speed}[given.what](given.only)
