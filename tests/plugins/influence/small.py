"""A small network and data on which influences are held against each other."""

import torch
from torch import nn


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()


def data(count):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64), torch.arange(count) % 3
