"""Optimisation of unusual models: what a convolution or a BatchNorm does besides keeps them from being folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import pellucid

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A convolution, a BatchNorm and a head, put together by a function."""

    def __init__(self, forward: Forward | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.pad, self.how, self.steep = nn.ZeroPad2d(1), forward, 1.0
        settle(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x) if self.how is not None else self.classified(self.norm(self.conv(x)))

    def classified(self, maps: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(maps * self.steep).mean(dim=(2, 3)))


def settle(model: nn.Module) -> None:
    """Gives BatchNorms weights and statistics of their own."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    model.eval()


def folded(model: nn.Module, x: torch.Tensor, wanted: torch.Tensor | None = None, target: Any = 1) -> int:
    """How many layers are folded; the explanation must be that of the model, and its check must pass."""
    adapter = pellucid.adapt(model, optimize=True)
    for _ in range(2):
        found = pellucid.explain(adapter, x, "saliency", target)
        plain = pellucid.explain(model, x, "saliency", target).values if wanted is None else wanted
        torch.testing.assert_close(found.values, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))
    (check,) = [check for check in found.checks if check.name == "optimised outputs"]
    assert check.passed
    return int(check.note.rpartition(";")[2].split()[0])


class Activated(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.silu(super().forward(input))


class Standardised(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Rectified(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(input))


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize(
    ("place", "part"),
    [("norm", Activated(6)), ("conv", Standardised(3, 6, 3)), ("conv", Rectified(3, 6, 3))],
    ids=["norm with activation", "standardised weights", "activation"],
)
def test_parts_that_do_more_stay_as_they_are(place: str, part: nn.Module, images: Any) -> None:
    model = Net()
    setattr(model, place, part)
    settle(model)
    assert folded(model, images()) == 0


def test_a_norm_of_timm_with_its_activation(images: Any) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=4)
    settle(model)
    assert any(type(part).__name__ == "BatchNormAct2d" for part in model.modules())
    folded(model, images(size=32))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: prune.l1_unstructured(model.conv, "weight", 20),
        lambda model: nn.utils.spectral_norm(model.conv),
        lambda model: parametrizations.weight_norm(model.conv),
        lambda model: parametrize.register_parametrization(model.norm, "weight", Doubled()),
    ],
    ids=["pruned", "spectral_norm", "weight_norm", "parametrised norm"],
)
def test_weights_that_are_made_anew_in_each_pass(change: Callable[[Net], Any], images: Any) -> None:
    model = Net()
    change(model)
    with torch.no_grad():
        model(images())
    assert folded(model.eval(), images()) == 0


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.norm.register_forward_hook(lambda part, given, output: 2 * output),
        lambda model: model.norm.register_forward_pre_hook(lambda part, given: (given[0] + 1,)),
        lambda model: model.norm.register_full_backward_hook(lambda part, given, output: (3 * given[0],)),
        lambda model: model.conv.register_forward_hook(lambda part, given, output: output.sin()),
    ],
    ids=["output", "input", "gradient", "convolution"],
)
def test_parts_with_hooks_stay_as_they_are(hook: Callable[[Net], Any], images: Any) -> None:
    model = Net()
    hook(model)
    folded(model, images())


def in_train_mode(net: Net, x: torch.Tensor) -> torch.Tensor:
    maps = net.conv(x)
    net.norm.train()
    net.norm(maps)
    net.norm.eval()
    return net.classified(net.norm(net.conv(x)))


def with_other_weights(net: Net, x: torch.Tensor) -> torch.Tensor:
    own = {name: 2 * tensor for name, tensor in net.norm.named_parameters()}
    return net.classified(torch.func.functional_call(net.norm, own, (net.conv(x),)))


def by_function(net: Net, x: torch.Tensor) -> torch.Tensor:
    norm, maps = net.norm, F.conv2d(x, net.conv.weight)
    return net.classified(F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def on_a_smaller_map(net: Net, x: torch.Tensor) -> torch.Tensor:
    maps = net.conv(x)
    return net.classified(net.norm(maps) + (maps if x.shape[-1] > 12 else 0))


@pytest.mark.parametrize("forward", [in_train_mode, with_other_weights, by_function])
def test_calls_that_are_not_plain(forward: Forward, images: Any) -> None:
    assert folded(Net(forward), images()) == 0


def test_a_model_that_reads_what_is_folded_finds_it(images: Any) -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        maps = net.norm(net.conv(x)) - net.norm.running_mean[:, None, None] * net.norm.eps * 1e4
        return net.classified(maps)

    assert folded(Net(forward), images()) == 1


def test_maps_that_the_model_returns_are_not_folded(images: Any) -> None:
    def forward(net: Net, x: torch.Tensor) -> Any:
        maps = net.conv(x)
        return {"logits": net.classified(net.norm(maps)), "maps": maps}

    assert folded(Net(forward), images(), target=lambda output: output["maps"][:, 1].mean(dim=(1, 2))) == 0


def test_what_a_part_that_is_copied_in_the_pass_does(images: Any) -> None:
    import copy

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        norm = copy.deepcopy(net.norm)
        norm.running_mean.add_(1)
        return net.classified(norm(copy.deepcopy(net.conv)(x)))

    assert folded(Net(forward), images()) == 0


def test_inputs_of_another_size_may_take_another_way(images: Any) -> None:
    model = Net(on_a_smaller_map)
    adapter = pellucid.adapt(model, optimize=True)
    for size in (12, 16, 12):
        found = pellucid.explain(adapter, images(size=size), "saliency", 1).values
        plain = pellucid.explain(model, images(size=size), "saliency", 1).values
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-4 * float(plain.max()))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.conv.weight.data.mul_(-1.7),
        lambda model: model.norm.running_var.data.mul_(3),
        lambda model: setattr(model.norm, "eps", 0.7),
        lambda model: setattr(model.conv, "stride", (2, 2)),
        lambda model: setattr(model, "steep", 1.5),
        lambda model: setattr(model, "how", lambda net, x: net.head(net.norm(net.conv(x)).mean(dim=(2, 3)))),
    ],
    ids=["weight", "variance", "epsilon", "stride", "number", "function"],
)
def test_changes_that_autograd_does_not_count_are_noticed(change: Callable[[Net], Any], images: Any) -> None:
    model = Net()
    adapter = pellucid.adapt(model, optimize=True)
    before = pellucid.explain(adapter, images(), "saliency", 1).values
    change(model)
    leaf = images().requires_grad_()
    (wanted,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    found = pellucid.explain(adapter, images(), "saliency", 1).values
    torch.testing.assert_close(found, wanted.abs(), rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert not torch.allclose(found, before)


def test_the_certificate_is_of_the_output_that_counts(images: Any) -> None:
    def forward(net: Net, x: torch.Tensor) -> Any:
        maps = net.classified(net.norm(net.conv(x)))
        return {"near": maps, "far": 1e12 * torch.sin(1e5 * maps)}

    model = Net(forward)
    checks = []
    for output in ("near", "far"):
        found = pellucid.explain(pellucid.adapt(model, optimize=True, output=output), images(), "saliency", 1)
        checks += [check.passed for check in found.checks if check.name == "optimised outputs"]
    assert checks == [True, False]
