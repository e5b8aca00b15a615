"""Normalisations of maps that are part of larger ones, or turned, which torch gives to other kernels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import pellucid


class Parts(nn.Module):
    """Normalises a part of a map, and another part turned."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), norm, nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        one, two = self.norm(maps[:, 2:, :3, :3]), self.norm(maps[:, :4, 1:, 1:].transpose(2, 3))
        return self.head((one.relu() + two.relu()).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
    ],
    ids=["batch", "of the batch", "instance", "instance with statistics", "group"],
)
def test_the_gradient_by_rules_is_the_gradient(norm: nn.Module) -> None:
    model = Parts(copy.deepcopy(norm)).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    # The ReLUs are left as they are: by the gradient.
    rules = pellucid.RuleSet("gradient", {})
    found = pellucid.explain(model, x, ByRules(rules), 0).values
    torch.testing.assert_close(found, wanted)


@dataclass(frozen=True, eq=False)
class ByRules(pellucid.Explainer):
    """The input's gradient, by rules."""

    rules: pellucid.RuleSet

    def explain(self, sample: pellucid.Sample) -> pellucid.Passes[pellucid.Attribution]:
        seen = yield pellucid.Look(at=sample, gradients=["input"], rules=self.rules)
        return pellucid.Attribution(seen.gradients["input"])
