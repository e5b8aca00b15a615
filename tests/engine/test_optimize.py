"""Optimisation: what may be folded, what may not, and what the results say of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import LayerError, create


def near(one, two, tolerance=1e-4):
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()))


def block(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, groups=groups), norm, nn.ReLU())


class Blocks(nn.Module):
    """Some blocks that can be folded, and three that cannot."""

    def __init__(self):
        super().__init__()
        self.plain, self.grouped = block(3, 8), block(8, 8, groups=4)
        self.twice, self.branch, self.late = block(8, 8), block(8, 8), block(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.grouped(self.plain(x))
        x = self.twice(self.twice(x))  # runs twice
        y = self.branch[0](x)
        x = self.branch[1](y) + y  # the convolution's result is used twice
        x = self.late[1](torch.relu(self.late[0](x)))  # not one after the other
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return Blocks().train()


TECHNIQUES = {
    "saliency": "saliency",
    "cam": create("grad_cam", layer="grouped"),
    "ig": create("integrated_gradients", n_steps=4),
}


def test_results_change_by_rounding_only_and_say_so(blocks, images):
    before = {name: value.clone() for name, value in blocks.state_dict().items()}
    plain = pellucid.explain(blocks, images(), TECHNIQUES, 1)
    fast = pellucid.explain(pellucid.adapt(blocks, optimize=True), images(), TECHNIQUES, 1)
    for name in TECHNIQUES:
        near(fast[name].values, plain[name].values)
        assert "optimised outputs" not in {check.name for check in plain[name].checks}
        (check,) = [check for check in fast[name].checks if check.name == "optimised outputs"]
        assert check.passed
        assert "2 layers folded" in check.note
    assert blocks.training
    assert all(value.equal(before[name]) for name, value in blocks.state_dict().items())


def test_a_layer_that_is_asked_is_left_as_it_is(blocks, images):
    technique = create("grad_cam", layer="plain.0")
    plain = pellucid.explain(blocks, images(), technique, 1)
    fast = pellucid.explain(pellucid.adapt(blocks, optimize=True), images(), technique, 1)
    near(fast.values, plain.values)
    (check,) = [check for check in fast.checks if check.name == "optimised outputs"]
    assert "1 layers folded" in check.note


def test_a_folded_layer_of_a_target_is_refused(blocks, images):
    adapter = pellucid.adapt(blocks, optimize=True)
    with pytest.raises(LayerError, match="folded into its neighbour by optimize=True"):
        pellucid.explain(adapter, images(), "saliency", pellucid.Unit("plain.0", 1))


def test_changed_weights_are_noticed(blocks, images):
    adapter = pellucid.adapt(blocks, optimize=True)
    pellucid.explain(adapter, images(), "saliency", 1)
    with torch.no_grad():
        blocks.plain[0].weight.mul_(2)
    near(
        pellucid.explain(adapter, images(), "saliency", 1).values,
        pellucid.explain(blocks, images(), "saliency", 1).values,
    )


def test_a_model_without_convolutions(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).eval()
    fast = pellucid.explain(pellucid.adapt(model, optimize=True), images(), "saliency", 1)
    near(fast.values, pellucid.explain(model, images(), "saliency", 1).values)


class Padded(nn.Module):
    """Paddings of which one can go into its convolution."""

    def __init__(self):
        super().__init__()
        self.even, self.lopsided = nn.ZeroPad2d((2, 2, 1, 1)), nn.ZeroPad2d((0, 1, 0, 1))
        self.ones, self.shared, self.more = nn.ConstantPad2d(1, 1.0), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.0)
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 3) for _ in range(4))
        self.padding_too = nn.Conv2d(3, 3, 3, padding=1)
        self.strided = nn.Conv2d(3, 2, 3, stride=2, groups=1)

    def forward(self, x):
        x = self.convolutions[0](self.even(x))
        x = self.convolutions[1](self.lopsided(x))
        x = self.convolutions[2](self.ones(x))
        y = self.shared(x)
        x = self.convolutions[3](y) + y[:, :, 1:-1, 1:-1]
        x = self.padding_too(self.more(x))
        return self.strided(self.more_again(x)).mean(dim=(2, 3))

    def more_again(self, x):
        return nn.functional.pad(x, (1, 1, 1, 1))


def test_a_padding_of_zeros_goes_into_its_convolution(images):
    torch.manual_seed(0)
    model = Padded().eval()
    inputs = images()
    plain = pellucid.explain(model, inputs, "saliency", 1)
    fast = pellucid.explain(pellucid.adapt(model, optimize=True), inputs, "saliency", 1)
    near(fast.values, plain.values)
    (check,) = [check for check in fast.checks if check.name == "optimised outputs"]
    assert check.passed
    assert "1 layers folded" in check.note
    with pytest.raises(LayerError, match="folded into its neighbour"):
        pellucid.explain(pellucid.adapt(model, optimize=True), inputs, "saliency", pellucid.Unit("even", 1))
    kept = create("activations", layer="even")
    near(
        pellucid.explain(pellucid.adapt(model, optimize=True), inputs, kept, 1).values,
        pellucid.explain(model, inputs, kept, 1).values,
    )


class Same(nn.Conv2d):
    """A convolution that pads its input by a module of its own, as EfficientNets do."""

    def __init__(self, told):
        super().__init__(3, 3, 3)
        self.static_padding, self.told = nn.ZeroPad2d(1), told

    def forward(self, x):
        padding = self.padding if self.told else (0, 0)
        return nn.functional.conv2d(
            self.static_padding(x), self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


@pytest.mark.parametrize(("told", "folded"), [(True, 1), (False, 0)])
def test_a_padding_goes_into_a_convolution_of_another_kind_that_pads_by_its_attribute(images, told, folded):
    torch.manual_seed(0)
    model = nn.Sequential(Same(told), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    inputs = images()
    fast = pellucid.explain(pellucid.adapt(model, optimize=True), inputs, "saliency", 1)
    near(fast.values, pellucid.explain(model, inputs, "saliency", 1).values)
    (check,) = [check for check in fast.checks if check.name == "optimised outputs"]
    assert check.passed
    assert f"{folded} layers folded" in check.note
