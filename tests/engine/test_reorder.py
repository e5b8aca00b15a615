"""Weights lent with the channels last: the parameters stay what they were, and no change of them is missed."""

import pytest
import torch
from torch import nn

import pellucid
from pellucid.engine.parts import parts_of
from pellucid.engine.reorder import ChannelsLast


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 2))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def facts(model: nn.Module) -> list[tuple[object, ...]]:
    return [(id(p), p.data_ptr(), p.stride(), p._version, p.requires_grad) for p in model.parameters()]


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]


def test_weights_are_lent_and_given_back():
    model = net()
    before, values = facts(model), [p.clone() for p in model.parameters()]
    lend = ChannelsLast(model.modules(), {})
    with lend():
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert model[0].weight.data_ptr() != before[0][1]
        assert all(p.equal(value) for p, value in zip(model.parameters(), values, strict=True))
    assert facts(model) == before
    with pytest.raises(KeyboardInterrupt), lend():
        raise KeyboardInterrupt
    assert facts(model) == before


def test_a_change_that_autograd_does_not_count_is_not_missed():
    model, x = net(), images()
    pellucid.explain(model, x, "saliency", 0)
    model[0].weight.data[0] = 3.0
    found = pellucid.explain(model, x, "saliency", 0)
    torch.testing.assert_close(found.values, gradient(model, x).abs())


def test_a_model_that_views_its_weights_runs_as_it_is():
    class Standardised(nn.Conv2d):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            flat = self.weight.view(len(self.weight), -1)
            weight = (flat - flat.mean(dim=1, keepdim=True)).view(self.weight.shape)
            return nn.functional.conv2d(inputs, weight, self.bias)

    torch.manual_seed(0)
    model, x = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), images()
    before = facts(model)
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, gradient(model, x).abs())
    assert facts(model) == before


def test_a_weight_of_two_layers_and_one_frozen_are_lent_once():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    model[1].weight = model[0].weight.requires_grad_(False)
    before, x = facts(model), images()
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, gradient(model, x).abs())
    assert facts(model) == before


def test_parts_are_those_that_torch_names():
    model = nn.ModuleDict({"a": net(), "b": nn.Sequential(nn.BatchNorm2d(3), nn.Sequential())})
    model["c"] = model["a"][0]
    parts = parts_of(model)
    assert list(parts.modules.items()) == list(model.named_modules())
    assert list(map(id, parts.parameters)) == list(map(id, model.parameters()))
    assert list(map(id, parts.buffers)) == list(map(id, model.buffers()))


def test_a_renamed_module_changes_the_structure_and_a_moved_weight_the_state():
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    structure, state = parts_of(model).structure, parts_of(model).state
    assert parts_of(model).structure == structure
    assert parts_of(model).state == state
    model["a"].weight.data = model["a"].weight.data.clone()
    assert parts_of(model).state != state
    model["b"] = model.pop("a")
    assert parts_of(model).structure != structure
