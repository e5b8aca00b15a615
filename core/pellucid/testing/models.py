"""Small networks for the checks: one in four coding styles, one for tables, and models with a known answer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4
IMAGE = (3, 16, 16)
FEATURES = 10
WIDTH = 8


class SmallNet(nn.Module):
    """A residual network for images 3 x 16 x 16 with BatchNorm, dropout, pooling and a linear head.

    What differs in train mode is there on purpose: BatchNorm whose statistics are not those of any batch, and dropout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.relu1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4) of images (B, 3, 16, 16)."""
        maps = self.pool(self.relu1(self.bn1(self.conv1(images))))
        maps = self.relu2(self.bn2(self.conv2(maps)) + maps)
        logits: Tensor = self.head(self.dropout(maps.mean(dim=(2, 3))))
        return logits


class FunctionalNet(SmallNet):
    """The same network with functions in place of modules."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4) of images (B, 3, 16, 16)."""
        maps = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 2)
        maps = torch.relu(torch.add(self.bn2(self.conv2(maps)), maps))
        return F.linear(F.dropout(maps.mean((2, 3)), 0.5, self.training), self.head.weight, self.head.bias)


class ReusedNet(SmallNet):
    """The same network with one ReLU module that runs twice."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4) of images (B, 3, 16, 16)."""
        maps = self.pool(self.relu1(self.bn1(self.conv1(images))))
        maps = self.relu1(self.bn2(self.conv2(maps)) + maps)
        logits: Tensor = self.head(self.dropout(maps.mean(dim=(2, 3))))
        return logits


class InPlaceNet(SmallNet):
    """The same network with functions that overwrite their argument."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4) of images (B, 3, 16, 16)."""
        maps = self.pool(self.bn1(self.conv1(images)).relu_())
        total = self.bn2(self.conv2(maps))
        total += maps
        logits: Tensor = self.head(self.dropout(F.relu(total, inplace=True).mean(dim=(2, 3))))
        return logits


STYLES: tuple[type[SmallNet], ...] = (SmallNet, FunctionalNet, ReusedNet, InPlaceNet)


class SmallTable(nn.Module):
    """A network for tables of 10 features with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 16)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (B, 4) of rows (B, 10)."""
        logits: Tensor = self.head(self.dropout(torch.tanh(self.hidden(rows))))
        return logits


class Smooth(nn.Module):
    """A quadratic of the inputs, on whose paths any sensible quadrature is exact."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, 4)."""
        logits: Tensor = self.head(self.inner(inputs.flatten(1)) ** 2)
        return logits


class BiasFree(nn.Module):
    """A piecewise linear network without biases, whose logits are conserved by relevance."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, 2 * WIDTH, bias=False)
        self.head = nn.Linear(2 * WIDTH, CLASSES, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, 4)."""
        logits: Tensor = self.head(torch.relu(self.inner(inputs.flatten(1))))
        return logits


class Mirrored(nn.Module):
    """A model that cannot tell its inputs from their mirror image along the last axis."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum of the model's logits for both."""
        logits: Tensor = self.model(inputs) + self.model(inputs.flip(-1))
        return logits


class HalfBlind(nn.Module):
    """A model that does not see the second half of the last axis."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's logits for what is seen."""
        seen = torch.arange(inputs.shape[-1], device=inputs.device) < inputs.shape[-1] // 2
        logits: Tensor = self.model(inputs * seen)
        return logits


class Saturated(nn.Module):
    """A score 1 - relu(1 - x) of the first feature: at x = 2 it has changed, and its gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, 2)."""
        score = self.scale * (1 - torch.relu(1 - inputs.flatten(1)[:, 0]))
        return torch.stack([score, -score], dim=1)


class Failing(nn.Module):
    """A model that raises in one of its forward passes.

    Attributes:
        countdown: how many passes work first; negative ones never fail.
        error: what is raised.
    """

    def __init__(self, model: nn.Module, countdown: int, error: BaseException) -> None:
        super().__init__()
        self.model = model
        self.countdown = countdown
        self.error = error

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's logits, while it works."""
        logits: Tensor = self.model(inputs)
        self.countdown -= 1
        if self.countdown == -1:
            raise self.error
        return logits


def copied(model: nn.Module) -> nn.Module:
    """A copy with tensors of its own; of models as plain as those of the checks, several times faster than a deep copy.

    Whatever is no tensor, dictionary or set is shared.
    """
    made = copy.copy(model)
    own = vars(made)
    own.update({name: value.copy() for name, value in own.items() if isinstance(value, (dict, set))})
    for name, parameter in model._parameters.items():
        made._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().clone())
    for name, buffer in model._buffers.items():
        made._buffers[name] = None if buffer is None else buffer.clone()
    for name, part in model._modules.items():
        made._modules[name] = None if part is None else copied(part)
    return made


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Gives a model weights and statistics that depend on the seed alone, and puts it into eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, scale: float, shift: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator).to(tensor) * scale + shift)

    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                draw(part.weight, (1.5 / part.weight[0].numel()) ** 0.5)
                if part.bias is not None:
                    draw(part.bias, 0.1)
            elif isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                draw(part.weight, 0.1, 1.0)
                draw(part.bias, 0.1, 0.2)
                draw(part.running_mean, 0.3)
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return model.eval()
