"""The code on the page about texts and tables runs, in its order."""

import re
from pathlib import Path

import pytest
import torch

import pellucid

PAGE = (Path(__file__).parents[2] / "docs/text-and-tables.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def classifier():
    """A tiny random model in place of the one that would be downloaded."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = [*SPECIAL, "a", "good", "film", "that", "is", "not", "and", "much", "too", "long", ","]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {f"{role.strip('[]').lower()}_token": role for role in SPECIAL}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **roles
    )
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=len(words), initializer_range=0.5
    )
    model = transformers.DistilBertForSequenceClassification(config).eval()
    return pellucid.adapt(model, tokenizer=tokenizer)


def test_every_block_runs(classifier, monkeypatch):
    def load_model(reference):
        assert reference.startswith("hf:")
        return classifier

    monkeypatch.setattr(pellucid, "load_model", load_model)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, names)
    assert names["result"].tokens[0] == ("[CLS]", "a", "good", "film", "[SEP]")
    assert names["found"].names[0] == "mean radius"
    assert len(BLOCKS) == 6


def test_the_techniques_that_it_names_exist():
    known = {one.name for one in pellucid.techniques()}
    named = set(re.findall(r'create\("(\w+)"', PAGE)) | set(re.findall(r"`([a-z]+_[a-z_]+)`", PAGE))
    parameters = {"input_ids", "inputs_embeds"}
    assert named - parameters <= known
