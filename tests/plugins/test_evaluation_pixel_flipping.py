"""Pixel flipping: against plain loops and brute force over all orders, and bad explanations."""

import itertools

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Attribution, ClassLogit, Sample
from pellucid_evaluation.pixel_flipping import PixelFlipping
from pellucid_evaluation.presets import Deletion, Insertion


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 13, 5)).double().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def relevance():
    return Attribution(torch.randn(3, 3, 12, 15, generator=torch.Generator().manual_seed(2), dtype=torch.float64))


TARGET = torch.tensor([0, 3, 1])


def score(model, inputs, explanation, metric, **options):
    """One evaluator's score of one explanation: values (B,), places (n,), curve (B, n)."""
    options = {"target": TARGET, "controls": False, **options}
    technique = metric
    seen = {}

    class Spy(type(technique)):
        def evaluate(self, sample, given):
            seen["scores"] = yield from super().evaluate(sample, given)
            return seen["scores"]

    pellucid.evaluate(model, inputs, explanation, Spy(**technique.get_params()), **options)
    return seen["scores"]
