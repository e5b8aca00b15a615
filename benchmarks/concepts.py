"""TCAV's time, held against the raw cost of its forward passes, and beside captum's.

`python -m benchmarks.concepts [--peer]`: one concept of 50 images, ten random sets of 50 and 50 images of a class, on
MobileNetV2 at 96 x 96 with random weights. The limit is the forward passes of the 550 images, the forward passes of the
class's images, and their backward passes from the output to the layer.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

import pellucid
from benchmarks import measure

SETS, SIZE, SIDE, BATCH = 11, 50, 96, 16
LAYER = "features"


def data() -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A network, images of a class, and the sets: the concept first."""
    torch.manual_seed(0)
    model = mobilenet_v2(weights=None).eval()
    images = torch.randn(SIZE, 3, SIDE, SIDE)
    return model, images, [torch.randn(SIZE, 3, SIDE, SIDE) for _ in range(SETS)]


def limit(model: nn.Module, images: Tensor, sets: list[Tensor]) -> Tensor:
    """The passes alone, in batches of the size that is fastest on a CPU."""
    kept = []
    with torch.no_grad():
        for batch in torch.cat(sets).split(BATCH):
            kept.append(model.features(batch))  # type: ignore[operator, union-attr]
            model.classifier(kept[-1].mean(dim=(2, 3)))  # type: ignore[operator, union-attr]
    for batch in images.split(BATCH):
        with torch.no_grad():
            maps = model.features(batch)  # type: ignore[operator, union-attr]
        maps.requires_grad_()
        score = model.classifier(maps.mean(dim=(2, 3)))[:, 0].sum()  # type: ignore[operator, union-attr]
        kept.append(torch.autograd.grad(score, maps)[0])
    return torch.cat(kept)


def ours(model: nn.Module, images: Tensor, sets: list[Tensor]) -> Any:
    """The concept against every random set, and these against each other."""
    technique = pellucid.create("tcav", concepts={"it": sets[0]}, random=sets[1:], layers=(LAYER,))
    return pellucid.explain(model, images, technique, target=0, progress=False)


def peer(model: nn.Module, images: Tensor, sets: list[Tensor]) -> Any:
    """Captum's: the concept against every random set, and nothing of these against each other."""
    from captum.concept import TCAV, Concept

    concepts = [Concept(place, str(place), list(one.split(BATCH))) for place, one in enumerate(sets)]
    with tempfile.TemporaryDirectory() as folder:
        tcav = TCAV(model, layers=[LAYER], save_path=folder)
        return tcav.interpret(images, [[concepts[0], one] for one in concepts[1:]], target=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    given = data()
    contenders = {"limit": lambda: limit(*given), "pellucid": lambda: ours(*given)}
    if options.peer:
        contenders["captum"] = lambda: peer(*given)
    row = {"name": "TCAV, ten random sets of 50 images", **measure.ratios(contenders, "limit", options.repeats)}
    print(row)
    measure.save("concepts", measure.merged("concepts", [row]))


if __name__ == "__main__":
    main()
