"""Padded batches of texts: what rules and samplers make of a text does not depend on what it was padded to."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.adapters.text_models import KINDS, TEXTS, ids_of, made, pad_baseline, scores

from pellucid import create, explain

COMPOSITES = ["lrp_0", "epsilon_plus", "epsilon_plus_flat", "attn_lrp"]

RULED = {
    "rescale": create("deeplift", baselines="pad"),
    "reveal_cancel": create("deeplift", rule="reveal_cancel", baselines="pad"),
    "deeplift from zero": create("deeplift"),
    "guided": create("guided_backprop"),
    "input x gradient": create("input_x_gradient"),
    **{name: create("lrp", composite=name) for name in COMPOSITES},
    **{f"{name}, held": create("lrp", composite=name, attention="constant") for name in COMPOSITES},
}

SAMPLED = {
    "kernel": create("kernel_shap", baseline="pad", n_samples=60),
    "orders": create("shapley_sampling", baseline="pad", n_samples=8),
    "lime": create("lime", baseline="pad", n_samples=60),
    "features": create("kernel_shap", baseline="pad", n_samples=60, segments="features"),
    "until": create("kernel_shap", baseline="pad", n_samples=60, tolerance=0.05, max_samples=240),
}


@pytest.fixture(scope="module", params=KINDS)
def parts(request):
    return made(request.param)


def check_of(result, name):
    (found,) = [check for check in result.checks if check.name == name]
    return found


def expect_as_alone(adapter, batch, chosen):
    """Every text has in a batch the values that it has alone, and zeros behind them."""
    for place, text in enumerate(TEXTS):
        alone = explain(adapter, [text], chosen, target=1)
        for name, one in alone.items():
            count, values = len(one.tokens[0]), batch[name].values[place]
            torch.testing.assert_close(
                values[:count], one.values[0], atol=1e-10, rtol=1e-8, msg=lambda m, n=name: n + m
            )
            assert values[count:].tolist() == [0.0] * (len(values) - count)
            if one.error is not None:
                torch.testing.assert_close(batch[name].error[place, :count], one.error[0], atol=1e-10, rtol=1e-8)


def test_rules_see_no_padding(parts):
    _, _, adapter = parts
    batch = explain(adapter, TEXTS, RULED, target=1)
    for name, result in batch.items():
        assert bool(result.values.isfinite().all()), name
        for check in result.checks:
            if check.name in ("ruled", "operations without a rule"):
                assert check.value == 0, f"{name}: {check}"
    expect_as_alone(adapter, batch, RULED)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("baseline", ["pad", "zero"])
def test_deeplift_is_complete_on_padded_texts(rule, baseline, parts):
    model, tokenizer, adapter = parts
    result = explain(adapter, TEXTS, create("deeplift", rule=rule, baselines=baseline), target=1)
    for place, text in enumerate(TEXTS):
        ids = ids_of(tokenizer, text)
        start = pad_baseline(model, tokenizer, ids)
        start = torch.zeros_like(start) if baseline == "zero" else start
        difference = (scores(model, ids, 1) - scores(model, None, 1, start))[0].detach()
        torch.testing.assert_close(result.values[place].sum(), difference, atol=0, rtol=1e-7)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_relevance_is_conserved_or_accounted_for(composite, parts):
    # All that is not at the tokens is at constants: what positions and segments add to the embeddings, and epsilons.
    model, tokenizer, adapter = parts
    for text in TEXTS:
        score = float(scores(model, ids_of(tokenizer, text), 1).detach())
        held = explain(adapter, [text], create("lrp", composite=composite, attention="constant"), target=1)
        assert float(check_of(held, "conservation").value) < 1e-5
        kept = float(check_of(held, "bias share").value) * abs(score)
        assert float(held.values.sum()) + kept == pytest.approx(score, rel=1e-4)
        split = explain(adapter, [text], create("lrp", composite=composite), target=1)
        lost = check_of(split, "softmax share")
        kept = float(check_of(split, "bias share").value) * abs(score)
        missing = abs(score - kept - float(split.values.sum())) / abs(score)
        assert missing == pytest.approx(abs(float(lost.value)), abs=1e-4)  # the certificate tells the loss, and where
        assert missing < 1e-4 or "most at softmax of" in lost.note


def test_lrp_0_holds_what_it_says_on_one_text():
    # Attention and standard deviations held, every op is linear or an activation: gradient times input with these.
    model, tokenizer, adapter = made("distilbert")
    result = explain(adapter, TEXTS[:1], create("lrp", composite="lrp_0", attention="constant"), target=1)
    ids = ids_of(tokenizer, TEXTS[0])
    here = model.get_input_embeddings()(ids).detach().requires_grad_()
    layers = model.distilbert
    state = layers.embeddings.LayerNorm
    positions = layers.embeddings.position_embeddings(torch.arange(ids.shape[1]))[None]

    def normalised(norm, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach() * norm.weight + norm.bias

    def active(x, function):
        made_of = function(x)
        return x * (made_of / x).detach()  # relevance passes

    x = normalised(state, here + positions)
    for block in layers.transformer.layer:
        own = block.attention
        q, k, v = (part(x).reshape(1, -1, 2, 4).transpose(1, 2) for part in (own.q_lin, own.k_lin, own.v_lin))
        weights = (q @ k.transpose(2, 3) / 2).softmax(-1).detach()
        mixed = own.out_lin((weights @ v).transpose(1, 2).reshape(1, -1, 8))
        x = normalised(block.sa_layer_norm, mixed + x)
        x = normalised(block.output_layer_norm, block.ffn.lin2(active(block.ffn.lin1(x), torch.nn.functional.gelu)) + x)
    logits = model.classifier(active(model.pre_classifier(x[:, 0]), torch.relu))
    torch.testing.assert_close(logits, model(input_ids=ids).logits)
    (slopes,) = torch.autograd.grad(logits[0, 1], here)
    torch.testing.assert_close(result.values[0], (here * slopes).sum(-1)[0].detach(), atol=1e-6, rtol=1e-4)


def test_samplers_play_with_the_tokens_that_are_there(parts):
    _, _, adapter = parts
    batch = explain(adapter, TEXTS, SAMPLED, target=1)
    expect_as_alone(adapter, batch, SAMPLED)


def test_exact_shapley_values_of_tokens(parts):
    # Derived again from all orders of the ordinary tokens; the special ones, which the baseline keeps, get nothing.
    model, tokenizer, adapter = parts
    texts = ["a film", "bad"]
    result = explain(adapter, texts, create("exact_shapley", baseline="pad"), target=1)
    for place, text in enumerate(texts):
        ids = ids_of(tokenizer, text)
        here, start = model.get_input_embeddings()(ids).detach(), pad_baseline(model, tokenizer, ids)
        ordinary = [k for k in range(ids.shape[1]) if not torch.equal(here[0, k], start[0, k])]

        def worth(shown, here=here, start=start):
            mask = torch.tensor([k in shown for k in range(here.shape[1])])[None, :, None]
            return float(scores(model, None, 1, torch.where(mask, here, start)).detach())

        totals = [0.0] * ids.shape[1]
        orders = list(itertools.permutations(ordinary))
        for order in orders:
            for step, token in enumerate(order):
                totals[token] += (worth(order[: step + 1]) - worth(order[:step])) / len(orders)
        expected = torch.tensor(totals, dtype=torch.float64)
        torch.testing.assert_close(result.values[place, : ids.shape[1]], expected, atol=1e-9, rtol=1e-8)


def test_segments_of_several_tokens_leave_the_padding_out():
    _, _, adapter = made("bert")
    thirds = torch.arange(13) // 5
    chosen = create("exact_shapley", baseline="pad", segments=thirds)
    batch = explain(adapter, TEXTS, chosen, target=1)
    alone = explain(adapter, TEXTS[2:], create("exact_shapley", baseline="pad", segments=thirds[:3]), target=1)
    torch.testing.assert_close(batch.values[2, :3], alone.values[0])
    assert batch.values[2, 3:].tolist() == [0.0] * 10
    assert batch.values[1, 0] == batch.values[1, 4] != batch.values[1, 5]
