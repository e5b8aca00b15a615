"""Tiny, random text classifiers of Hugging Face's kinds, with tokenizers, for tests."""

import pytest
import torch

from pellucid import adapt

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "good", "film", "bad", "the", "was", "plot", "##s", "and", "very", "."]
TEXTS = ["a good film", "the plots was very bad and a good film .", "bad"]


def word_pieces():
    """A tokenizer of BERT's kind."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_pairs(**special):
    """A tokenizer of RoBERTa's and GPT-2's kind, trained on the texts here."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    # The padding comes second: where it is token 0, what counts from it would look right by chance.
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "<pad>", "</s>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    if "cls_token" in special:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **special
    )


def bert():
    tokenizer = word_pieces()
    config = transformers.BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=16, initializer_range=0.5)
    return transformers.BertForSequenceClassification(config), tokenizer


def distilbert():
    config = transformers.DistilBertConfig(
        dim=8, n_layers=2, n_heads=2, hidden_dim=16, vocab_size=len(WORDS), initializer_range=0.5
    )
    tokenizer = word_pieces()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return transformers.DistilBertForSequenceClassification(config), tokenizer


def roberta():
    tokenizer = byte_pairs(
        pad_token="<pad>", cls_token="<s>", bos_token="<s>", sep_token="</s>", eos_token="</s>", mask_token="<mask>"
    )
    config = transformers.RobertaConfig(
        **SIZES, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=1, initializer_range=0.5
    )
    return transformers.RobertaForSequenceClassification(config), tokenizer


def gpt2():
    tokenizer = byte_pairs(pad_token="<pad>", eos_token="</s>")
    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, n_positions=40, vocab_size=len(tokenizer), pad_token_id=1, initializer_range=0.5
    )
    return transformers.GPT2ForSequenceClassification(config), tokenizer


KINDS = {"bert": bert, "distilbert": distilbert, "roberta": roberta, "gpt2": gpt2}


def made(kind):
    """A model in double precision, its tokenizer and its adapter."""
    torch.manual_seed(3)
    model, tokenizer = KINDS[kind]()
    model = model.double().eval()
    return model, tokenizer, adapt(model, tokenizer=tokenizer)


def ids_of(tokenizer, text):
    return torch.tensor([tokenizer(text)["input_ids"]])


def scores(model, ids, target, embeddings=None):
    """The model's own scores of one text, without padding; with other embeddings in place of the ids'."""
    given = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}
    return model(**given).logits[:, target]


def pad_baseline(model, tokenizer, ids):
    """The text with every ordinary token replaced by padding, as embeddings."""
    ordinary = torch.tensor([[token not in tokenizer.all_special_ids for token in ids[0].tolist()]])
    layer = model.get_input_embeddings()
    return layer(torch.where(ordinary, torch.tensor(model.config.pad_token_id), ids)).detach()
