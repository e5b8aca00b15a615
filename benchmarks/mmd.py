"""MMD-critic's time and memory, held against the raw cost of the kernel matrix and against the package `mmd-critic`.

`python -m benchmarks.mmd DATA.npz [--n 10000] [--peer] [--mapped]`: the file's first array of more than one axis holds
images; of fewer than n, noisy copies are added. The limit is what the products and exponentials of all n^2 kernel
entries cost at the machine's matrix rate, in blocks. Ours computes half of them, the matrix being symmetric. With
`--mapped` the images are a memory-mapped file, and ours alone is measured: its memory without the pages of files, which
the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pellucid
from benchmarks import measure

GAMMA = 0.026
BLOCK = 2048
SMALL = 20_000
"""Up to how many examples the contenders take turns; of more, each runs once."""


def data(path: str, n: int) -> Tensor:
    """(n, d) images in [0, 1], repeated with noise where the file has fewer."""
    with np.load(path) as file:
        images = next(file[name] for name in file.files if file[name].ndim > 1)
    points = torch.as_tensor(images).reshape(len(images), -1).float()
    points /= points.max()
    if n <= len(points):
        return points[:n].clone()
    many = points.repeat(-(-n // len(points)), 1)[:n]
    generator = torch.Generator().manual_seed(0)
    for part in torch.split(many, 1000):
        part += 0.05 * torch.randn(part.shape, generator=generator)
    return many


def limit(points: Tensor) -> float:
    """The products and exponentials of all entries, block by block, and their sum."""
    total = 0.0
    for left in points.split(BLOCK):
        for right in points.split(BLOCK):
            total += float((left @ right.T).mul_(2 * GAMMA).sub_(1.0).exp_().sum())
    return total


def ours(points: Tensor) -> Any:
    """Prototypes and criticisms of all examples together."""
    return pellucid.explain(
        None, points, pellucid.create("mmd_critic", n_prototypes=100, n_criticisms=20, gamma=GAMMA), progress=False
    )


def peer(points: Tensor) -> Any:
    """The same by the package of the method's name."""
    from mmd_critic import MMDCritic
    from mmd_critic.kernels import RBFKernel

    critic = MMDCritic(points.numpy(), RBFKernel((2 * GAMMA) ** -0.5))
    chosen, _ = critic.select_prototypes(100)
    return critic.select_criticisms(20, chosen)


def _resident(kind: str = "Rss") -> int:
    """The process's memory by its page tables; the counters of `statm` and `VmHWM` lag behind by hundreds of MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


def _mapped(path: str, n: int, folder: str) -> Any:
    """The images as a memory-mapped file."""
    points = data(path, n)
    file = Path(folder) / "images.npy"
    np.save(file, points.numpy())
    return np.load(file, mmap_mode="r")


def _child(who: str, path: str, n: int, folder: str | None) -> None:
    """Prints the mebibytes over the libraries and the data, looked at twenty times a second."""
    run = {"pellucid": ours, "mmd-critic": peer}[who]
    run(data(path, 500))
    points = data(path, n) if folder is None else _mapped(path, n, folder)
    kind = "Rss" if folder is None else "Anonymous"
    before, done, seen = _resident(kind), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(_resident(kind))

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    run(points)
    seconds = time.perf_counter() - started
    done.set()
    watching.join()
    print(json.dumps({"seconds": round(seconds, 3), "over_data_mib": round((max(seen) - before) / 2**20)}))


def _child_of(who: str, path: str, n: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.mmd", path, "--child", who, "--n", str(n), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--mapped", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--folder")
    parser.add_argument("--n", type=int, default=10_000)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.data, options.n, options.folder)
        return
    if options.mapped:
        with tempfile.TemporaryDirectory() as folder:
            memory = _child_of("pellucid", options.data, options.n, "--folder", folder)
        _save({"name": f"mmd_critic, n = {options.n}, memory-mapped", "memory": memory})
        return
    points = data(options.data, options.n)
    row: dict[str, Any] = {"memory": _child_of("pellucid", options.data, options.n)}
    if options.n <= SMALL:
        contenders = {"limit": lambda: limit(points), "pellucid": lambda: ours(points)}
        row |= measure.ratios(contenders, "limit", 3)
    else:
        started = time.perf_counter()
        limit(points)
        seconds = {"limit": round(time.perf_counter() - started, 2), "pellucid": row["memory"]["seconds"]}
        row |= {"seconds": seconds, "ratio": {"pellucid": round(seconds["pellucid"] / seconds["limit"], 3)}}
    if options.peer:
        row["peer"] = _child_of("mmd-critic", options.data, options.n)
    _save({"name": f"mmd_critic, n = {options.n}", **row})


def _save(row: dict[str, Any]) -> None:
    print(row, flush=True)
    measure.save("mmd", measure.merged("mmd", [row]))


if __name__ == "__main__":
    main()
