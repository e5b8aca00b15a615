"""How complete DeepLIFT is over torchvision's architectures, and what it costs beside integrated gradients.

`python -m benchmarks.differences [completeness|speed] [--only WORD]`
"""

from __future__ import annotations

import argparse

import torch
import torchvision
from torch import nn

import pellucid
from benchmarks import measure, models
from benchmarks.relevance import ARCHITECTURES


def awake(model: nn.Module, size: int, seed: int = 0) -> nn.Module:
    """The model as if trained: what torchvision begins at zero is drawn at random, and BatchNorms know their inputs.

    Otherwise differences die on the way, and a score's rise is the rounding of the score.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.train()
                part.momentum = None
        model(torch.randn(8, 3, size, size, generator=generator))
    return model.eval()


def completeness(word: str) -> None:
    """The error of the sum as a share of the score's rise, in double and in single precision, and ops without rule."""
    for name, size in ARCHITECTURES.items():
        if word not in name:
            continue
        options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torch.manual_seed(0)
        model = awake(torchvision.models.get_model(name, weights=None, **options).eval(), size)
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(7))
        cells: list[str] = []
        row: dict[str, str | float] = {"name": name}
        for dtype in (torch.float64, torch.float32):
            model, x = model.to(dtype), x.to(dtype)
            for rule in ("rescale", "reveal_cancel"):
                found = pellucid.explain(model, x, pellucid.create("deeplift", rule=rule), target=3, progress=False)
                error, ruled = (found.checks.named(one) for one in ("completeness", "operations without a rule"))
                row[f"{rule}, {str(dtype).removeprefix('torch.')}"] = error.value
                cells.append(f"{rule} {error.value:.1e}{'' if ruled.passed else f' (without rule: {ruled.note})'}")
        results = pellucid.explain(model, x, ["guided_backprop", "saliency"], target=3, progress=False)
        guided, plain = results["guided_backprop"].values.abs(), results["saliency"].values
        row["guided"] = float((guided - plain).abs().max() / plain.max())
        cells.append(f"guided differs from the gradient by {row['guided']:.1e}")
        print(f"{name:20s} " + "   ".join(cells), flush=True)
        measure.save("differences", measure.merged("differences", [row]))


def speed(word: str) -> None:
    """DeepLIFT as a share of integrated gradients with 50 steps, both as they come."""
    for name in ("resnet50", "efficientnet_lite0", "vit_b_16"):
        if word not in name:
            continue
        model, x = pellucid.adapt(models.build(name)), models.photos(1)
        target = torch.zeros(len(x), dtype=torch.long)

        def run(technique: str, model=model, x=x, target=target):
            return lambda: pellucid.explain(model, x, technique, target=target, progress=False)

        contenders = {one: run(one) for one in ("integrated_gradients", "deeplift", "guided_backprop")}
        row = {"name": f"deeplift, {name}, batch 1", "aim": 0.1}
        row |= measure.ratios(contenders, "integrated_gradients", repeats=2)
        print(row)
        measure.save("rules", measure.merged("rules", [row]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="completeness", choices=["completeness", "speed"])
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    {"completeness": completeness, "speed": speed}[given.what](given.only)
