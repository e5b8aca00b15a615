"""Saliency and input x gradient, against autograd in float64 and captum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Sample, Seen
from pellucid.protocol import ClassLogit


def net(seed: int = 0, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4, bias=bias),
    ).eval()


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, x: torch.Tensor, classes: list[int]) -> torch.Tensor:
    """One example and one class at a time."""
    rows = []
    for row, wanted in zip(x, classes, strict=True):
        row = row[None].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(row)[0, wanted], row)
        rows.append(slope[0])
    return torch.stack(rows)


def test_the_arithmetic_needs_no_model():
    inputs, slopes = torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 5.0]])
    for name, parameters, expected in (
        ("saliency", {}, [[3.0, 5.0]]),
        ("saliency", {"signed": True}, [[-3.0, 5.0]]),
        ("input_x_gradient", {}, [[-3.0, -10.0]]),
    ):
        passes = pellucid.create(name, **parameters).explain(Sample(inputs, ClassLogit(0)))
        look = next(passes)
        assert list(look.gradients) == ["input"]
        with pytest.raises(StopIteration) as end:
            passes.send(Seen(torch.zeros(1), gradients={"input": slopes}))
        assert end.value.value.values.tolist() == expected


def test_both_equal_autograd_in_float64_and_stay_float64():
    model, x, classes = net().double(), images().double(), [3, 0, 2]
    slopes = gradients(model, x, classes)
    done = pellucid.explain(
        model,
        x,
        {
            "size": pellucid.create("saliency"),
            "signed": pellucid.create("saliency", signed=True),
            "product": "input_x_gradient",
        },
        target=classes,
    )
    for name, expected in (("size", slopes.abs()), ("signed", slopes), ("product", slopes * x)):
        assert done[name].values.dtype == torch.float64
        assert done[name].over == "input"
        torch.testing.assert_close(done[name].values, expected, rtol=0, atol=1e-12)


def test_both_agree_with_captum():
    attr = pytest.importorskip("captum.attr")
    model, x, classes = net(), images(), torch.tensor([1, 1, 3])
    for name, peer in (("saliency", attr.Saliency(model)), ("input_x_gradient", attr.InputXGradient(model))):
        theirs = peer.attribute(x.clone().requires_grad_(True), target=classes).detach()
        ours = pellucid.explain(model, x, name, target=classes).values
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_input_x_gradient_sums_to_the_logit_without_biases():
    model, x = net(bias=False).double(), images().double()
    values = pellucid.explain(model, x, "input_x_gradient", target=2).values
    torch.testing.assert_close(values.flatten(1).sum(1), model(x)[:, 2].detach())


def test_signed_saliency_is_linear_in_the_model():
    one, other, x = net(0).double(), net(5).double(), images().double()

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = one, other

        def forward(self, x):
            return 2 * self.one(x) - 3 * self.other(x)

    signed = pellucid.create("saliency", signed=True)
    sums, first, second = (pellucid.explain(m, x, signed, target=1).values for m in (Both().eval(), one, other))
    torch.testing.assert_close(sums, 2 * first - 3 * second)


def test_several_inputs_are_explained_by_name():
    class Two(nn.Module):
        def forward(self, left, right):
            return torch.stack([(left**2).sum(1) + 3 * right.sum((1, 2)), left.sum(1)], dim=1)

    inputs = {"left": torch.tensor([[1.0, -2.0]]), "right": torch.ones(1, 2, 2)}
    values = pellucid.explain(Two(), inputs, "input_x_gradient", target=0).values
    assert values["left"].tolist() == [[2.0, 8.0]]
    assert values["right"].tolist() == [[[3.0, 3.0], [3.0, 3.0]]]


def test_unknown_parameters_are_refused():
    with pytest.raises(pellucid.ParameterError, match="signed"):
        pellucid.create("saliency", sign=True)
