"""Scores: tables, rankings, merging, charts."""

from __future__ import annotations

import math

import pytest
import torch

from pellucid.errors import InputError, ParameterError
from pellucid.results import Check, Meta, Scores, draw

VALUES = {"saliency": [1.0, 2.0, 6.0], "grad_cam": [4.0, 5.0, 6.0], "random": [0.0, 1.0, 2.0]}


def single(explanation, values, metric="aopc", better="higher", **options):
    return Scores.single(
        metric=metric,
        explanation=explanation,
        values=torch.as_tensor(values),
        better=better,
        control=explanation == "random",
        **options,
    )


def table(better="higher", **options):
    return Scores.merge([single(name, values, better=better, **options) for name, values in VALUES.items()])


def test_the_ranking_is_by_the_mean_in_the_metrics_direction():
    ranks = table().ranking()["aopc"]
    assert [rank.explanation for rank in ranks] == ["grad_cam", "saliency", "random"]
    assert [rank.mean for rank in ranks] == [5.0, 3.0, 1.0]
    assert ranks[0].standard_error == pytest.approx(1 / math.sqrt(3))
    assert [rank.control for rank in ranks] == [False, False, True]
    assert [rank.explanation for rank in table("lower").ranking()["aopc"]] == ["random", "saliency", "grad_cam"]


def test_what_could_not_be_scored_is_left_out_and_comes_last():
    merged = Scores.merge([single("a", [1.0, math.nan, 3.0]), single("b", [math.nan] * 3), single("c", [0.0] * 3)])
    ranks = merged.ranking()["aopc"]
    assert [rank.explanation for rank in ranks] == ["a", "c", "b"]
    assert ranks[0].mean == 2.0
    assert ranks[0].standard_error == pytest.approx(1.0)
    assert math.isnan(ranks[2].mean)


def test_a_line_for_each_row_and_example():
    lines = table().to_dataframe()
    assert list(lines.columns) == ["explanation", "metric", "example", "value", "better", "control"]
    assert len(lines) == 9
    picked = lines[(lines.explanation == "saliency") & (lines.example == 2)]
    assert picked.value.item() == 6.0
    assert lines[lines.control].explanation.unique().tolist() == ["random"]


def test_slicing_takes_examples_out_of_values_and_curves():
    ys = torch.arange(6.0).view(3, 2)
    scores = single("a", [1.0, 2.0, 3.0], curve=(torch.tensor([0.0, 1.0]), ys))
    assert scores[1:].values.tolist() == [[2.0, 3.0]]
    assert torch.equal(scores[2].curve_y[0], ys[2:])
    assert scores[2].curve_x[0].tolist() == [0.0, 1.0]
    assert scores[2].ranking()["aopc"][0].mean == 3.0
    assert math.isnan(scores[2].ranking()["aopc"][0].standard_error)


def test_curves_are_means_with_standard_errors():
    ys = torch.tensor([[0.0, 2.0], [4.0, 2.0]])
    merged = Scores.merge(
        [single("a", [1.0, 2.0], curve=(torch.tensor([0.0, 1.0]), ys)), single("b", [1.0, 2.0], metric="other")]
    )
    assert list(merged.curves) == ["aopc"]
    curves = merged.curves["aopc"]
    assert curves.mean["a"].tolist() == [2.0, 2.0]
    assert curves.standard_error["a"].tolist() == pytest.approx([2.0, 0.0])


def test_curves_over_different_axes_are_not_put_together():
    one = single("a", [1.0], curve=(torch.tensor([0.0, 1.0]), torch.rand(1, 2)))
    two = single("b", [1.0], curve=(torch.tensor([0.0, 0.5]), torch.rand(1, 2)))
    with pytest.raises(InputError, match="different axes"):
        _ = Scores.merge([one, two]).curves


def test_a_score_of_the_whole_data_set_goes_with_any_number_of_examples():
    whole = single("saliency", 0.75, metric="roar")
    for order in ([whole, table()], [table(), whole]):
        merged = Scores.merge(order)
        assert len(merged) == 3
        rank = merged.ranking()["roar"][0]
        assert rank.mean == 0.75
        assert math.isnan(rank.standard_error)
        assert merged[0].ranking()["roar"][0].mean == 0.75
    assert len(Scores.merge([whole, single("b", 0.5, metric="roar")])) == 1


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        ([], "no scores to merge"),
        ([single("a", [1.0]), single("a", [2.0])], "metric 'aopc' of explanation 'a' occurs twice"),
        ([single("a", [1.0]), single("b", [1.0, 2.0])], r"of \[1, 2\] examples"),
    ],
)
def test_what_cannot_be_merged(scores, match):
    with pytest.raises(InputError, match=match):
        Scores.merge(scores)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"values": torch.rand(2, 2)}, r"expected \(B,\)"),
        ({"values": torch.rand(2), "better": "more"}, "expected 'higher' or 'lower'"),
        ({"values": torch.rand(2), "curve": (torch.rand(3), torch.rand(2, 4))}, r"expected \(n,\) and \(2, n\)"),
        ({"values": torch.rand(2), "curve": (torch.rand(3, 1), torch.rand(2, 3))}, r"expected \(n,\) and"),
    ],
)
def test_shapes_that_do_not_fit(options, match):
    with pytest.raises(InputError, match=match):
        Scores.single(**{"metric": "m", "better": "higher", **options})


def test_costs_add_up_and_checks_are_told_apart():
    shared = Check.info("optimised outputs", 0.0)
    parts = [
        single(
            name,
            [1.0, 2.0],
            checks=[Check.bound("error", error, 1.0), shared],
            meta=Meta(technique="pixel_flipping", passes={"forward": 10.0}, seconds=2.0, seed=3, model="net"),
        )
        for name, error in (("a", 0.5), ("b", 3.0))
    ]
    merged = Scores.merge(parts)
    assert merged.meta.passes == {"forward": 20.0}
    assert merged.meta.seconds == 4.0
    assert (merged.meta.technique, merged.meta.seed, merged.meta.model) == ("pixel_flipping", 3, "net")
    assert [check.name for check in merged.checks] == ["aopc of a: error", "optimised outputs", "aopc of b: error"]


def test_an_explanation_gets_the_name_that_it_has_beside_others():
    scores = single("", [1.0, 2.0]).named("smooth", control=True)
    assert scores.explanations == ("smooth",)
    assert scores.rows[0].control
    assert not single("", [1.0]).named("x").rows[0].control


def test_integers_are_scores_too():
    assert single("a", torch.tensor([1, 2])).ranking()["aopc"][0].mean == 1.5


def test_bars_and_curves_are_drawn_with_the_controls_apart():
    curve = (torch.linspace(0, 1, 5), torch.rand(3, 5))
    scores = table(curve=curve)
    figure = scores.plot()
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")] == ["aopc", "aopc: mean curve"]
    bars = figure.axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["grad_cam", "saliency", "random"]
    hatched = [bar.get_hatch() is not None for bar in bars.patches]
    assert hatched == [False, False, True]
    assert draw.png(figure)
    assert len(scores.plot(kind="bars").axes) == 1
    assert draw.png(table().plot())
    with pytest.raises(InputError, match="no curves"):
        table().plot(kind="curves")
    with pytest.raises(InputError, match="no scores by 'roar'"):
        scores.plot(["roar"])
    with pytest.raises(ParameterError, match="no kind of plot 'bar'"):
        scores.plot(kind="bar")


def test_scores_that_are_not_finite_are_drawn():
    assert draw.png(Scores.merge([single("a", [math.nan, math.nan]), single("random", [math.inf, 1.0])]).plot())
