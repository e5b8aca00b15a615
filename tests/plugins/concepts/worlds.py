"""Data with planted concepts and parts, and the small networks that the tests train on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3
CAPTION = (slice(11, 15), slice(6, 10))


def glyphs() -> Tensor:
    """(3, 4, 4), the caption of each class."""
    return (torch.rand(CLASSES, 4, 4, generator=torch.Generator().manual_seed(7)) > 0.5).float()


@dataclass
class Captions:
    """Digits with a caption below that names the class, or, where captions are noise, any pattern.

    The caption is the easiest cue; where it is noise, a network that is shown new patterns in every epoch learns to
    pass it over.
    """

    noise: bool
    seed: int = 0

    def __post_init__(self) -> None:
        digits = load_digits(n_class=CLASSES)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.digits = torch.tensor(digits.images / 32, dtype=torch.float32)  # fainter than the captions
        self.labels = torch.tensor(digits.target)
        self.images = self.drawn()

    def drawn(self) -> Tensor:
        """The digits with captions of their own, drawn anew."""
        return self.composed(self.digits, self.pattern(len(self.labels)) if self.noise else glyphs()[self.labels])

    def composed(self, digits: Tensor, captions: Tensor) -> Tensor:
        """Photos (n, 1, 16, 16) of digits above captions."""
        photos = 0.05 * torch.rand(len(digits), 1, 16, 16, generator=self.generator)
        photos[:, 0, :8, 4:12] += digits
        photos[:, 0, *CAPTION] += captions
        return photos

    def clutter(self, n: int, pattern: Tensor | None = None) -> Tensor:
        """Any digits, above one pattern (4, 4), or each above a random one."""
        places = torch.randint(len(self.digits), (n,), generator=self.generator)
        patterns = self.pattern(n) if pattern is None else pattern.expand(n, 4, 4)
        return self.composed(self.digits[places], patterns)

    def pattern(self, n: int = 1) -> Tensor:
        """Random patterns (n, 4, 4)."""
        return (torch.rand(n, 4, 4, generator=self.generator) > 0.5).float()


class CaptionNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16 * 64, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, photos: Tensor) -> Tensor:
        maps = F.relu(self.conv2(F.relu(self.conv1(photos))))
        return self.head(F.relu(self.fc(maps.flatten(1))))


def blinded(net: CaptionNet) -> CaptionNet:
    """The same network without the weights by which captions reach its head: it cannot read them at all."""
    blind = copy.deepcopy(net)
    with torch.no_grad():  # a caption on rows 11 to 14 reaches rows 5 to 7 of the last map, and columns 2 to 5
        blind.fc.weight.view(32, 16, 8, 8)[:, :, 5:8, 2:6] = 0
    return blind


def effects(net: nn.Module, world: Captions) -> Tensor:
    """How much each caption raises the logit of each class's images against any pattern, (classes, captions)."""

    def logits(draw: Callable[[], Tensor], times: int) -> Tensor:
        with torch.no_grad():
            shown = [net(world.composed(world.digits, draw())) for _ in range(times)]
        return torch.stack(shown).mean(dim=0)

    count, rows = len(world.labels), torch.arange(len(world.labels))
    usual = logits(lambda: world.pattern(count), 40)
    columns = []
    for one in glyphs():
        moved = (logits(lambda one=one: one.expand(count, 4, 4), 5) - usual)[rows, world.labels]
        columns.append([float(moved[world.labels == kind].mean()) for kind in range(CLASSES)])
    return torch.tensor(columns).T


def trained(net: nn.Module, draw: Callable[[], Tensor], labels: Tensor, epochs: int, rate: float = 3e-3) -> nn.Module:
    """Trains a network on images that are drawn for every epoch."""
    optimiser = torch.optim.Adam(net.parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        images = draw()
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimiser.step()
    return net.eval()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((net(images).argmax(dim=1) == labels).float().mean())


SIDE = 40
PART = 10
COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.15, 0.2, 0.95]])
OTHER_COLOURS = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.9, 0.9], [0.9, 0.2, 0.9]])


def parts(n: int, colours: Tensor, generator: torch.Generator) -> Tensor:
    """Photos (n, 3, 40, 40) of grey texture with a square of each colour somewhere, the squares apart."""
    photos = 0.45 + 0.1 * torch.rand(n, 1, SIDE, SIDE, generator=generator).expand(-1, 3, -1, -1)
    photos = photos.clone()
    cells = SIDE // PART
    for photo in photos:
        places = torch.randperm(cells * cells, generator=generator)[: len(colours)].tolist()
        for place, colour in zip(places, colours, strict=True):
            top, left = PART * (place // cells), PART * (place % cells)
            photo[:, top : top + PART, left : left + PART] = colour[:, None, None]
    return photos


class PartNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, 2)

    def forward(self, photos: Tensor) -> Tensor:
        maps = F.relu(self.conv2(F.relu(self.conv1(photos))))
        return self.head(maps.mean(dim=(2, 3)))
