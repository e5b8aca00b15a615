"""A small network that learns handwritten digits, with some wrong labels, recorded while it trains.

python examples/digits.py     # writes examples/digits: the recording, and the trained weights

Then look at it, for example by `pellucid run examples/digits-mislabels.yaml --out out`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pellucid

HERE = Path(__file__).parent
PROBE = 300
WRONG = 30
"""So many of the probe's labels are wrong, also for the training: its last ones."""


def network() -> nn.Module:
    """The network, untrained."""
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
    return nn.Sequential(body, nn.Linear(64, 10))


def data() -> tuple[Tensor, Tensor]:
    """1,000 digits 8 x 8 and their labels; those of the examples from PROBE - WRONG up to PROBE are wrong."""
    images, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)[:1000]
    x = torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)[order]
    wrong = slice(PROBE - WRONG, PROBE)
    y[wrong] = (y[wrong] + torch.randint(1, 10, (WRONG,), generator=generator)) % 10
    return x, y


def train(folder: Path, steps: int = 400, seed: int = 0, rate: float = 3e-3) -> None:
    """Trains a network and records it as the run `seed=...`; the weights go to network.safetensors."""
    x, y = data()
    torch.manual_seed(seed)
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), rate)
    recorder = pellucid.Recorder(
        net, x[:PROBE], layers=["0"], path=folder, run=f"seed={seed}", labels=y[:PROBE],
        names=[f"digit {place}" for place in range(PROBE)],
    )  # fmt: skip
    with recorder:
        for _ in range(steps):
            rows = torch.randint(len(x), (32,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    save_file(net.state_dict(), folder / "network.safetensors")
    print(f"{recorder.steps} steps, {len(recorder.captured)} captures in {folder}; overhead {recorder.overhead:.1%}")


if __name__ == "__main__":
    train(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "digits")
