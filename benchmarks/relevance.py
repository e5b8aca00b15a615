"""How well relevance is conserved over torchvision's architectures, and what a pass by rules costs.

`python -m benchmarks.relevance [conservation|speed|composites|memory] [--only WORD]`
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import pellucid
from benchmarks import limits, measure, models

ARCHITECTURES = {
    "alexnet": 64, "vgg11": 64, "vgg11_bn": 64, "resnet18": 64, "resnet50": 64, "wide_resnet50_2": 64,
    "resnext50_32x4d": 64, "densenet121": 64, "googlenet": 64, "inception_v3": 96, "squeezenet1_0": 64,
    "squeezenet1_1": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mnasnet0_5": 64, "shufflenet_v2_x0_5": 64,
    "efficientnet_b0": 64, "efficientnet_v2_s": 64, "regnet_y_400mf": 64, "regnet_x_400mf": 64, "convnext_tiny": 64,
    "vit_b_32": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
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


COMPOSITES = (
    "lrp_0", "epsilon", "z_plus", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1",
    "preset_a", "preset_b", "attn_lrp",
)  # fmt: skip
"""The usual composites; `epsilon_plus` is the default, and what a pass of LRP is measured by."""


def _plain(model: nn.Module, x: Tensor) -> Callable[[], object]:
    raw = limits.locked(copy.deepcopy(model))

    def plain() -> object:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(raw(leaf)[:, 0].sum(), leaf)

    return plain


def _passes(model: nn.Module, x: Tensor, techniques: dict[str, object]) -> dict[str, Callable[[], object]]:
    adapted, target = pellucid.adapt(model), torch.zeros(len(x), dtype=torch.long)
    return {
        name: lambda technique=technique: pellucid.explain(adapted, x, technique, target=target, progress=False)
        for name, technique in techniques.items()
    }


def _contenders(model: nn.Module, x: Tensor, composites: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    found = {"forward + backward": _plain(model, x)}
    found |= _passes(model, x, {name: pellucid.create("lrp", composite=name) for name in composites})
    if len(composites) > 1:
        return found
    try:
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonPlus
    except ImportError:
        return found
    peer, target = copy.deepcopy(model).requires_grad_(False), torch.zeros(len(x), dtype=torch.long)

    def theirs() -> object:
        with Gradient(model=peer, composite=EpsilonPlus()) as attributor:
            return attributor(x, lambda output: output * nn.functional.one_hot(target, output.shape[1]))

    try:
        theirs()
    except RuntimeError as error:  # its hooks know no attention
        print(f"zennit: {error}")
        return found
    return found | {"zennit": theirs}


def speed(word: str, composites: tuple[str, ...] = ("epsilon_plus",)) -> None:
    """One pass as a multiple of a plain forward and backward pass by the input."""
    for name in ("resnet50", "efficientnet_lite0", "vit_b_16"):
        for rows in (1, 8):
            title = f"lrp{'' if len(composites) == 1 else ' by composites'}, {name}, batch {rows}"
            if word not in title:
                continue
            row = {"name": title, "aim": 2.0}
            contenders = _contenders(models.build(name), models.photos(rows), composites)
            row |= measure.ratios(contenders, "forward + backward", repeats=7)
            print(row, flush=True)
            measure.save("rules", measure.merged("rules", [row]))


MEASURED = ("forward + backward", "saliency", "lrp", "deeplift")


def memory(word: str) -> None:
    """The greatest memory that a pass takes on the way, as a multiple of what a plain one takes.

    Each in a process of its own that gives memory back at once, so that what is resident is what is in use.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for name in ("resnet50", "efficientnet_lite0", "vit_b_16"):
        for rows in (1, 8):
            title = f"memory, {name}, batch {rows}"
            if word not in title:
                continue
            taken = {}
            for what in MEASURED:
                command = [sys.executable, "-m", "benchmarks.relevance", "child", "--only", f"{name}/{rows}/{what}"]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                taken[what] = float(done.stdout.splitlines()[-1])
            ratio = {what: round(taken[what] / taken[MEASURED[0]], 3) for what in MEASURED}
            row = {"name": title, "aim": 3.0, "mebibytes": taken, "ratio": ratio}
            print(row, flush=True)
            measure.save("rules", measure.merged("rules", [row]))


def child(work: str) -> None:
    """Prints by how many mebibytes the resident memory grows during a pass; the first is for libraries and capture."""
    name, rows, what = work.split("/")
    model, x = models.build(name), models.photos(int(rows))
    run = _plain(model, x) if what == MEASURED[0] else _passes(model, x, {what: pellucid.create(what)})[what]
    run()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the greatest so far
    run()
    print(round((_resident("VmHWM") - before) / 1024, 1))


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    works = {
        "conservation": conservation,
        "speed": speed,
        "composites": lambda word: speed(word, COMPOSITES),
        "memory": memory,
        "child": child,
    }
    parser.add_argument("what", nargs="?", default="conservation", choices=list(works))
    parser.add_argument("--only", default="", help="a part of the rows' names")
    given = parser.parse_args()
    works[given.what](given.only)
