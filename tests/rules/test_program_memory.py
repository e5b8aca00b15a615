"""What the way back needs and is made again rather than kept: the same numbers, in less memory, in bounded time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid.rules import program


class Encoder(nn.Module):
    """Blocks of attention and of a perceptron on a residual stream."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


@pytest.fixture
def made(monkeypatch):
    """The programs that were made, with small values made again too."""
    monkeypatch.setattr(program, "LARGE", 8)
    programs = []
    begin = program.Program.__init__

    def noted(self, *args):
        begin(self, *args)
        programs.append(self)

    monkeypatch.setattr(program.Program, "__init__", noted)
    return programs


def explained(depth: int, technique: str = "deeplift"):
    torch.manual_seed(0)
    model = Encoder(depth).double().eval()
    inputs = torch.randn(2, 5, 8, dtype=torch.float64)
    return pellucid.explain(model, inputs, technique, [0, 1])


@pytest.mark.parametrize("technique", ["deeplift", "lrp"])
def test_what_is_made_again_changes_no_number(made, monkeypatch, technique):
    ours = explained(2, technique)
    again = {slot for step in made[-1].steps for slot, _ in step.remade}
    monkeypatch.setattr(program, "CHEAP", frozenset())
    monkeypatch.setattr(program, "VIEWS", frozenset())
    kept = explained(2, technique)
    assert len(again) > 20
    assert not any(step.varies for one in made[-1].steps for _, step in one.remade)
    torch.testing.assert_close(ours.values, kept.values, rtol=0, atol=1e-14)
    assert [check.value for check in ours.checks] == pytest.approx([check.value for check in kept.checks], abs=1e-12)


def test_nothing_is_made_again_from_the_beginning(made):
    longest = []
    for depth in (2, 6):
        explained(depth)
        longest.append(max(len(step.remade) for step in made[-1].steps))
    assert longest[0] == longest[1] > 3


def test_for_gradients_everything_that_varies_is_kept(made):
    explained(2, "guided_backprop")
    assert not any(step.varies for one in made[-1].steps for _, step in one.remade)
