"""The models that are measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build(name: str) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, or any classifier of torchvision with random ones."""
    if name == "efficientnet_lite0":
        import pellucid

        return pellucid.load_model("demo:efficientnet_lite0").module
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()  # type: ignore[no-any-return]


def photos(count: int) -> Tensor:
    """Normalised noise of an image's size: what is in it does not matter for the time."""
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))
