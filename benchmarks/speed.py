"""How many times the raw cost of their passes techniques take, ours and peers'.

`python -m benchmarks.speed [--quick] [--only WORD]`; the rows that were measured replace the saved ones of their names.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pellucid
from benchmarks import limits, measure, models

SIX = ["saliency", "input_x_gradient", "grad_cam", "layer_cam", "hires_cam"]


@dataclass(frozen=True)
class Case:
    """One row of the table: contenders that do the same work, the limit among them.

    Attributes:
        name: the row's name.
        aim: the greatest ratio of ours to the limit.
        contenders: by name; "limit" and "pellucid" are among them.
    """

    name: str
    aim: float
    contenders: dict[str, Callable[[], object]]


def cases(name: str, quick: bool) -> Iterator[Case]:
    """All rows for one model."""
    ours = models.build(name)
    raw = limits.locked(copy.deepcopy(ours))
    theirs = copy.deepcopy(ours).eval()
    fast = pellucid.adapt(ours, optimize=True)
    auto = pellucid.explain(ours, models.photos(1), "grad_cam").meta.layer
    assert auto is not None
    one, eight = models.photos(1), models.photos(8)
    for inputs in (one, eight):
        yield from _one_pass(name, ours, raw, theirs, fast, auto, inputs)
    if name == "efficientnet_lite0":
        yield from _many_passes(name, ours, raw, theirs, fast, auto, one, quick)


def _layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.partition(":")[0])


def _one_pass(
    name: str, ours: nn.Module, raw: nn.Module, theirs: nn.Module, fast: Any, auto: str, inputs: Tensor
) -> Iterator[Case]:
    from captum.attr import InputXGradient, LayerGradCam, Saliency
    from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    count = len(inputs)
    target = torch.zeros(count, dtype=torch.long)
    where = f"{name}, batch {count}"
    leaf = _head_start(theirs, auto)

    def six_in_turn() -> None:
        x = inputs.clone().requires_grad_()
        Saliency(theirs).attribute(x, target=target)
        InputXGradient(theirs).attribute(x, target=target)
        if leaf is not None:
            for _ in range(3):
                LayerGradCam(theirs, leaf).attribute(x, target=target)

    def cam_peer(kind: Any) -> Callable[[], object]:
        def run() -> object:
            assert leaf is not None
            with kind(model=theirs, target_layers=[leaf]) as cam:
                return cam(input_tensor=inputs, targets=[ClassifierOutputTarget(0)] * count)

        return run

    def three_cams() -> None:
        for kind in (GradCAM, LayerCAM, HiResCAM):
            cam_peer(kind)()

    def saliency_peer() -> object:
        return Saliency(theirs).attribute(inputs.clone().requires_grad_(), target=target)

    # The sixth is the last layer's activations, by the technique of that name where it is installed.
    six = [*SIX, *(record.name for record in pellucid.techniques("explainer") if record.name == "activations")]
    peers: dict[str, Callable[[], object]] = {"captum, in turn": six_in_turn}
    cams: dict[str, Callable[[], object]] = {}
    if leaf is not None:
        peers["pytorch-grad-cam, its three"] = three_cams
        cams["pytorch-grad-cam"] = cam_peer(GradCAM)
        cams["captum"] = lambda: LayerGradCam(theirs, leaf).attribute(inputs, target=target)
    yield Case(
        f"{len(six)} one-pass techniques together: {where}",
        1.1,
        {
            "limit": lambda: limits.gradient(raw, inputs),
            "pellucid": lambda: pellucid.explain(ours, inputs, six, target=target),
            "pellucid, optimize": lambda: pellucid.explain(fast, inputs, six, target=target),
            **peers,
        },
    )
    yield Case(
        f"saliency: {where}",
        1.1,
        {
            "limit": lambda: limits.gradient(raw, inputs),
            "pellucid": lambda: pellucid.explain(ours, inputs, "saliency", target=target),
            "pellucid, optimize": lambda: pellucid.explain(fast, inputs, "saliency", target=target),
            "captum": saliency_peer,
        },
    )
    raw_layer = _layer(raw, auto)
    call = int(auto.partition(":")[2] or 0)
    yield Case(
        f"grad_cam: {where}",
        1.1,
        {
            "limit": lambda: limits.head_gradient(raw, raw_layer, inputs, call),
            "pellucid": lambda: pellucid.explain(ours, inputs, "grad_cam", target=target),
            "pellucid, optimize": lambda: pellucid.explain(fast, inputs, "grad_cam", target=target),
            **cams,
        },
    )


def _head_start(model: nn.Module, auto: str) -> nn.Module | None:
    """The layer for peers, which hook modules and so cannot name one call of a reused module."""
    name = auto.partition(":")[0]
    return model.get_submodule({"_swish": "_bn1"}.get(name, name))


def _many_passes(
    name: str,
    ours: nn.Module,
    raw: nn.Module,
    theirs: nn.Module,
    fast: Any,
    auto: str,
    one: Tensor,
    quick: bool,
) -> Iterator[Case]:
    from captum.attr import IntegratedGradients, KernelShap, NoiseTunnel, Occlusion, Saliency
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    backward_size = limits.best_size(limits.gradient, raw, one)
    forward_size = limits.best_size(limits.forward, raw, one)

    def gradients(count: int) -> Callable[[], object]:
        rows = models.photos(count)
        return lambda: limits.in_batches(limits.gradient, raw, rows, backward_size)

    def forwards(count: int) -> Callable[[], object]:
        rows = models.photos(count)
        return lambda: limits.in_batches(limits.forward, raw, rows, forward_size)

    def both(technique: Any) -> dict[str, Callable[[], object]]:
        return {
            "pellucid": lambda: pellucid.explain(ours, one, technique, target=0),
            "pellucid, optimize": lambda: pellucid.explain(fast, one, technique, target=0),
        }

    yield Case(
        f"integrated_gradients, 50 steps: {name}",
        1.1,
        {
            "limit": gradients(50),
            **both(pellucid.create("integrated_gradients", n_steps=50)),
            "captum, default": lambda: IntegratedGradients(theirs).attribute(one, target=0, n_steps=50),
            "captum, best batch": lambda: IntegratedGradients(theirs).attribute(
                one, target=0, n_steps=50, internal_batch_size=backward_size
            ),
        },
    )
    yield Case(
        f"smoothgrad, 32 samples: {name}",
        1.1,
        {
            "limit": gradients(32),
            **both(pellucid.create("smoothgrad", n_samples=32)),
            "captum, default": lambda: NoiseTunnel(Saliency(theirs)).attribute(
                one, nt_samples=32, stdevs=0.15, target=0
            ),
            "captum, best batch": lambda: NoiseTunnel(Saliency(theirs)).attribute(
                one, nt_samples=32, nt_samples_batch_size=backward_size, stdevs=0.15, target=0
            ),
        },
    )
    yield Case(
        f"occlusion, 169 windows: {name}",
        1.1,
        {
            "limit": forwards(170),
            **both("occlusion"),
            "captum, default": lambda: Occlusion(theirs).attribute(
                one, sliding_window_shapes=(3, 32, 32), strides=(3, 16, 16), target=0
            ),
            "captum, best batch": lambda: Occlusion(theirs).attribute(
                one, sliding_window_shapes=(3, 32, 32), strides=(3, 16, 16), target=0,
                perturbations_per_eval=forward_size,
            ),
        },
    )  # fmt: skip
    side = torch.arange(224) * 7 // 224
    cells = side[:, None] * 7 + side
    yield Case(
        f"kernel_shap, 200 samples: {name}",
        1.1,
        {
            "limit": forwards(200),
            **both(pellucid.create("kernel_shap", n_samples=200)),
            "captum, default": lambda: KernelShap(theirs).attribute(one, target=0, feature_mask=cells, n_samples=200),
            "captum, best batch": lambda: KernelShap(theirs).attribute(
                one, target=0, feature_mask=cells, n_samples=200, perturbations_per_eval=forward_size
            ),
        },
    )
    masks = 100 if quick else 500
    yield Case(
        f"rise, {masks} masks: {name}",
        1.1,
        {"limit": forwards(masks), **both(pellucid.create("rise", n_masks=masks))},
    )

    def score_cam_peer() -> object:
        with ScoreCAM(model=theirs, target_layers=[theirs.get_submodule("_blocks.15")]) as cam:
            cam.batch_size = forward_size
            return cam(input_tensor=one, targets=[ClassifierOutputTarget(0)])

    yield Case(
        f"score_cam, 320 channels: {name}",
        1.1,
        {
            "limit": forwards(321),
            **both(pellucid.create("score_cam", layer="_blocks.15")),
            "pytorch-grad-cam, best batch": score_cam_peer,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds; a third of them for many passes")
    parser.add_argument("--quick", action="store_true", help="fewer masks; nothing is saved")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--model", default="", help="only models whose name contains this")
    parser.add_argument("--no-peers", action="store_true", help="only the limit and ours; nothing is saved")
    options = parser.parse_args()
    rows = []
    for name in ("efficientnet_lite0", "resnet50"):
        if options.model not in name:
            continue
        for case in cases(name, options.quick):
            if options.only not in case.name:
                continue
            contenders = {
                n: c for n, c in case.contenders.items() if not options.no_peers or n.startswith(("limit", "pellucid"))
            }
            heavy = any(
                word in case.name for word in ("rise", "occlusion", "score_cam", "integrated", "smoothgrad", "kernel")
            )
            repeats = max(2, options.rounds // 3) if heavy else options.rounds
            row = {"name": case.name, "aim": case.aim, **measure.ratios(contenders, "limit", repeats)}
            rows.append(row)
            print(case.name, row["ratio"], row["seconds"], flush=True)
    if not (options.quick or options.no_peers):
        measure.save("speed", measure.merged("speed", rows))


if __name__ == "__main__":
    main()
