"""Similar examples: what a folder of kept vectors and an approximate index gain, and what the index misses.

`python -m benchmarks.similar DATA.npz [--n 20000] [--queries 20]`: the file's arrays `x` or the first of more than one
axis, and of one axis, are images and labels; of fewer than n, noisy copies are added. A small network is trained on
some of them for one epoch; the nearest ten of each query are asked for by the perceptual distance at its second layer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pellucid
from benchmarks import measure
from benchmarks.mmd import data

K = 10


def network(points: Tensor, labels: Tensor) -> nn.Module:
    """A small convolutional network after one epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(800, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for batch in torch.randperm(len(labels)).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(points[batch]), labels[batch]).backward()
        optimiser.step()
    return model.eval()


def timed(run: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    return run(), round(time.perf_counter() - started, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=20)
    options = parser.parse_args()
    with np.load(options.data) as file:
        labels = torch.as_tensor(next(file[name] for name in file.files if file[name].ndim == 1)).long()
    images = data(options.data, options.n + options.queries).reshape(-1, 1, 28, 28)
    train, queries = images[: options.n], images[options.n :]
    model = network(train[:5000], labels[:5000])

    def run(**changed: Any) -> Any:
        technique = pellucid.create("similar_examples", train=train, k=K, layers=("3",), **changed)
        return pellucid.explain(model, queries, technique, progress=False)

    exact, seconds = timed(run)
    taken = {"exact, every time": seconds}
    with tempfile.TemporaryDirectory() as folder:
        _, taken["exact, first with a folder"] = timed(lambda: run(folder=folder, exact_up_to=options.n))
        _, taken["exact, later"] = timed(lambda: run(folder=folder, exact_up_to=options.n))
        _, taken["index, made of kept vectors"] = timed(lambda: run(folder=folder, exact_up_to=0))
        found, taken["index, later"] = timed(lambda: run(folder=folder, exact_up_to=0))
    hits = (exact.indices[:, :, None] == found.indices[:, None]).any(dim=2).double().mean()
    row = {
        "name": f"similar_examples, n = {options.n}, {options.queries} queries",
        "seconds": taken,
        "recall at 10": round(float(hits), 4),
    }
    print(row)
    measure.save("similar", measure.merged("similar", [row]))


if __name__ == "__main__":
    main()
