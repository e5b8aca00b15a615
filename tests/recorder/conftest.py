import pytest
import torch
from torch import nn

from pellucid import States


class Net(nn.Module):
    """A small network with what a look may disturb: dropout, batch statistics, a functional ReLU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4 * 64, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        maps = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.fc(self.drop(maps.flatten(1)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(48) % 3
    images = torch.rand(48, 1, 8, 8, generator=generator) * 0.4
    for place, label in enumerate(labels):
        images[place, 0, 2 * label : 2 * label + 2] += 0.6
    return images, labels


@pytest.fixture
def train(data):
    images, labels = data

    def run(model, steps, optimiser=None, after=lambda: None):
        optimiser = optimiser or torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            rows = torch.randint(len(images), (16,))
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimiser.step()
            after()
        return optimiser

    return run


@pytest.fixture
def states():
    """Twenty points through four captures, the last of which has states that are not finite."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20, 6, generator=generator)
    values = torch.stack([start + t * torch.randn(20, 6, generator=generator) for t in range(4)])
    outputs = values[..., :3].clone()
    values[3, 2:] = torch.nan
    return States(
        values,
        torch.tensor([0, 1, 4, 9]),
        labels=torch.arange(20) % 3,
        outputs=outputs,
        names=tuple(f"</script><b>{place}</b>" for place in range(20)),
        classes=("ant", "bee", "cat"),
        pictures=torch.randint(256, (20, 8, 8, 3), generator=generator, dtype=torch.uint8),
    )
