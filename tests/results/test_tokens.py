"""Attributions of tokens and tables, drawn."""

import re
from itertools import pairwise

import matplotlib.colors
import numpy as np
import pytest
import torch

from pellucid import Attribution, InputError, Meta
from pellucid.report import write_report
from pellucid.results import TargetRecord, beeswarm, draw, draw_tokens

LONG = "[CLS] it is a ##bsorb ##ing , ( very ) long and it does not end so soon that it fits a line of its own . [SEP]"
TOKENS = (tuple(LONG.split()), ("[CLS]", "no", "[SEP]"))


def result(**changes):
    values = torch.zeros(2, len(TOKENS[0]))
    values[0] = torch.linspace(-2, 1, len(TOKENS[0]))
    values[1, :3] = torch.tensor([0.0, 4.0, -1.0])
    facts = {
        "over": "tokens",
        "tokens": TOKENS,
        "meta": Meta(technique="occlusion", categories=("<bad>", "1")),
        "target": TargetRecord("predicted", torch.tensor([0, 1])),
    }
    return Attribution(values, **(facts | changes))


def texts_of(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_every_token_is_drawn_once_in_order():
    figure = result().plot()
    drawn = texts_of(figure)
    expected = [token.removeprefix("##") for token in TOKENS[0]]
    start = drawn.index("[CLS]")
    assert drawn[start - 1] == "<bad>"
    assert drawn[start : start + len(expected)] == expected
    assert "class 1" in drawn  # a category that is only a number
    assert draw.png(figure)[:4] == b"\x89PNG"
    assert "no" not in texts_of(result().plot([0]))


def test_lines_hold_and_pieces_of_a_word_stay_together():
    tokens = draw_tokens.tokens_of(result(), 0)
    assert [token.text for token in tokens if not token.spaced] == ["[CLS]", "bsorb", "ing", ",", "very", ")", "."]
    assert [token.text for token in tokens if token.special] == ["[CLS]", "[SEP]"]
    placed = draw_tokens.laid_out(tokens, 150.0)
    assert all(one.left + one.width <= 150 for one in placed)
    assert placed[-1].line >= 3
    for before, after in pairwise(placed):
        assert after.line > before.line or after.left >= before.left + before.width - 1e-9
        assert after.token.spaced or after.line == before.line
    narrow = draw_tokens.laid_out(tokens, 20.0)  # narrower than words: pieces are broken apart, and none is lost
    assert [one.token for one in narrow] == tokens
    assert len({(one.line, one.left) for one in narrow}) == len(tokens)


def test_colours_say_the_sign_and_the_size():
    figure = result().plot([1])
    boxes = [patch for ax in figure.axes for patch in ax.patches]
    colours = [patch.get_facecolor() for patch in boxes]
    assert colours[0] == pytest.approx((*matplotlib.colors.to_rgb(draw.FOR), draw_tokens.STRONGEST))
    assert colours[1] == pytest.approx((*matplotlib.colors.to_rgb(draw.AGAINST), draw_tokens.STRONGEST / 4))
    assert len(boxes) == 2  # a value of zero has no colour
    halved = result().plot([1], bound=8.0).axes[0].patches[0].get_facecolor()
    assert halved[3] == pytest.approx(draw_tokens.STRONGEST / 2)


def test_html_has_every_token_with_its_value_and_no_markup_of_others():
    evil = result(tokens=(TOKENS[0], ("<script>", "&", 'a"b')))
    page = evil._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<img" not in page
    assert "&lt;bad&gt;" in page
    values = re.findall(r'title="([^"]*)">(?!</)', page)
    assert [float(value) for value in values[-3:]] == [0.0, 4.0, -1.0]
    assert len(values) == len(TOKENS[0]) + 3
    assert page.count("##") == 0


def test_values_that_are_not_finite_have_no_colour():
    values = torch.tensor([[float("nan"), float("inf"), 1.0]])
    odd = Attribution(values, over="tokens", tokens=(("a", "$b$", "c"),))
    assert len(odd.plot().axes[0].patches) == 1
    assert "nan" in odd._repr_html_()
    assert draw.png(odd.plot(style="bars"))
    assert draw.png(Attribution(torch.zeros(0, 3), over="tokens", tokens=()).plot())


def test_tokens_as_bars_are_told_apart_by_their_place():
    (ax,) = result().plot([1], style="bars").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["[CLS] · 0", "[SEP] · 2", "no · 1"]


def test_tokens_that_do_not_fit():
    with pytest.raises(InputError, match=r"expected \(B, 3\) or more"):
        Attribution(torch.zeros(1, 2), over="tokens", tokens=(("a", "b", "c"),))
    with pytest.raises(InputError, match="number of examples"):
        Attribution(torch.zeros(2, 3), over="tokens", tokens=(("a", "b", "c"),))
    with pytest.raises(InputError, match="expected an explanation of texts"):
        Attribution(torch.zeros(2, 3)).plot(style="tokens")


def test_padding_is_never_among_the_top():
    top = result()[1].top(3)
    assert top.places[0].tolist() == [1, 0, 2]


def test_a_report_has_coloured_tokens(tmp_path):
    path = write_report(tmp_path / "text.html", results={"occlusion": result()})
    page = path.read_text(encoding="utf-8")
    assert page.count('class="tokens"') == 1
    assert "bsorb</span>" in page
    assert 'src="data:image/png' not in page


# Beeswarms


def table(count=40, features=20):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, features, generator=generator) * torch.arange(features, 0, -1)
    names = tuple(f"feature {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[:features])
    return Attribution(values, names=names, inputs=torch.rand(count, features, generator=generator))


def dots(figure):
    return figure.axes[0].collections


def test_many_examples_of_a_table_are_a_beeswarm():
    many = table()
    figure = many.plot()
    (ax, bar) = figure.axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    strength = many.values.abs().mean(dim=0)
    assert labels[:15] == [many.names[place] for place in strength.argsort(descending=True)[:15].tolist()]
    assert labels[15] == "5 others, summed"
    lines = dots(figure)
    assert len(lines) == 16
    order = strength.argsort(descending=True)
    drawn = np.sort(lines[3].get_offsets()[:, 0])
    np.testing.assert_allclose(drawn, many.values[:, order[3]].sort().values.numpy(), rtol=1e-6)
    others = np.sort(lines[15].get_offsets()[:, 0])
    np.testing.assert_allclose(others, many.values[:, order[15:]].sum(dim=1).sort().values.numpy(), rtol=1e-5)
    assert all(np.abs(line.get_offsets()[:, 1] - row).max() <= beeswarm.HALF + 1e-9 for row, line in enumerate(lines))
    assert bar.get_ylabel() == "value of the feature"


def test_colours_are_the_features_values():
    many = table(features=3)
    lines = dots(many.plot())
    order = many.values.abs().mean(dim=0).argsort(descending=True)
    levels = lines[0].get_array()
    own = many.inputs[:, order[0]].numpy()
    low, high = np.percentile(own, [5, 95])
    np.testing.assert_allclose(levels, np.clip((own - low) / (high - low), 0, 1), rtol=1e-5)
    bare = Attribution(many.values)
    assert len(bare.plot().axes) == 1  # no bar of colours where the features' values are not known
    constant = Attribution(many.values, inputs=torch.ones(40, 3))
    assert set(dots(constant.plot())[0].get_array().tolist()) == {0.5}


def test_few_examples_and_one_are_bars():
    assert sum(bool(ax.patches) for ax in table(count=8).plot().axes) == 8
    assert len(table(count=9).plot().axes) == 2
    assert len(table(count=9).plot([0, 1]).axes) == 2
    assert not dots(table(count=9).plot([0]))
    assert dots(table(count=2).plot(style="beeswarm"))
    assert sum(bool(ax.patches) for ax in table(count=9).plot(style="bars").axes) == 8


def test_points_at_one_place_stand_side_by_side():
    offsets = beeswarm.spread(np.zeros(5), (0.0, 1.0))
    assert sorted(offsets.tolist()) == pytest.approx([-2 * 0.38 / 7, -0.38 / 7, 0, 0.38 / 7, 2 * 0.38 / 7])
    apart = beeswarm.spread(np.linspace(0, 1, 5), (0.0, 1.0))
    assert apart.tolist() == [0, 0, 0, 0, 0]
    assert np.abs(beeswarm.spread(np.zeros(1000), (0.0, 0.0))).max() == pytest.approx(beeswarm.HALF)


def test_odd_values_and_shapes():
    values = table().values.clone()
    values[0, 0], values[1] = float("nan"), float("inf")
    assert draw.png(Attribution(values).plot())
    assert draw.png(Attribution(torch.zeros(20, 2)).plot())
    with pytest.raises(InputError, match="a beeswarm is for"):
        Attribution(torch.zeros(2, 3, 4)).plot(style="beeswarm")
    with pytest.raises(InputError, match="bars are for"):
        Attribution(torch.zeros(2, 3, 4, 4)).plot(style="bars")
