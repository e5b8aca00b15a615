"""Text classifiers of Hugging Face: tokens explained through the embedding layer. All models are tiny and random."""

import itertools

import pytest
import torch
from tests.adapters.text_models import KINDS, TEXTS, WORDS, ids_of, made, pad_baseline, scores, word_pieces

import pellucid
from pellucid import BadReference, InputError, ModelError, ParameterError, adapt, create, explain, load_model

transformers = pytest.importorskip("transformers")


@pytest.fixture(params=KINDS)
def parts(request):
    return made(request.param)


# The values


def test_integrated_gradients_are_those_of_a_plain_sum(parts):
    model, tokenizer, adapter = parts
    result = explain(adapter, TEXTS, create("integrated_gradients", baselines="pad", n_steps=40), target=1)
    nodes, weights = torch.linspace(0, 1, 20001, dtype=torch.float64), torch.full((20001,), 1 / 20000).double()
    weights[[0, -1]] /= 2
    for place, text in enumerate(TEXTS[:1]):
        ids = ids_of(tokenizer, text)
        here, start = model.get_input_embeddings()(ids).detach(), pad_baseline(model, tokenizer, ids)
        total = torch.zeros_like(here)
        for alphas, shares in zip(nodes.split(1000), weights.split(1000), strict=True):
            path = (start + alphas[:, None, None] * (here - start)).requires_grad_()
            (slopes,) = torch.autograd.grad(scores(model, None, 1, path).sum(), path)
            total += (shares[:, None, None] * slopes).sum(0, keepdim=True)
        expected = ((here - start) * total).sum(-1)[0]
        torch.testing.assert_close(result.values[place, : ids.shape[1]], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_captum_agrees_on_integrated_gradients(kind):
    # It calls the model with the baseline's ids, by which RoBERTa counts positions and GPT-2 finds the last token.
    captum = pytest.importorskip("captum.attr")
    model, tokenizer, adapter = made(kind)
    result = explain(adapter, TEXTS, create("integrated_gradients", baselines="pad", n_steps=20), target=1)
    for place, text in enumerate(TEXTS):
        ids = ids_of(tokenizer, text)
        keep = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        filled = torch.where(keep, ids, torch.tensor(model.config.pad_token_id))
        method = captum.LayerIntegratedGradients(
            lambda given: model(input_ids=given).logits, model.get_input_embeddings()
        )
        expected = method.attribute(ids, baselines=filled, target=1, n_steps=20, method="gausslegendre")
        torch.testing.assert_close(result.values[place, : ids.shape[1]], expected.sum(-1)[0], atol=1e-8, rtol=1e-6)


def test_the_sum_of_integrated_gradients_is_the_difference_of_scores(parts):
    model, tokenizer, adapter = parts
    result = explain(adapter, TEXTS, create("integrated_gradients", n_steps=300), target=0)
    for place, text in enumerate(TEXTS):
        ids = ids_of(tokenizer, text)
        zero = torch.zeros(1, ids.shape[1], 8, dtype=torch.float64)
        difference = scores(model, ids, 0) - scores(model, None, 0, zero)
        # A LayerNorm at zero has a slope of the order of a million, so no quadrature is exact there.
        torch.testing.assert_close(result.values[place].sum(), difference[0].detach(), atol=0.02, rtol=0.02)


def test_gradients_are_the_embeddings_own(parts):
    model, tokenizer, adapter = parts
    found = explain(adapter, TEXTS, ["saliency", "input_x_gradient"], target=1)
    for place, text in enumerate(TEXTS):
        ids = ids_of(tokenizer, text)
        here = model.get_input_embeddings()(ids).detach().requires_grad_()
        (slopes,) = torch.autograd.grad(scores(model, None, 1, here).sum(), here)
        count = ids.shape[1]
        torch.testing.assert_close(found["saliency"].values[place, :count], slopes.norm(dim=-1)[0])
        torch.testing.assert_close(found["input_x_gradient"].values[place, :count], (here * slopes).sum(-1)[0].detach())


def test_slopes_are_told_by_their_size():
    # Behind a LayerNorm the signed slopes of an embedding sum to zero, whatever the token.
    _, _, adapter = made("bert")
    smooth = explain(adapter, TEXTS[:1], create("smoothgrad", n_samples=4), target=1)
    signed = explain(adapter, TEXTS[:1], create("saliency", signed=True), target=1)
    assert smooth.values.min() > 1e-3
    torch.testing.assert_close(signed.values, explain(adapter, TEXTS[:1], "saliency", target=1).values)


@pytest.mark.parametrize("technique", [("occlusion", {"window": 1}), ("feature_ablation", {"cells": 40})])
def test_hiding_a_token_is_what_it_says(parts, technique):
    model, tokenizer, adapter = parts
    name, options = technique
    result = explain(adapter, TEXTS, create(name, baseline="pad", **options), target=1)
    for place, text in enumerate(TEXTS):
        ids = ids_of(tokenizer, text)
        here, start = model.get_input_embeddings()(ids), pad_baseline(model, tokenizer, ids)
        for token in range(ids.shape[1]):
            hidden = here.clone()
            hidden[0, token] = start[0, token]
            drop = scores(model, ids, 1) - scores(model, None, 1, hidden)
            torch.testing.assert_close(result.values[place, token], drop[0].detach(), atol=1e-10, rtol=1e-8)


def test_rules_run_through_the_embeddings(parts):
    model, tokenizer, adapter = parts
    for text in TEXTS:
        result = explain(adapter, [text], create("deeplift", baselines="pad"), target=1)
        ids = ids_of(tokenizer, text)
        difference = scores(model, ids, 1) - scores(model, None, 1, pad_baseline(model, tokenizer, ids))
        torch.testing.assert_close(result.values.sum(), difference[0].detach(), atol=1e-7, rtol=1e-6)
    assert not torch.compiler.is_compiling()


def test_a_padded_text_gets_the_values_that_it_gets_alone(parts):
    _, _, adapter = parts
    chosen = {
        "saliency": "saliency",
        "input_x_gradient": "input_x_gradient",
        "ig": create("integrated_gradients", baselines="mean", n_steps=10),
        "ig to zero": create("integrated_gradients", n_steps=10),
        "occlusion": create("occlusion", window=1, baseline="pad"),
    }
    batch = explain(adapter, TEXTS, chosen, target=1)
    for place, text in enumerate(TEXTS):
        alone = explain(adapter, [text], chosen, target=1)
        for name, one in alone.items():
            count = len(one.tokens[0])
            assert batch[name].tokens[place] == one.tokens[0]
            torch.testing.assert_close(batch[name].values[place, :count], one.values[0], atol=1e-9, rtol=1e-7)
            assert bool((batch[name].values[place, count:] == 0).all())


def test_the_side_of_the_padding_does_not_matter():
    _, tokenizer, adapter = made("gpt2")
    given = tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    assert int(given["attention_mask"][0, 0]) == 0
    given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
    left = explain(adapter, given, "input_x_gradient", target=1)
    right = explain(adapter, TEXTS, "input_x_gradient", target=1)
    assert left.tokens == right.tokens
    torch.testing.assert_close(left.values, right.values, atol=1e-9, rtol=1e-7)


# The tokens


def test_tokens_have_names():
    _, _, adapter = made("bert")
    result = explain(adapter, [TEXTS[1], "unheard"], "saliency", target=1)
    expected = ("[CLS]", "the", "plot", "##s", "was", "very", "bad", "and", "a", "good", "film", ".", "[SEP]")
    assert result.over == "tokens"
    assert result.tokens == (expected, ("[CLS]", "[UNK]", "[SEP]"))
    assert result.inputs is None
    frame = result.to_dataframe()
    assert list(frame.columns) == ["example", "position", "token", "value"]
    assert len(frame) == 16
    assert frame.iloc[14].token == "[UNK]"


def test_bytes_are_spelt_out():
    _, _, adapter = made("roberta")
    (tokens,) = explain(adapter, ["a gööd film."], "saliency", target=1).tokens
    assert (tokens[0], tokens[1], tokens[-1]) == ("<s>", "a", "</s>")
    assert "film" in tokens
    assert tokens[2:4] == ("␣", "g")  # a space on its own, and the beginning of a word
    assert "##d" in tokens  # goes on with one
    assert not any("Ġ" in token for token in tokens)


def test_pairs_of_texts():
    model, tokenizer, adapter = made("bert")
    result = explain(adapter, [("a film", "bad plot"), ("good", "a")], "input_x_gradient", target=1)
    assert result.tokens[1] == ("[CLS]", "good", "[SEP]", "a", "[SEP]")
    expected = tokenizer("a film", "bad plot", return_tensors="pt")
    here = model.get_input_embeddings()(expected.pop("input_ids")).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model(inputs_embeds=here, **expected).logits[0, 1], here)
    torch.testing.assert_close(result.values[0], (here * slopes).sum(-1)[0].detach())


def test_ids_without_a_tokenizer():
    model, tokenizer, adapter = made("bert")
    bare = adapt(model)
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    result = explain(bare, dict(given), "input_x_gradient", target=1)
    assert result.tokens[2] == ("#2", "#8", "#3")
    torch.testing.assert_close(result.values, explain(adapter, TEXTS, "input_x_gradient", target=1).values)
    # The configuration knows the padding, so this word is known without a tokenizer.
    assert explain(bare, dict(given), create("integrated_gradients", baselines="pad"), target=1).values.isfinite().all()


def test_words_for_baselines():
    _, _, adapter = made("bert")
    start = create("integrated_gradients", n_steps=4)
    found = {
        word: explain(adapter, TEXTS[:1], create("integrated_gradients", n_steps=4, baselines=word), target=1).values
        for word in ("pad", "mask", "unk", "mean", "zero")
    }
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(found.values(), 2))
    for word in ("pad", "mask", "unk", "mean"):  # special tokens stay, so nothing is attributed to them
        assert found[word][0, [0, -1]].tolist() == [0, 0]
    torch.testing.assert_close(found["zero"], explain(adapter, TEXTS[:1], start, target=1).values)
    with pytest.raises(ParameterError, match=r"'masc' is unknown; expected one of .*'mask'.*'pad'"):
        explain(adapter, TEXTS, create("integrated_gradients", baselines="masc"), target=1)


def test_a_long_text_is_cut_and_said():
    _, _, adapter = made("bert")
    result = explain(adapter, ["a film", "very " * 20], "saliency", target=1)
    assert len(result.tokens[1]) == 16
    assert result.tokens[1][-1] == "[SEP]"
    assert "text 1 was cut from 22 to 16 tokens" in result.meta.notes
    model, tokenizer, _ = made("roberta")
    assert len(explain(adapt(model, tokenizer=tokenizer), ["a " * 90], "saliency").tokens[0]) == 38  # 40 - 1 - 1
    short = adapt(model, tokenizer=tokenizer, max_length=5)
    assert "text 0 was cut from 7 to 5 tokens" in explain(short, ["a a a a a"], "saliency").meta.notes


# The model


def test_the_model_is_left_as_it_was(parts):
    model, tokenizer, adapter = parts
    kind, hooks = type(model), [len(part._forward_hooks) for part in model.modules()]
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(adapter, TEXTS, ["saliency", "occlusion"], target=1)
    assert type(model) is kind
    assert model.training
    assert hooks == [len(part._forward_hooks) for part in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        ids = ids_of(tokenizer, TEXTS[0])
        assert torch.equal(adapter.logits(adapter.module(input_ids=ids)), model(input_ids=ids).logits)


def test_layers_have_the_models_own_names():
    model, tokenizer, adapter = made("bert")
    seen = explain(adapter, TEXTS[:1], create("activations", layer="bert.encoder.layer.0"))
    expected = []
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda layer, given, output: expected.append(output))
    with torch.no_grad():
        model(input_ids=ids_of(tokenizer, TEXTS[0]))
    handle.remove()
    output = expected[0][0] if isinstance(expected[0], tuple) else expected[0]
    torch.testing.assert_close(seen.values.reshape(output.shape), output)


def test_results_are_cut_saved_and_evaluated(tmp_path):
    _, _, adapter = made("distilbert")
    result = explain(adapter, TEXTS, create("integrated_gradients", baselines="pad", n_steps=10))
    again = pellucid.load(result.save(tmp_path / "text"))
    assert again.tokens == result.tokens
    assert torch.equal(again.values, result.values)
    assert result[1:].tokens == result.tokens[1:]
    assert result[2].top(9, by="magnitude").places[0, :3].sort().values.tolist() == [0, 1, 2]
    scored = pellucid.evaluate(adapter, TEXTS, result, create("pixel_flipping", substitution="pad", n_steps=4))
    assert set(scored.explanations) == {"integrated_gradients", "random", "constant", "input_magnitude"}


def test_class_names_and_pipelines():
    model, tokenizer, _ = made("bert")
    model.config.id2label = {0: "bad", 1: "good"}
    result = explain(adapt(model, tokenizer=tokenizer), TEXTS[:2], "input_x_gradient", target="good")
    assert result.class_names() == ("good", "good")
    piped = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    torch.testing.assert_close(
        explain(piped, TEXTS[:2], "input_x_gradient", target="good").values, result.values, check_dtype=False
    )


def test_a_saved_folder_brings_its_tokenizer(tmp_path):
    model, tokenizer, _ = made("bert")
    model.float().save_pretrained(tmp_path)
    bare = load_model(f"hf:{tmp_path}")
    assert "no tokenizer comes with this model" in bare.notes
    tokenizer.save_pretrained(tmp_path)
    adapter = load_model(f"hf:{tmp_path}")
    result = explain(adapter, TEXTS[:1], "input_x_gradient", target=1)
    expected = explain(adapt(model, tokenizer=tokenizer), TEXTS[:1], "input_x_gradient", target=1)
    assert result.tokens == expected.tokens
    torch.testing.assert_close(result.values, expected.values)
    assert load_model(f"hf:{tmp_path}?weights=none").notes[-1] == "random weights, as weights=none asks"


# Bad input


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "there are no texts"),
        (["a", " "], r"texts \[1\] are empty"),
        ("", r"texts \[0\] are empty"),
        (["a", 3], "mix texts with something else"),
        (["a", ("a", "b")], "mix texts with something else"),
        ([("a", "b", "c")], "mix texts with something else"),
        ({"input_ids": torch.rand(1, 3)}, "of type torch.float32; expected whole numbers"),
        (torch.rand(1, 3), "numbers of shape .*; expected texts"),
        ({"input_ids": torch.tensor([2, 5, 3])}, r"have shape \(3,\); expected \(B, T\)"),
        ({"input_ids": [[2, 5, 3], [2, 3]]}, "are no tensor"),
        ({"input_ids": torch.tensor([[2, 99]])}, "go from 2 to 99; the model's vocabulary has 16 tokens"),
        ({"input_ids": torch.tensor([[-1, 5]])}, "go from -1 to 5"),
        ({"input_ids": torch.full((1, 17), 5)}, "have 17 tokens; the model reads at most 16"),
        ({"input_ids": torch.full((2, 3), 5), "attention_mask": torch.ones(2, 2)}, "attention_mask has shape"),
        ({"input_ids": torch.full((2, 3), 5), "attention_mask": torch.zeros(2, 3)}, "a row without a token"),
        ({"input_ids": torch.full((2, 3), 5), "token_type_ids": torch.zeros(1, 3)}, "expected one row for each of 2"),
        (None, "the inputs are None"),
    ],
)
def test_bad_inputs_are_refused(inputs, message):
    _, _, adapter = made("bert")
    with pytest.raises(InputError, match=message):
        explain(adapter, inputs, "saliency")


def test_texts_need_a_tokenizer():
    model, _, _ = made("bert")
    with pytest.raises(InputError, match="tokenizer is not known"):
        explain(model, TEXTS, "saliency")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "bert"}, "tokenizer is a str"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": True}, "max_length=True"),
        ({"tokeniser": None}, "'tokeniser'"),
    ],
)
def test_bad_options_are_refused(options, message):
    model, _, _ = made("bert")
    with pytest.raises(ParameterError, match=message):
        adapt(model, **options)


def t5(**options):
    torch.manual_seed(4)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    return transformers.T5Config(**sizes, eos_token_id=3, pad_token_id=0, decoder_start_token_id=0, **options)


@pytest.mark.parametrize("kind", ["T5ForSequenceClassification", "BartForSequenceClassification"])
def test_a_model_whose_decoder_embeds_the_text_too_is_refused(kind):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": len(WORDS), "eos_token_id": 3}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = t5() if kind[:2] == "T5" else transformers.BartConfig(**sizes, pad_token_id=0, bos_token_id=2)
    adapter = adapt(getattr(transformers, kind)(config).eval(), tokenizer=word_pieces())
    ids = torch.tensor([[5, 6, 3]])
    with pytest.raises(ModelError, match=r"calls its embedding layer 2 times.*explain a classifier on its encoder"):
        explain(adapter, {"input_ids": ids}, "saliency")


class OnEncoder(transformers.T5EncoderModel):
    """A classifier on the encoder of a T5: its embedding layer is another object than the one that it names."""

    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear(config.d_model, 3)

    def forward(self, input_ids=None, attention_mask=None, **given):
        hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        read = torch.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        return self.head((hidden * read.to(hidden)[..., None]).sum(1) / read.to(hidden).sum(1, keepdim=True))


def test_a_classifier_on_the_encoder_of_such_a_model_is_explained_by_gradients_and_by_rules():
    model, tokenizer = OnEncoder(t5(dropout_rate=0.0)).double().eval(), word_pieces()
    assert model.get_input_embeddings() is not model.encoder.embed_tokens
    adapter = adapt(model, tokenizer=tokenizer)
    ids, layer = ids_of(tokenizer, TEXTS[0]), model.get_input_embeddings()
    leaf = layer(ids).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs_embeds=leaf)[:, 1].sum(), leaf)
    found = explain(adapter, [TEXTS[0]], "input_x_gradient", target=1).values
    torch.testing.assert_close(found, (leaf * slope).sum(2).detach(), rtol=1e-5, atol=1e-7)  # its norms are in float32
    for technique in ("deep_taylor", create("lrp", attention="constant"), create("deeplift", baselines="pad")):
        together, alone = (explain(adapter, texts, technique, target=1) for texts in (TEXTS[:2], TEXTS[:1]))
        words = len(together.tokens[0])
        torch.testing.assert_close(together.values[0, :words], alone.values[0], rtol=1e-5, atol=1e-7)
        assert alone.checks.passed, (technique, alone.checks)


def test_a_reference_to_neither_is_refused(tmp_path):
    transformers.Wav2Vec2Config().save_pretrained(tmp_path)
    with pytest.raises(BadReference, match="cannot be loaded"):
        load_model(f"hf:{tmp_path}?weights=none")
