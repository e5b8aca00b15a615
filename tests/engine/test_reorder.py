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


class Wide(nn.Module):
    """A network whose weights outweigh its activations; it notes whether it was prepared for each pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)
        self.last, self.head = nn.Conv2d(64, 64, 3), nn.Linear(64, 5)
        self.prepared: list[tuple[bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reordered = self.last.weight.is_contiguous(memory_format=torch.channels_last)
        self.prepared.append((reordered, "forward" in self.norm.__dict__))
        maps = self.last(self.norm(self.first(x)).relu())
        return self.head(maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("techniques", "rows", "prepared"),
    [
        (["grad_cam"], 1, False),
        (["grad_cam"], 64, True),
        ([pellucid.create("grad_cam", layer="first")], 1, True),
        (["saliency"], 1, True),
        (["grad_cam", "saliency"], 1, True),
    ],
)
def test_a_pass_that_is_too_small_to_prepare_for_runs_the_model_as_it_is(techniques, rows, prepared):
    model = Wide().eval()
    x = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pellucid.explain(model, x[:1], "grad_cam", 0)  # finds the layers
    model.prepared.clear()
    found = pellucid.explain(model, x, techniques, 0, batch_size=64)
    assert model.prepared == [(prepared, prepared)]
    # The same whether it was prepared or not.
    model.double()
    for name, other in pellucid.explain(model, x.double(), techniques, 0, batch_size=1).items():
        torch.testing.assert_close(found[name].values.double(), other.values, atol=1e-6, rtol=1e-4)


class Stepping(nn.Module):
    """Takes steps through memory that are those of contiguous tensors: of the inputs, of maps, or of a weight."""

    def __init__(self, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.where = where
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = cropped(x) if self.where == "inputs" else x
        if self.where == "weight":
            weight = torch.as_strided(self.conv.weight, (4, 3, 3, 3), (27, 9, 3, 1))
            x = nn.functional.conv2d(x, weight, self.conv.bias)
        else:
            x = self.conv(x)
        x = cropped(x) if self.where == "maps" else x
        return self.head(torch.relu(self.norm(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def cropped(x: torch.Tensor) -> torch.Tensor:
    count, channels, height, width = x.shape
    steps = (channels * height * width, height * width, width, 1)
    return x.as_strided((count, channels, height - 1, width - 1), steps)


@pytest.mark.parametrize("where", ["inputs", "maps", "weight"])
def test_steps_through_memory_are_those_of_contiguous_tensors(where):
    model, x = Stepping(where).eval(), images()
    wanted, functions = gradient(model, x), (torch.as_strided, torch.Tensor.as_strided)
    for optimize in (False, True):
        found = pellucid.explain(pellucid.adapt(model, optimize=optimize), x, "saliency", 0)
        torch.testing.assert_close(found.values, wanted.abs())
        assert all(check.passed for check in found.checks)
    assert (torch.as_strided, torch.Tensor.as_strided) == functions
    assert "as_strided" not in vars(torch.Tensor)
    # by rules, too: the gradient by rules that change nothing is the gradient
    by_rules = pellucid.explain(model, x, pellucid.create("guided_backprop"), 0).values
    doubled = pellucid.explain(model.double(), x.double(), pellucid.create("guided_backprop"), 0).values
    torch.testing.assert_close(by_rules, doubled.float(), rtol=1e-4, atol=1e-6)
