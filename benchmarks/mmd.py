"""MMD-critic's time and memory, held against the raw cost of the kernel matrix and against the package `mmd-critic`.

`python -m benchmarks.mmd DATA.npz [--large] [--peer]`: the file holds images as its first array of more than one axis.
The limit is what the products and exponentials of all n^2 kernel entries cost at the machine's matrix rate, in blocks.
`--large` adds n = 60,000, the data repeated with noise, with one repeat.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pellucid
from benchmarks import measure

GAMMA = 0.026
CHOSEN = {"n_prototypes": 100, "n_criticisms": 20, "gamma": GAMMA}
BLOCK = 2048


def data(path: str, n: int) -> Tensor:
    """(n, d) images in [0, 1], repeated with noise where the file has fewer."""
    with np.load(path) as file:
        images = next(file[name] for name in file.files if file[name].ndim > 1)
    points = torch.as_tensor(images).reshape(len(images), -1).float()
    points /= points.max()
    if n <= len(points):
        return points[:n].clone()
    many = points.repeat(-(-n // len(points)), 1)[:n]
    many += 0.05 * torch.randn(many.shape, generator=torch.Generator().manual_seed(0))
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
    return pellucid.explain(None, points, pellucid.create("mmd_critic", **CHOSEN), progress=False)


def peer(points: Tensor) -> Any:
    """The same by the package of the method's name."""
    from mmd_critic import MMDCritic
    from mmd_critic.kernels import RBFKernel

    critic = MMDCritic(points, RBFKernel(GAMMA))
    prototypes, _ = critic.select_prototypes(CHOSEN["n_prototypes"])
    return critic.select_criticisms(CHOSEN["n_criticisms"], prototypes)


def _child(who: str, path: str, n: int) -> None:
    """Prints the mebibytes over the libraries and the data, as the operating system counts them."""
    run = {"pellucid": ours, "mmd-critic": peer}[who]
    run(data(path, 500))
    points = data(path, n)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: making the data is not the technique's
    started = time.perf_counter()
    run(points)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    print(json.dumps({"seconds": round(seconds, 3), "over_data_mib": round((peak - before) / 2**20)}))


def _memory(who: str, path: str, n: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.mmd", path, "--child", who, "--n", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--n", type=int, default=10_000)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.data, options.n)
        return
    rows = []
    for n in (10_000, 60_000) if options.large else (10_000,):
        points = data(options.data, n)
        contenders = {"limit": lambda: limit(points), "pellucid": lambda: ours(points)}  # noqa: B023
        if n == 10_000:
            row = measure.ratios(contenders, "limit", 3)
            if options.peer:
                row["peer"] = _memory("mmd-critic", options.data, n)
        else:
            row = {}
            for name, run in contenders.items():
                started = time.perf_counter()
                run()
                row[name] = round(time.perf_counter() - started, 2)
        row["memory"] = _memory("pellucid", options.data, n)
        rows.append({"name": f"mmd_critic, n = {n}", **row})
        print(rows[-1], flush=True)
    measure.save("mmd", measure.merged("mmd", rows))


if __name__ == "__main__":
    main()
