"""A rule set that is nothing but vector-Jacobian products gives the gradient that autograd gives."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import Contrast, Leaves, Mean, Unit


def architecture(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"vit_b_32": {"image_size": 64, "num_classes": 10}}.get(name, {"num_classes": 10})
    model = getattr(torchvision.models, name)(**options).double().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight)  # a head that starts at zero has no gradient
    return model


def gradient(model: nn.Module, x: torch.Tensor, score) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(model(x)).sum(), x)[0]


def near(one: torch.Tensor, two: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return float((one - two).abs().max()) <= tolerance * float(two.abs().max())


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_0", "squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_32", "swin_t"],
)
def test_equals_autograd_on_architectures(name, look, plain, rewritten, images):
    model, x = architecture(name), images(1)
    target = int(model(x).argmax())
    expected = gradient(model, x, lambda y: y[:, target])
    for rules in (plain, rewritten):
        seen = look(model, x, rules, target=target)
        assert float(expected.abs().max()) > 0
        # torch's own derivative of hardswish has a constant in single precision.
        assert near(seen.gradients["input"], expected, 1e-7 if "mobilenet" in name else 1e-10), rules.name
        assert seen.ledger.unruled == {}


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_a_class_that_the_last_relu_kills_gets_nothing_and_nothing_undefined(name, look, plain, rewritten, images):
    model, x = architecture(name), images(1)
    (dead,) = torch.where(model(x)[0] == 0)
    assert len(dead)
    for rules in (plain, rewritten):
        found = look(model, x, rules, target=int(dead[0])).gradients["input"]
        assert torch.equal(found, torch.zeros_like(x)), rules.name
        assert torch.equal(found, gradient(model, x, lambda y: y[:, dead[0]])), rules.name
    for technique in ("lrp", "guided_backprop", "deeplift"):
        result = pellucid.explain(model, x, technique, target=int(dead[0]), progress=False)
        assert result.values.isfinite().all(), technique
        if technique != "deeplift":  # at its baseline the class may live
            assert not result.values.any(), technique


class Attends(nn.Module):
    """Attention, LayerNorm and GroupNorm, gates and poolings in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.group = nn.GroupNorm(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Linear(8, 16)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(self.group(self.stem(x)), 3, 2, 1, ceil_mode=True)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        one, two = self.gate(self.norm(tokens)).chunk(2, dim=-1)
        tokens = tokens + one * F.silu(two) + F.normalize(tokens, dim=-1) + F.gelu(one) * F.mish(two)
        tokens = torch.where(tokens > 0, tokens, 0.1 * tokens) / (1 + tokens.var(dim=-1, keepdim=True))
        return self.head(tokens.amax(dim=1) + tokens.mean(dim=1)).log_softmax(dim=-1)


class ByFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.one(x))
        x = F.relu(self.two(x))
        return self.three(x.mean(dim=(2, 3)))


class ByModules(ByFunctions):
    def __init__(self) -> None:
        super().__init__()
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.three(self.relu2(self.two(self.relu1(self.one(x)))).mean(dim=(2, 3)))


class Reused(ByFunctions):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.three(self.relu(self.two(self.relu(self.one(x)))).mean(dim=(2, 3)))


class InPlace(ByFunctions):
    def forward(self, x):
        x = self.one(x).relu_()
        x = self.two(x)
        F.relu_(x)
        return self.three(x.mean(dim=(2, 3)))


def test_everything_that_can_be_written_out_keeps_its_gradient(look, plain, rewritten, images):
    torch.manual_seed(0)
    model, x = Attends().double().eval(), images(2, 32)
    expected = gradient(model, x, lambda y: y[:, 1])
    for rules in (plain, rewritten):
        seen = look(model, x, rules, target=1)
        assert near(seen.gradients["input"], expected), rules.name
    told = {entry.op for entry in seen.ledger.entries}
    assert not told & {
        "softmax",
        "log_softmax",
        "layer_norm",
        "group_norm",
        "silu",
        "gelu",
        "mish",
        "amax",
        "max_pool2d",
    }


def test_four_coding_styles_give_identical_bits(look, rewritten, images):
    torch.manual_seed(0)
    source = ByFunctions().double().eval()
    found = []
    for style in (ByFunctions, ByModules, Reused, InPlace):
        model = style().double().eval()
        model.load_state_dict(source.state_dict())
        found.append(look(model, images(2, 12), rewritten, target=2).gradients["input"])
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind, look, plain, rewritten):
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = kind(5, 7, num_layers=2, batch_first=True), nn.Linear(7, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Reads().double().eval(), torch.randn(3, 6, 5).double()
    expected = gradient(model, x, lambda y: y[:, 1])
    for rules in (plain, rewritten):
        assert near(look(model, x, rules, target=1).gradients["input"], expected)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, left, right, mask):
        features = self.one(left).tanh() * self.two(right) * mask[:, None]
        return {"logits": features, "features": features.exp(), "count": mask.sum()}


def test_several_inputs_and_a_mapping_as_output(look, plain):
    torch.manual_seed(0)
    model = Two().double().eval()
    left, right, mask = torch.randn(3, 4).double(), torch.randn(3, 6).double(), torch.tensor([1, 1, 2])
    given = {"left": left, "right": right, "mask": mask}
    seen = look(model, given, plain, target=1, outputs=True)
    own = [one.clone().requires_grad_() for one in (left, right)]
    expected = torch.autograd.grad(model(*own, mask)["logits"][:, 1].sum(), own)
    assert isinstance(seen.gradients["input"], Leaves)
    for name, one in zip(("left", "right"), expected, strict=True):
        assert near(seen.gradients["input"][name], one)
    assert torch.equal(seen.outputs["count"], torch.tensor(4))
    assert near(seen.outputs["features"], model(left, right, mask)["features"].detach())
    # Another mask is another constant of the pass, not of the graph.
    assert not near(look(model, given | {"mask": mask + 1}, plain, target=1).gradients["input"]["left"], expected[0])


def test_layers_activations_and_a_units_score(look, plain, images):
    model, x = architecture("resnet18"), images(2)
    names = ["layer2", "/flatten", "layer1.0.relu:0"]
    with_rules = look(model, x, plain, target=3, gradients=names, activations=names)
    without = look(model, x, target=3, gradients=names, activations=names)
    for name in names:
        assert near(with_rules.gradients[name], without.gradients[name])
        assert near(with_rules.activations[name], without.activations[name])
    assert torch.allclose(with_rules.scores, without.scores)
    unit = Unit("layer2", 3, (1, 2))
    for asks in ({"gradients": ["input"]}, {"gradients": ["layer1"]}):
        one, two = (look(model, x, rules, target=unit, **asks) for rules in (plain, None))
        (name,) = asks["gradients"]
        assert near(one.gradients[name], two.gradients[name])


def test_several_targets_share_the_forward_pass(look, plain, images):
    model, x = architecture("squeezenet1_1"), images(2)
    targets = [Contrast(1, 2), Unit("features.4", 0)]
    one, two = (look(model, x, rules, targets=targets) for rules in (plain, None))
    assert near(one.gradients["input"], two.gradients["input"])
    assert one.scores.shape == two.scores.shape == (2, 2)
    assert one.ledger.started.shape == (2, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_batch_size_does_not_matter(batch_size, look, plain, images):
    model, x = architecture("squeezenet1_1"), images(5)
    expected = gradient(model, x, lambda y: y[:, 3])
    seen = look(model, x, plain, target=3, batch_size=batch_size)
    assert near(seen.gradients["input"], expected)
    assert seen.gradients["input"].shape == x.shape
    assert seen.ledger.started.shape == (5,)


def test_derived_samples_and_folds(look, plain, images):
    model, x = architecture("squeezenet1_1"), images(2)

    def at(sample):
        return sample.jittered(3, 0.1)

    for fold in (None, Mean()):
        one, two = (look(model, x, rules, target=3, at=at, fold=fold) for rules in (plain, None))
        assert near(one.gradients["input"], two.gradients["input"])
    assert one.ledger.started.shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, look, plain):
    torch.manual_seed(0)
    model, x = ByFunctions().eval().to(dtype), torch.randn(2, 3, 12, 12).to(dtype)
    seen = look(model, x, plain, target=1)
    assert seen.gradients["input"].dtype == dtype
    assert near(seen.gradients["input"].float(), gradient(model, x, lambda y: y[:, 1]).float(), 0.02)
