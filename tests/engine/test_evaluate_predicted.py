"""Scoring explanations that were made for the predicted class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def test_a_control_that_never_looked_is_scored_for_the_predicted_class(model):
    inputs = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    control = pellucid.explain(model, inputs, "random")
    assert control.target.classes is None
    asked = pellucid.evaluate(model, inputs, control, "pixel_flipping", model(inputs).argmax(dim=1), controls=False)
    found = pellucid.evaluate(model, inputs, control, "pixel_flipping", controls=False)
    torch.testing.assert_close(found.values, asked.values)


def test_beside_others_it_is_scored_for_their_classes(model):
    inputs = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = pellucid.explain(model, inputs, ["random", "saliency"], target=None)
    scores = pellucid.evaluate(model, inputs, made, "pixel_flipping", controls=False)
    assert torch.isfinite(scores.values).all()
