"""Functions of texts, as black boxes."""

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from pellucid import InputError, ModelError, ParameterError, Unsuitable, adapt, create, explain

TEXTS = ["a good film", "The plot: bad, and not a good one!", "don't"]
WEIGHTS = {"good": 2.0, "bad": -3.0, "not": -1.0, "!": 0.5}


def score(texts):
    """Counts words; "not good" says more than its words do."""
    listed = [sum(WEIGHTS.get(word, 0.0) for word in text.replace("!", " !").split()) for text in texts]
    return [[-one, one - 2.0 * ("not" in text and "good" in text)] for one, text in zip(listed, texts, strict=True)]


def test_occlusion_leaves_words_out():
    result = explain(adapt(score, takes="text"), TEXTS, "occlusion", target=1)
    assert result.over == "tokens"
    assert result.tokens[1] == ("The", "plot", ":", "bad", ",", "and", "not", "a", "good", "one", "!")
    assert result.tokens[2] == ("don't",)
    left_out = {
        0: "plot: bad, and not a good one!",
        3: "The plot:, and not a good one!",
        6: "The plot: bad, and a good one!",
        10: "The plot: bad, and not a good one",
    }
    whole = score(TEXTS)
    assert result.values[0].tolist()[:3] == pytest.approx([0, 2, 0])
    for place, text in left_out.items():
        expected = whole[1][1] - score([text])[0][1]
        assert result.values[1, place].item() == pytest.approx(expected)
    assert result.values[0, 3:].abs().sum() == 0


def test_what_the_function_reads():
    seen: list[str] = []

    def remember(texts):
        seen.extend(texts)
        return [float(len(text)) for text in texts]

    explain(adapt(remember, takes="text", hidden="[MASK]"), ["so, a  film"], "occlusion", target=0)
    assert {"so, a  film", "[MASK], a  film", "so[MASK] a  film", "so, [MASK]  film", "so, a  [MASK]"} == set(seen)


def test_a_pipeline_of_scikit_learn():
    texts = ["good film", "bad film", "a good plot", "a bad plot", "very good", "very bad"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0, 1, 0])
    result = explain(adapt(model, takes="text"), ["a very good and very bad film", "good"], ["occlusion", "rise"])
    values = result["occlusion"].values
    drop = model.predict_proba(["a very good and very bad film"]) - model.predict_proba(["a very and very bad film"])
    place = int(result["occlusion"].target.classes[0])
    assert values[0, 2].item() == pytest.approx(drop[0, place])
    assert result["rise"].tokens[1] == ("good",)
    assert result["occlusion"].meta.notes == (
        "a black box: scores are those of `predict_proba`",
        "words are shown or hidden",
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "there are no texts"),
        (["a", "  "], r"texts \[1\] are empty"),
        ([1, 2], "expected a list of strings"),
        ({"text": "a"}, "expected a list of strings"),
        (torch.rand(2, 3), "expected a list of strings"),
    ],
)
def test_bad_texts_are_refused(inputs, message):
    with pytest.raises(InputError, match=message):
        explain(adapt(score, takes="text"), inputs, "occlusion")


def test_bad_options_and_techniques_are_refused():
    with pytest.raises(ParameterError, match="hidden=3"):
        adapt(score, takes="text", hidden=3)
    with pytest.raises(ParameterError, match="takes='table'"):
        adapt(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), takes="table")
    with pytest.raises(Unsuitable, match="gradients"):
        explain(adapt(score, takes="text"), TEXTS, create("saliency"))
    with pytest.raises(ModelError, match="for 1 examples"):
        explain(adapt(lambda texts: [1.0, 2.0, 3.0], takes="text"), ["a"], "occlusion", batch_size=1)
