"""Influence: the exact tangent kernel against its limit and peers, in time and memory.

`python -m benchmarks.influence PATH_TO_MNIST.npz [--peers]`: 8000 training digits, 1000 queries, 225,034 parameters.
`--captum` measures ours beside captum's TracInCP alone, at smaller sizes, in one process by turns. Memory is the
greatest of the whole process, torch and the data included; "before" is what these alone have taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import pellucid
from benchmarks.measure import RESULTS, ratios, save

TRAIN, QUERIES = 8000, 1000
SMALL, SMALLEST = (1000, 200), (200, 50)
"""The sizes at which captum's TracInCP is compared as well, its default at the smallest: it takes minutes at others."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def digits(path: str) -> tuple[Tensor, Tensor]:
    data = np.load(path)
    images = torch.tensor(data["images"]).float().reshape(-1, 1, 28, 28) / 255
    return images[: TRAIN + QUERIES], torch.tensor(data["labels"]).long()[: TRAIN + QUERIES]


def raw_passes(model: nn.Sequential, x: Tensor, y: Tensor, size: int) -> None:
    """Forward and backward to the first layer's output, the least that any exact kernel needs."""
    for start in range(0, len(x), size):
        first = model[0](x[start : start + size]).detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model[1:](first), y[start : start + size], reduction="sum"), first)


def multiplications(count: float) -> float:
    """The seconds that so many multiplications take at the machine's matrix rate."""
    one, other = torch.randn(1024, 18432), torch.randn(1000, 18432)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(one, other.T)
        times.append(time.perf_counter() - started)
    return count / (1024 * 1000 * 18432 / min(times))


def limit(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, float]:
    model.requires_grad_(False)
    passes = []
    for size in (64, 128, 256):
        raw_passes(model, x[:size], y[:size], size)
        started = time.perf_counter()
        raw_passes(model, x[:2304], y[:2304], size)
        passes.append((time.perf_counter() - started) * len(x) / 2304)
    # For each pair: convolutions written out; for linear layers inputs and output gradients, and biases.
    each = 9 * 32 + 32 + 288 * 64 + 64 + (1600 + 128) + (128 + 10)
    return {"passes": min(passes), "multiplications": multiplications(float(each) * TRAIN * QUERIES)}


def ours(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    technique = pellucid.create("ntk_influence", train=(x[:TRAIN], y[:TRAIN]))
    values: Tensor = pellucid.explain(model, x[TRAIN:], technique, pellucid.Loss(y[TRAIN:])).values
    return values


def by_vmap(model: nn.Sequential, x: Tensor, y: Tensor, size: int = 128) -> Tensor:
    """All gradients written out by vmap(grad), in blocks."""
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def rows(start: int, stop: int) -> Tensor:
        return torch.cat([g.flatten(1) for g in each(parameters, x[start:stop], y[start:stop]).values()], dim=1)

    queries = torch.cat([rows(s, s + size) for s in range(TRAIN, TRAIN + QUERIES, size)])
    return -torch.cat([queries @ rows(s, s + size).T for s in range(0, TRAIN, size)], dim=1)


def by_captum(model: nn.Sequential, x: Tensor, y: Tensor, reduction: str = "sum", batch: bool = True) -> Tensor:
    """All layers. By default captum goes through each example for itself, with a loss that is not reduced."""
    from captum.influence import TracInCP

    data = torch.utils.data.TensorDataset(x[:TRAIN], y[:TRAIN])
    peer = TracInCP(
        model.requires_grad_(True), data, ["one"], lambda *_: 1.0,
        loss_fn=nn.CrossEntropyLoss(reduction=reduction), batch_size=100, sample_wise_grads_per_batch=batch,
    )  # fmt: skip
    return -torch.as_tensor(peer.influence((x[TRAIN:], y[TRAIN:])))


def by_captum_fast(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """The last layer alone, 1290 of the 225,034 parameters: another and smaller question than ours."""
    from captum.influence import TracInCPFast

    data = torch.utils.data.TensorDataset(x[:TRAIN], y[:TRAIN])
    peer = TracInCPFast(
        model.requires_grad_(True), model[-1], data, ["one"], lambda *_: 1.0,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=100,
    )  # fmt: skip
    return -torch.as_tensor(peer.influence((x[TRAIN:], y[TRAIN:])))


WAYS: dict[str, Callable[[nn.Sequential, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "vmap": by_vmap,
    "captum": by_captum,
}
CAPTUM: dict[str, Callable[[nn.Sequential, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "TracInCP, sample_wise_grads_per_batch, loss summed": by_captum,
    "TracInCP, sample_wise_grads_per_batch, loss averaged": lambda *given: by_captum(*given, reduction="mean"),
    "TracInCPFast, the last layer only": by_captum_fast,
}
DEFAULT: dict[str, Callable[[nn.Sequential, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "TracInCP, default": lambda *given: by_captum(*given, reduction="none", batch=False),
}


def greatest() -> float:
    """The most memory that this process had so far, in GB; what it inherited of its parent's figure is not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def measured(way: str, path: str) -> dict[str, float]:
    """Seconds and greatest memory of one way, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.influence", path, "--way", way]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(("seconds", "gigabytes", "before"), map(float, told[-3:]), strict=True))


def against_captum(path: str, size: tuple[int, int], ways: dict[str, Any], repeats: int) -> None:
    """The seconds of all by turns at a size, and by how much their values differ from ours."""
    global TRAIN, QUERIES
    TRAIN, QUERIES = size
    x, y = digits(path)
    found: dict[str, Tensor] = {}

    def run(way: str) -> None:
        found[way] = ways[way](network(), x, y)

    row: dict[str, object] = ratios({way: lambda way=way: run(way) for way in ways}, "ours", repeats)  # type: ignore[misc]
    row["difference"] = {
        way: float((found["ours"] - values).abs().max() / values.abs().max()) for way, values in found.items()
    }
    print(row)
    save("influence", {**known(), f"captum at {TRAIN} x {QUERIES}": row})


def known() -> dict[str, object]:
    """What was measured before."""
    path = RESULTS / "influence.json"
    rows: dict[str, object] = json.loads(path.read_text())["rows"] if path.exists() else {}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--way", choices=sorted(WAYS))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--captum", action="store_true")
    given = parser.parse_args()
    if given.captum:
        against_captum(given.path, SMALL, CAPTUM, 1)
        against_captum(given.path, SMALLEST, DEFAULT, 1)
        return
    x, y = digits(given.path)
    model = network()
    if given.way:
        before = greatest()
        times = []
        for _ in range(2 if given.way == "ours" else 1):
            started = time.perf_counter()
            WAYS[given.way](model, x, y)
            times.append(time.perf_counter() - started)
        print(statistics.median_low(times), greatest(), before)
        return
    rows: dict[str, object] = {"limit": limit(model, x, y)}
    for way in ("ours", "vmap", "captum") if given.peers else ("ours",):
        rows[way] = measured(way, given.path)
        print(way, rows[way])
    print(rows)
    save("influence", {**known(), **rows})


if __name__ == "__main__":
    main()
