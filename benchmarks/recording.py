"""What recording costs the training of a small CNN on MNIST, by the recorder's own clock and against unrecorded runs.

python -m benchmarks.recording IMAGES.npz        # `images` (N, 28, 28) and `labels`; 10,000 of them are 157 steps
python -m benchmarks.recording IMAGES.npz 4690   # so many steps: 5 epochs of 60,000 examples
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

import pellucid
from benchmarks.measure import RESULTS, merged, save
from pellucid.recorder import load

PROBE = 300
EPOCH = 938
"""The steps of an epoch of MNIST's 60,000 examples in batches of 64."""


def data(path: str) -> tuple[Tensor, Tensor]:
    given = np.load(path)
    return torch.tensor(given["images"][:, None] / 255, dtype=torch.float32), torch.tensor(given["labels"].astype(int))


def train(x: Tensor, y: Tensor, steps: int, folder: str | None) -> tuple[float, pellucid.Recorder | None]:
    """The seconds of a training, the recorder's own among them, and the recorder if a folder is given."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters())
    began = time.perf_counter()
    recorder = folder and pellucid.Recorder(net, x[:PROBE], layers=["7"], path=folder, labels=y[:PROBE])
    with recorder or nullcontext():
        for _ in range(steps):
            rows = torch.randint(len(x), (64,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return time.perf_counter() - began, recorder or None


def recorded(x: Tensor, y: Tensor, steps: int) -> dict[str, object]:
    """One recorded training, by the recorder's own clock."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, recorder = train(x, y, steps, folder)
        assert recorder is not None
        accuracy = float(load(folder).states().correct[-1].double().mean())
    return {
        "name": f"recorder, {steps} steps", "captures": len(recorder.captured), "accuracy": round(accuracy, 3),
        "seconds": round(seconds, 2), "recording": round(recorder.seconds, 3), "overhead": round(recorder.overhead, 4),
    }  # fmt: skip


def against_none(x: Tensor, y: Tensor, steps: int = 250, rounds: int = 4) -> dict[str, object]:
    """Recorded and unrecorded trainings by turns: what a capture costs all in all, in training steps."""
    plain, extra, captures = [], [], 0
    for _ in range(rounds):
        alone, _ = train(x, y, steps, None)
        with tempfile.TemporaryDirectory() as folder:
            whole, recorder = train(x, y, steps, folder)
        assert recorder is not None
        captures = len(recorder.captured)
        plain.append(alone)
        extra.append(whole - alone)
    step = statistics.median(plain) / steps
    return {
        "name": "capture against unrecorded", "step_ms": round(step * 1e3, 2),
        "steps_per_capture": round(statistics.median(extra) / captures / step, 2),
    }  # fmt: skip


if __name__ == "__main__":
    x, y = data(sys.argv[1])
    if len(sys.argv) > 2:
        rows = [recorded(x, y, int(sys.argv[2]))]
    else:
        rows = [recorded(x, y, 785), recorded(x, y, EPOCH), against_none(x, y)]
    save("recording", merged("recording", rows))
    print(rows, RESULTS)
