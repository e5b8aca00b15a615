"""LRP as a technique: captum's golden values, zennit, conservation over architectures, transformers, checks, layers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import Sample, Seen
from pellucid.protocol import ClassLogit
from pellucid_rules.lrp_rules import AlphaBeta, Epsilon, Gamma
from pellucid_rules.policy_rules import Pass


def filled(layer: nn.Module, weight: float) -> nn.Module:
    nn.init.constant_(layer.weight, weight)
    return layer


def lrp(model, x, target=0, composite="lrp_0", **options):
    return pellucid.explain(model.eval(), x, pellucid.create("lrp", composite=composite, **options), target=target)


def bias_free(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size at which relevance neither dies nor explodes, and nothing that is added."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.requires_grad_(False)
        if name.endswith(("running_mean", "bias", "class_token", "pos_embedding")):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1.0)
        elif tensor.dim() > 1 and tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.dim() != 2 else tensor.shape[1]
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model.double().eval()


def photos(size: int = 64, n: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


# What captum publishes for LRP on its small models: the models and values of its test suite.


def simple(odd: bool = False) -> nn.Sequential:
    first, second = filled(nn.Linear(3, 3, bias=False), 2.0), filled(nn.Linear(3, 1, bias=False), 3.0)
    if odd:
        first.weight.data[0, 0] = -2
    return nn.Sequential(first, nn.ReLU(), second, nn.Dropout(0.01))


@pytest.mark.parametrize(
    ("model", "composite", "expected"),
    [
        (simple(), {"linear": Epsilon(1e-9)}, [18.0, 36.0, 54.0]),
        (simple(odd=True), {"layer:0": Gamma(1.0), "layer:2": Gamma()}, [28 / 3, 104 / 3, 52]),
        (simple(odd=True), {"linear": AlphaBeta(1, 0)}, [12, 33.6, 50.4]),
        (simple(odd=True), {"layer:0": Pass(), "layer:2": Epsilon(1e-9)}, [24.0, 36.0, 36.0]),
        (
            nn.Sequential(
                filled(nn.Linear(3, 3, bias=False), 0.1), nn.Tanh(), filled(nn.Linear(3, 1, bias=False), 0.1)
            ),
            "epsilon",
            [0.0269, 0.0537, 0.0806],
        ),
    ],
)
def test_captums_values_on_its_simple_model(model, composite, expected):
    values = lrp(model, torch.tensor([[1.0, 2.0, 3.0]]), composite=composite).values
    torch.testing.assert_close(values, torch.tensor([expected]), rtol=1e-5, atol=5e-5)  # printed to four places


def test_captums_values_on_its_convolution():
    model = nn.Sequential(filled(nn.Conv2d(1, 2, 3), 1.0), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU())
    model[0].bias.data = torch.tensor([-50.0, -75.0])
    model[3].weight.data = torch.cat([torch.ones(4, 5), -torch.ones(4, 3)], dim=1)
    model[3].bias.data.zero_()
    values = lrp(model, torch.arange(16.0).reshape(1, 1, 4, 4)).values
    expected = torch.tensor([[0.0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]])
    torch.testing.assert_close(values[0, 0], expected, rtol=1e-5, atol=1e-4)


def test_captums_value_at_a_skip_connection_and_at_max_pooling():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = filled(nn.Linear(2, 2, bias=False), 5.0)

        def forward(self, x):
            return self.linear(x) + x

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = filled(nn.Linear(2, 2, bias=False), 2.0)

        def forward(self, x):
            return F.max_pool1d(self.linear(x), 2)[:, :, 0]

    torch.testing.assert_close(lrp(Skip(), torch.tensor([[2.0, 3.0]]), 1).values, torch.tensor([[10.0, 18.0]]))
    pooled = lrp(Pooled(), torch.tensor([[[1.0, 2.0], [5.0, 6.0]]]), 1).values
    torch.testing.assert_close(pooled, torch.tensor([[[0.0, 0.0], [10.0, 12.0]]]))


def test_two_inputs_that_are_added_get_their_own_shares():  # captum gives each the whole
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = filled(nn.Linear(3, 4), 1.0), filled(nn.Linear(4, 2), 1.0)
            self.one.bias.data = torch.tensor([-10.0, 1.0, 1.0, 1.0])
            self.two.bias.data = torch.tensor([-1.0, 1.0])

        def forward(self, x, more):
            return self.two(torch.relu(self.one(x + more)))

    x = torch.tensor([[1.0, 2.0, 3.0]])
    values = lrp(Added(), {"x": x, "more": 3 * x}).values
    torch.testing.assert_close(values["x"], torch.tensor([[4.0, 8.0, 12.0]]))
    torch.testing.assert_close(values["more"], 3 * values["x"])


def vgg_like(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for before, after in ((3, 6), (6, 8), (8, 8)):
        layers += [nn.Conv2d(before, after, 3, padding=1), *[nn.BatchNorm2d(after)] * norm, nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model.eval()


def mlp() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 256, 20), nn.ReLU(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 5)
    )


@pytest.mark.parametrize("make", [vgg_like, mlp])
@pytest.mark.parametrize(
    "name",
    ["epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat"],
)
def test_composites_are_zennits_on_plain_networks(make, name):
    zennit = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    model, x, target = make().eval(), photos(16, 2).float(), torch.tensor([1, 4])
    box = {"low": torch.full((1, 3, 1, 1), -4.0), "high": torch.full((1, 3, 1, 1), 4.0)} if "box" in name else {}
    title = "".join(part.capitalize() for part in name.split("_"))
    chosen = F.one_hot(target, 5).float()
    with attribution.Gradient(model=model, composite=getattr(zennit, title)(**box)) as attributor:
        _, theirs = attributor(x, lambda output: output * chosen)
    bounds = {"low": -4.0, "high": 4.0} if "box" in name else {}
    if make is mlp and "box" in name:
        pytest.skip("zennit's box is for convolutions only; ours is for whatever is first")
    ours = lrp(model, x, target, name, **bounds).values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_batch_norm_is_folded_as_zennit_merges_it():
    zennit, attribution = pytest.importorskip("zennit.composites"), pytest.importorskip("zennit.attribution")
    canonizers = pytest.importorskip("zennit.canonizers")
    model, x, target = vgg_like(norm=True).double(), photos(16, 2), torch.tensor([1, 4])
    for part in model:
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-12  # zennit leaves a merged BatchNorm with its eps in place
    chosen = F.one_hot(target, 5).double()
    composite = zennit.EpsilonPlus(canonizers=[canonizers.SequentialMergeBatchNorm()])
    with attribution.Gradient(model=model, composite=composite) as attributor:
        _, theirs = attributor(x, lambda output: output * chosen)
    ours = lrp(model, x, target, "epsilon_plus").values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1", "attn_lrp"])
def test_merged_and_unmerged_batch_norm_agree_once_folded(composite):
    model, x = vgg_like(norm=True).double(), photos(16, 2)
    merged = nn.Sequential(
        *(
            torch.nn.utils.fuse_conv_bn_eval(model[i], model[i + 1]) if isinstance(part, nn.Conv2d) else part
            for i, part in enumerate(model)
            if not isinstance(part, nn.BatchNorm2d)
        )
    )
    torch.testing.assert_close(merged(x), model(x))
    one, other = (lrp(net, x, 2, composite).values for net in (merged, model))
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    assert (lrp(model, x, 2, composite, canonizers=()).values - one).abs().max() > 1e-6


def test_captums_epsilon_rule_is_ours_on_a_plain_network():
    attr, rules = pytest.importorskip("captum.attr"), pytest.importorskip("captum.attr._utils.lrp_rules")
    model, x = vgg_like(), photos(16, 2).float()
    for part in model:
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.Flatten)):
            part.rule = rules.EpsilonRule(1e-9)
    theirs = attr.LRP(model).attribute(x.clone().requires_grad_(), target=torch.tensor([1, 4])).detach()
    for part in model:
        part.__dict__.pop("rule", None)
    ours = lrp(model, x, [1, 4], "epsilon", stabilizer=1e-9).values
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


ARCHITECTURES = ["squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("composite", ["lrp_0", "z_plus"])
def test_relevance_is_conserved_over_architectures(name, composite):
    options = {"dropout": 0.0} if "dropout" in name else {}
    model, x = bias_free(torchvision.models.get_model(name, weights=None, **options)), photos()
    result = lrp(model, x, 3, composite, stabilizer=0.0, attention="constant")
    score = float(model(x)[0, 3].detach())
    assert abs(float(result.values.sum()) - score) <= 1e-6 * abs(score)


class Attention(nn.Module):
    """One head of self-attention and a linear readout, without biases."""

    def __init__(self, d: int = 4):
        super().__init__()
        torch.manual_seed(5)
        self.q, self.k, self.v, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.double()

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = (q @ k.transpose(1, 2) / 2).softmax(-1)
        return self.out((weights @ v).mean(1))


def test_attention_follows_attn_lrp_step_by_step():
    model, x = Attention().eval(), photos(8)[:, 0, :3, :4]
    q, k, v = model.q(x), model.k(x), model.v(x)
    logits = q @ k.transpose(1, 2) / 2
    weights = logits.softmax(-1)
    mixed = weights @ v
    pooled = mixed.mean(1)

    def linear(inputs, layer, output, relevance):  # LRP-0
        return inputs * ((relevance / output) @ layer.weight)

    r_out = torch.zeros(1, 4, dtype=torch.float64)
    r_out[0, 1] = model(x)[0, 1]
    r_mixed = mixed / 3 * (linear(pooled, model.out, model(x), r_out) / pooled)[:, None]
    ratio = r_mixed / mixed
    r_v = v * (weights.transpose(1, 2) @ ratio) / 2
    r_weights = weights * (ratio @ v.transpose(1, 2)) / 2
    r_logits = logits * (r_weights - weights * r_weights.sum(-1, keepdim=True))
    ratio = r_logits / logits / 2
    r_q = q * (ratio @ k) / 2
    r_k = k * (ratio.transpose(1, 2) @ q) / 2
    expected = sum(
        linear(x, layer, value, r) for layer, value, r in ((model.q, q, r_q), (model.k, k, r_k), (model.v, v, r_v))
    )
    found = lrp(model, x, 1, stabilizer=0.0).values
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)


def test_attention_held_constant_conserves_and_is_a_linear_map():
    model, x = Attention().eval(), photos(8)[:, 0, :3, :4]
    found = lrp(model, x, 1, attention="constant", stabilizer=0.0).values
    weights = (model.q(x) @ model.k(x).transpose(1, 2) / 2).softmax(-1)
    matrix = torch.einsum("bts,cd->bsd", weights / 3, (model.out.weight @ model.v.weight)[1:2])
    torch.testing.assert_close(found, (x * matrix).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.sum(), model(x)[0, 1].detach())


def test_what_the_expansion_of_a_softmax_keeps_is_its_constant_term():
    """About x the softmax is s = J x + c, and c_j keeps R_j c_j / s_j as a bias does (AttnLRP, proposition 3.1)."""
    model, x = Attention().requires_grad_(False).eval(), photos(8)[:, 0, :3, :4]
    result = lrp(model, x, 1, {"weighted": Epsilon(0), "sum": Epsilon(0)}, stabilizer=0.0)
    q, k, v = model.q(x), model.k(x), model.v(x)
    logits = q @ k.transpose(1, 2) / 2
    weights = logits.softmax(-1)
    mixed, out = weights @ v, model(x)
    arrived = mixed / 3 * model.out.weight[1]  # by contribution, through the readout and the mean
    each = weights * ((arrived / mixed) @ v.transpose(1, 2)) / 2
    jacobian = torch.diag_embed(weights) - weights[..., :, None] * weights[..., None, :]
    constant = weights - (jacobian @ logits[..., None]).squeeze(-1)
    kept = float((each * constant / weights).sum() / out[0, 1].abs())
    told = result.checks.named("softmax share")
    assert told.value == pytest.approx(kept, rel=1e-9)
    assert abs(kept) > 1e-3
    assert "softmax" in told.note
    assert result.checks.named("conservation").value < 1e-12
    assert result.checks.passed
    total = float(result.values.sum() / out[0, 1].abs())
    assert total + kept == pytest.approx(float(out[0, 1].sign()), rel=1e-9)
    names = [check.name for check in lrp(model, x, 1, attention="constant").checks]
    assert "softmax share" not in names


def test_a_layer_norm_is_linear_with_its_deviation_held():
    torch.manual_seed(6)
    norm, head = nn.LayerNorm(6).double(), nn.Linear(6, 3, bias=False).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model, x = nn.Sequential(norm, head), photos(8)[:, 0, :1, :6].reshape(1, 6)
    deviation = (x.var(unbiased=False) + norm.eps).sqrt()
    slope = norm.weight * head.weight[2] / deviation
    expected = x * (slope - slope.mean())
    torch.testing.assert_close(lrp(model, x, 2, stabilizer=0.0).values, expected.detach(), rtol=1e-9, atol=1e-12)

    class ByHand(nn.Module):  # the same norm in elementary operations
        def forward(self, x):
            centred = x - x.mean(-1, keepdim=True)
            spread = torch.rsqrt((centred**2).mean(-1, keepdim=True) + norm.eps)
            return head(centred * spread * norm.weight + norm.bias)

    torch.testing.assert_close(lrp(ByHand(), x, 2, stabilizer=0.0).values, expected.detach(), rtol=1e-9, atol=1e-12)


def test_a_gate_that_is_broadcast_gets_nothing_and_other_factors_a_half():
    class Gated(nn.Module):
        def __init__(self, broadcast):
            super().__init__()
            torch.manual_seed(8)
            self.gate, self.broadcast = nn.Linear(4, 1 if broadcast else 4, bias=False).double(), broadcast

        def forward(self, x, y):
            return (x * torch.sigmoid(self.gate(y))).sum(1, keepdim=True)

    x, y = photos(8)[:, 0, :1, :4].reshape(1, 4), photos(8)[:, 1, :1, :4].reshape(1, 4)
    for broadcast, share in ((True, 0.0), (False, 0.5)):
        model = Gated(broadcast)
        values = lrp(model, {"x": x, "y": y}, stabilizer=0.0).values
        torch.testing.assert_close(values["y"].sum(), share * model(x, y).sum().detach())
        torch.testing.assert_close(values["x"].sum(), (1 - share) * model(x, y).sum().detach())


def test_silu_written_out_is_silu():
    class Spelled(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    def net(act):
        torch.manual_seed(9)
        return nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 3)).double()

    x = photos(8)[:, 0, :2, :6].reshape(2, 6)
    one, other = (lrp(net(act), x, stabilizer=0.0).values for act in (Spelled(), nn.SiLU()))
    torch.testing.assert_close(one, other)


def test_relevance_can_be_read_at_a_layer():
    model, x = vgg_like().double(), photos(16, 2)
    whole = lrp(model, x, 1, {"weighted": Epsilon(0)}, layer="2")
    assert whole.over == "2"
    assert whole.values.shape == (2, 6, 8, 8)
    values = model[:3](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model[3:](values)[:, 1].sum(), values)
    torch.testing.assert_close(whole.values, (values * slope).detach(), rtol=1e-8, atol=1e-12)


def test_checks_name_where_relevance_is_kept_and_what_has_no_rule():
    model, x = vgg_like().double(), photos(16, 1)
    result = lrp(model, x, 1, "epsilon_plus")
    kept = result.checks.named("bias share")
    score = float(model(x)[0, 1].detach())
    assert kept.value == pytest.approx((score - float(result.values.sum())) / abs(score), rel=1e-6)
    assert abs(kept.value) > 0.01
    assert any(op in kept.note for op in ("convolution of", "addmm of"))
    assert result.checks.named("conservation").value < 1e-9
    free = lrp(bias_free(vgg_like()), x, 1, "lrp_0", stabilizer=0.0).checks
    assert free.passed
    assert abs(free.named("bias share").value) < 1e-10

    class Sorted(nn.Module):
        def forward(self, x):
            return torch.cumprod(x.flatten(1)[:, :5], dim=1)

    named = lrp(Sorted(), x, 1).checks.named("ruled")
    assert named.passed is False
    assert "cumprod" in named.note


def test_the_arithmetic_needs_no_model():
    passes = pellucid.create("lrp").explain(Sample(torch.ones(1, 3), ClassLogit(0)))
    look = next(passes)
    assert list(look.gradients) == ["input"]
    assert look.rules.carries == "relevance"
    assert isinstance(look, pellucid.Look)
    assert Seen is not None


def test_one_pass_forward_and_one_back():
    result = lrp(vgg_like(), photos(16, 3).float(), 1, "epsilon_plus")
    assert result.meta.passes == {"forward": 1, "backward": 1}  # for each example


def test_batches_and_precisions_agree():
    model, x = vgg_like(), photos(16, 5)
    whole = lrp(model.double(), x, 1, "epsilon_gamma_box").values
    for size in (1, 2):
        technique = pellucid.create("lrp", composite="epsilon_gamma_box")
        parts = pellucid.explain(model, x, technique, target=1, batch_size=size).values
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    single = lrp(model.float(), x.float(), 1, "epsilon_gamma_box").values
    assert (single.double() - whole).abs().max() <= 1e-4 * whole.abs().max()
