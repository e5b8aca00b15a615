"""Every rule of LRP derived again with dense matrices and all z_ij made, in float64; exact relations; bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import RuleSet
from pellucid_rules import shares
from pellucid_rules.composites import COMPOSITES, RULES
from pellucid_rules.lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, SameSign, WSquare, ZBox, ZPlus
from pellucid_rules.policy_rules import Pass

TINY = 1e-9


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return model.double().eval()


def convnet(bias: bool = True, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=bias),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 8, 2, stride=2, bias=bias),
        act(),
        nn.Flatten(),
        nn.Linear(8, 3, bias=bias),
    )
    seeded(model)
    return model


def images(n: int = 2, shape=(2, 4, 4), seed: int = 1) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer as a dense matrix (outputs, inputs) and a bias (outputs,)."""
    flat = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0].flatten(), x)
    return flat.reshape(len(flat), -1), layer(torch.zeros_like(x)[None])[0].flatten().detach()


def away(z: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.where(z >= 0, z + eps, z - eps)


def slow(rule, x, w, b, relevance, eps=1e-6):
    """R_i from all z_ij: x (i,), w (j, i), b (j,), relevance (j,)."""
    z, plus, minus = x * w, (x * w).clamp(min=0), (x * w).clamp(max=0)
    total = z.sum(1) + b
    up, down = plus.sum(1) + b.clamp(min=0), minus.sum(1) + b.clamp(max=0)
    match rule:
        case Epsilon():
            share = z / away(total, rule.epsilon)[:, None]
        case Gamma():
            g = rule.gamma
            first = (z + g * plus) / away(total + g * up, eps)[:, None]
            second = (z + g * minus) / away(total + g * down, eps)[:, None]
            share = torch.where(total[:, None] > 0, first, second)
        case ZPlus():
            share = plus / away(up if rule.bias else plus.sum(1), eps)[:, None]
        case AlphaBeta():
            if not rule.bias:
                up, down = plus.sum(1), minus.sum(1)
            share = rule.alpha * plus / away(up, eps)[:, None] - rule.beta * minus / away(down, eps)[:, None]
        case SameSign():
            up, down, positive = plus.sum(1), minus.sum(1), z.sum(1) > 0
            share = torch.where(positive[:, None], plus / away(up, eps)[:, None], minus / away(down, eps)[:, None])
        case WSquare():
            share = w**2 / away((w**2).sum(1) + b**2 * rule.bias, eps)[:, None]
        case Flat():
            seen = (w != 0).double()
            share = seen / away(seen.sum(1), eps)[:, None]
        case ZBox():
            terms = z - rule.low * w.clamp(min=0) - rule.high * w.clamp(max=0)
            share = terms / away(terms.sum(1), eps)[:, None]
    return relevance @ share


def derived(model: nn.Sequential, x: torch.Tensor, target: int, rule, first=None) -> torch.Tensor:
    """The relevance of one example, layer by layer with dense matrices."""
    values = [x]
    for layer in model:
        values.append(layer(values[-1][None])[0].detach())
    relevance = torch.zeros_like(values[-1])
    relevance[target] = values[-1][target]
    for index in reversed(range(len(model))):
        layer, here = model[index], values[index]
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            w, b = matrix(layer, here)
            chosen = first if first is not None and index == 0 else rule
            relevance = slow(chosen, here.flatten(), w, b, relevance.flatten())
        elif isinstance(layer, nn.MaxPool2d):
            w, _ = matrix(layer, here)
            relevance = relevance.flatten() @ w
        relevance = relevance.reshape(here.shape)
    return relevance


@pytest.mark.parametrize(
    "rule",
    [
        Epsilon(0.0),
        Epsilon(0.1),
        Gamma(0.25),
        Gamma(3.0),
        ZPlus(),
        ZPlus(bias=False),
        AlphaBeta(),
        AlphaBeta(1, 0),
        AlphaBeta(3, 2, bias=False),
        SameSign(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("few", [64, 0], ids=["by sign", "by magnitude"])
def test_rules_are_what_dense_matrices_give(rule, act, few, monkeypatch):
    monkeypatch.setattr(shares, "_FEW", few)
    model, x = convnet(act=act), images()
    found = pellucid.explain(model, x, pellucid.create("lrp", composite={"conv": rule, "linear": rule}), target=1)
    assert found.values.abs().amax() > 1e-3
    for row, values in zip(x, found.values, strict=True):
        torch.testing.assert_close(values, derived(model, row, 1, rule), rtol=1e-8, atol=TINY)


@pytest.mark.parametrize("rule", [WSquare(), WSquare(bias=False), Flat(), ZBox(-3.0, 4.0), ZBox(0.0, 0.0)], ids=repr)
def test_rules_of_a_first_layer_are_what_dense_matrices_give(rule):
    model, x = convnet(), images()
    table = {"weighted": Epsilon(), "first": rule}
    found = pellucid.explain(model, x, pellucid.create("lrp", composite=table), target=2)
    for row, values in zip(x, found.values, strict=True):
        torch.testing.assert_close(values, derived(model, row, 2, Epsilon(), rule), rtol=1e-8, atol=TINY)


def relevance(model, x, composite, target=0, **options):
    return pellucid.explain(model, x, pellucid.create("lrp", composite=composite, **options), target=target).values


def test_lrp_0_is_gradient_times_input_without_biases():
    model, x = convnet(bias=False), images()
    expected = pellucid.explain(model, x, "input_x_gradient", target=1).values
    torch.testing.assert_close(relevance(model, x, "lrp_0", 1), expected, rtol=0, atol=1e-12)


def test_a_z_box_with_its_bounds_at_zero_is_lrp_0():
    model, x = convnet(bias=False), images()
    boxed = relevance(model, x, {"weighted": Epsilon(0), "first": ZBox(0.0, 0.0, 0.0)})
    torch.testing.assert_close(boxed, relevance(model, x, "lrp_0"), rtol=0, atol=1e-12)


def test_alpha1_beta0_is_z_plus_also_of_signed_inputs():
    for x in (images(), images().abs()):
        one, other = (relevance(convnet(), x, {"weighted": rule}) for rule in (AlphaBeta(1, 0), ZPlus()))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_gamma_lies_between_epsilon_and_same_sign():
    model, x = convnet(bias=False), images()
    zero, infinite = (relevance(model, x, {"weighted": Gamma(g, 0.0)}) for g in (0.0, 1e12))
    torch.testing.assert_close(zero, relevance(model, x, "lrp_0"), rtol=0, atol=1e-11)
    torch.testing.assert_close(infinite, relevance(model, x, {"weighted": SameSign(0.0)}), rtol=0, atol=1e-9)


def test_z_plus_of_a_positive_score_is_nowhere_negative():
    model, x = convnet(), images(8)
    logits = model(x)
    values = relevance(model, x, "z_plus", logits.argmax(1))
    positive = logits.amax(1) > 0
    assert positive.any()
    assert (values[positive] >= -1e-15).all()


@pytest.mark.parametrize("name", [name for name in COMPOSITES if not name.startswith("preset")])
def test_composites_conserve_the_score_without_biases(name):
    model, x = convnet(bias=False), images(4)
    values = relevance(model, x, name, 1, stabilizer=0.0, low=-5.0, high=5.0)
    torch.testing.assert_close(values.flatten(1).sum(1), model(x)[:, 1].detach(), rtol=1e-6, atol=1e-12)


def test_rules_without_bias_conserve_the_score_with_biases_in_the_network():
    model, x = convnet(), images(4)
    last = {"linear": Epsilon(0.0)}
    head = model(x)[:, 1].detach()
    kept = relevance(model, x, {"conv": ZPlus(0.0, bias=False)} | last, 1).flatten(1).sum(1)
    taken = relevance(model, x, {"conv": ZPlus(0.0)} | last, 1).flatten(1).sum(1)
    absorbed = model[-1].bias[1].detach()
    torch.testing.assert_close(kept, head - absorbed, rtol=1e-9, atol=1e-12)
    assert (taken - kept).abs().max() > 1e-3


def test_flat_and_w_square_by_hand():
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)  # the score is 5
    for rule, expected in ((Flat(0.0), [2.5, 2.5]), (WSquare(0.0), [4.5, 0.5]), (ZBox(0.0, 3.0, 0.0), [3.75, 1.25])):
        assert relevance(model, x, {"first": rule}).tolist() == [pytest.approx(expected)]


def test_rules_of_a_table_can_be_named_with_their_parameters():
    model, x = convnet(), images()
    named = relevance(model, x, {"conv": {"gamma": {"gamma": 0.5}}, "linear": "epsilon"})
    torch.testing.assert_close(named, relevance(model, x, {"conv": Gamma(0.5), "linear": Epsilon()}))
    assert set(RULES) >= {"epsilon", "gamma", "z_plus", "alpha_beta", "w_square", "flat", "z_box", "pass"}


def test_the_last_layer_and_a_layer_by_name_can_have_rules_of_their_own():
    model, x = convnet(), images()
    by_place = relevance(model, x, {"conv": ZPlus(), "last": Epsilon(0.5)})
    by_name = relevance(model, x, {"conv": ZPlus(), "layer:6": Epsilon(0.5)})
    torch.testing.assert_close(by_place, by_name, rtol=0, atol=0)
    assert (by_place - relevance(model, x, {"conv": ZPlus()})).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Gamma(-0.1), "gamma.*at least 0"),
        (lambda: Epsilon(float("nan")), "epsilon.*at least 0"),
        (lambda: AlphaBeta(2, 2), "alpha - beta is 0; expected 1"),
        (lambda: AlphaBeta(0, -1), "beta.*at least 0"),
        (lambda: ZPlus(stabilizer="much"), "stabilizer.*number"),
        (lambda: pellucid.create("lrp", composite="epsilon_plsu"), "Did you mean 'epsilon_plus'.*preset_b"),
        (lambda: pellucid.create("lrp", composite={"conv": "gama"}), r"composite\['conv'\].*Did you mean 'gamma'"),
        (lambda: pellucid.create("lrp", composite={"conv": {"gamma": {"gama": 1}}}), "gama"),
        (lambda: pellucid.create("lrp", composite={"conv": 0.25}), "no rule"),
        (lambda: pellucid.create("lrp", composite={"convolutoin": Pass()}), "convolutoin.*Did you mean 'convolution'"),
        (lambda: pellucid.create("lrp", composite=7), "composite 7"),
        (lambda: pellucid.create("lrp", composite=RuleSet("mine")), "'mine' carries 'gradient'"),
        (lambda: pellucid.create("lrp", low="black"), "low='black'"),
        (lambda: pellucid.create("lrp", canonizers=("batchnorm",)), "batch_norm"),
        (lambda: pellucid.create("lrp", stabilizer=-1.0), "stabilizer"),
        (lambda: pellucid.create("lrp", attention="uniform"), "attention"),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_made(make, told):
    with pytest.raises(pellucid.ParameterError, match=told):
        make()


def test_bounds_that_do_not_fit_the_inputs_are_refused():
    with pytest.raises(pellucid.ParameterError, match=r"low.*\(5,\).*\(2, 4, 4\)"):
        relevance(convnet(), images(), "epsilon_gamma_box", low=torch.zeros(5), high=3.0)
    with pytest.raises(pellucid.ParameterError, match="above"):
        relevance(convnet(), images(), "epsilon_gamma_box", low=2.0, high=-2.0)


def test_a_rule_for_weights_is_refused_where_there_are_none():
    with pytest.raises(pellucid.ParameterError, match=r"Flat.*relu.*no weights"):
        relevance(convnet(), images(), {"relu": Flat()})


def test_a_layer_that_the_model_does_not_have_is_refused():
    with pytest.raises(pellucid.LayerError, match="layer:7"):
        relevance(convnet(), images(), {"layer:7": Flat()})
