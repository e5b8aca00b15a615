"""Pixel flipping: against plain loops and brute force over all orders, and bad explanations."""

import itertools

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Attribution, ClassLogit, Sample, Seen
from pellucid_evaluation.pixel_flipping import PixelFlipping
from pellucid_evaluation.presets import Deletion, Insertion

TARGET = torch.tensor([0, 3, 1])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 13, 5)).double().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 12, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def relevance():
    return Attribution(torch.randn(3, 3, 12, 15, generator=torch.Generator().manual_seed(2), dtype=torch.float64))


def shown_rows(derived):
    """All rows of a derived sample, (n, B, ...)."""
    index = torch.arange(len(derived))
    count = len(derived.sample)
    return derived.rows(index // count, index % count).unflatten(0, (derived.n, count))


def plain_curve(model, inputs, target, relevance, taken, baseline, *, side=1, order="morf", insert=False):
    """One example, one step after the other: what is hidden (or shown) are the first cells of a sorted list."""
    curves = []
    for x, base, heat, index in zip(inputs, baseline, relevance.values.sum(dim=1), target, strict=True):
        height, width = heat.shape
        cells = [
            (slice(top, top + side), slice(left, left + side))
            for top in range(0, height, side)
            for left in range(0, width, side)
        ]
        cells.sort(key=lambda cell, heat=heat: float(heat[cell].mean()), reverse=order == "morf")
        curve = []
        for number in taken:
            changed = base.clone() if insert else x.clone()
            for rows, columns in cells[:number]:
                changed[:, rows, columns] = (x if insert else base)[:, rows, columns]
            curve.append(model(changed[None])[0, index].detach())
        curves.append(torch.stack(curve))
    return torch.stack(curves)


def values_of(scores):
    return scores.values[0]


def curve_of(scores):
    """The places and the mean curve over the examples."""
    return scores.curve_x[0], scores.curve_y[0].mean(dim=0)


def score(model, inputs, relevance, evaluator, target=TARGET):
    return pellucid.evaluate(model, inputs, {"mine": relevance}, [evaluator], target, controls=False)


def test_the_curve_and_the_score_are_those_of_a_plain_loop(net, images, relevance):
    taken = [round(20 * step / 7 + 1e-9) for step in range(8)]  # 4 x 5 cells of side 3 in 12 x 15
    zero = torch.zeros_like(images)
    curve = {
        order: plain_curve(net, images, TARGET, relevance, taken, zero, side=3, order=order)
        for order in ("morf", "lerf")
    }
    shown = plain_curve(net, images, TARGET, relevance, taken, zero, side=3, insert=True)
    places = torch.tensor(taken, dtype=torch.float64) / 20
    expected = {
        ("aopc", "morf"): (curve["morf"][:, :1] - curve["morf"]).mean(dim=1),
        ("aopc", "lerf"): (curve["lerf"][:, :1] - curve["lerf"]).mean(dim=1),
        ("morf_lerf_gap", "morf"): (curve["lerf"] - curve["morf"]).mean(dim=1),
        ("deletion_auc", "morf"): torch.trapezoid(curve["morf"], places, dim=1),
        ("insertion_auc", "morf"): torch.trapezoid(shown, places, dim=1),
    }
    for (measure, order), values in expected.items():
        evaluator = PixelFlipping(measure=measure, order=order, regions=3, n_steps=7)
        found = score(net, images, relevance, evaluator)
        torch.testing.assert_close(values_of(found), values)
    places_found, curve_found = curve_of(score(net, images, relevance, PixelFlipping(regions=3, n_steps=7)))
    torch.testing.assert_close(places_found, places)
    torch.testing.assert_close(curve_found, curve["morf"].mean(dim=0))


def test_only_a_fraction_may_be_hidden_or_shown(net, images, relevance):
    zero, taken = torch.zeros_like(images), [0, 18, 36, 54, 72]
    hidden = plain_curve(net, images, TARGET, relevance, taken, zero)
    found = score(net, images, relevance, PixelFlipping(n_steps=4, fraction=0.4))
    torch.testing.assert_close(values_of(found), (hidden[:, :1] - hidden).mean(dim=1))
    shown = plain_curve(net, images, TARGET, relevance, taken, zero, insert=True)
    found = score(net, images, relevance, PixelFlipping(measure="insertion_auc", n_steps=4, fraction=0.4))
    torch.testing.assert_close(values_of(found), torch.trapezoid(shown, torch.tensor(taken) / 72.0, dim=1))


def test_on_a_linear_model_gradient_times_input_is_pointwise_the_extreme_of_all_orders():
    torch.manual_seed(0)
    weight, inputs = torch.randn(8).double(), torch.randn(2, 8).double()
    places = range(9)
    least, most = [], []
    for count in places:
        scores = []
        for hidden in itertools.combinations(range(8), count):
            kept = torch.ones(8).double()
            kept[list(hidden)] = 0
            scores.append((inputs * kept) @ weight)
        least.append(torch.stack(scores).amin(dim=0))
        most.append(torch.stack(scores).amax(dim=0))
    least, most = torch.stack(least, dim=1), torch.stack(most, dim=1)
    for order, extreme in (("morf", least), ("lerf", most)):
        for example in range(2):
            one = slice(example, example + 1)
            evaluator = PixelFlipping(order=order, n_steps=8)
            explanation = Attribution(weight * inputs[one])
            found = score(lambda x: (x @ weight)[:, None], inputs[one], explanation, evaluator, target=0)
            torch.testing.assert_close(curve_of(found)[1], extreme[example])


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"order": "lerf"},
        {"measure": "deletion_auc"},
        {"measure": "deletion_auc", "order": "lerf"},
        {"measure": "insertion_auc"},
        {"measure": "insertion_auc", "order": "lerf"},
        {"measure": "morf_lerf_gap"},
    ],
)
def test_the_true_relevance_is_better_than_its_opposite_by_every_measure(parameters):
    torch.manual_seed(0)
    weight, inputs = torch.randn(1, 8, 8).double(), torch.randn(3, 1, 8, 8).double()
    truth = weight * inputs
    evaluator = PixelFlipping(n_steps=6, **parameters)
    right, wrong = (
        values_of(score(lambda x: (x * weight).sum(dim=(1, 2, 3))[:, None], inputs, Attribution(one), evaluator, 0))
        for one in (truth, -truth)
    )
    assert ((right > wrong) == (evaluator.better == "higher")).all()


def test_equal_relevance_is_ordered_at_random_by_the_seed_alone(images):
    constant = Attribution(torch.ones_like(images))
    first = torch.zeros(12, 15)
    for seed in range(300):
        passes = PixelFlipping(n_steps=180).evaluate(Sample(images, ClassLogit(0), seed), constant)
        next(passes)
        look = passes.send(Seen(scores=torch.zeros(3)))
        hidden = (look.at.rows(torch.tensor([17, 17]), torch.tensor([0, 2])) == 0).all(dim=1)
        assert torch.equal(hidden[0], hidden[1])
        assert hidden[0].sum() == 18
        first += hidden[0]
    # 18 of 180 in each of 300 runs: 30 +- 5 for each place, wherever it lies.
    assert first.min() > 10
    assert first.max() < 52
    assert (first.mean(dim=1) - 30).abs().max() < 6


@pytest.mark.parametrize("substitution", ["zero", "black", "mean", "blur", "noise", "inpaint", -0.5])
def test_a_substitution_changes_what_is_hidden_and_nothing_else(images, relevance, substitution):
    def rows(inputs, explanation):
        sample = Sample(inputs, ClassLogit(0))
        passes = PixelFlipping(substitution=substitution, n_steps=4, regions=3, fraction=0.8).evaluate(
            sample, explanation
        )
        next(passes)
        return shown_rows(passes.send(Seen(scores=torch.zeros(len(inputs)))).at)

    changed = rows(images, relevance)
    assert changed.shape == (4, 3, 3, 12, 15)
    for step, example in itertools.product(range(4), range(3)):
        differs = (changed[step, example] != images[example]).any(dim=0)
        cells = differs.unflatten(1, (5, 3)).unflatten(0, (4, 3)).any(dim=3).any(dim=1)
        assert cells.sum() == (step + 1) * 4
        assert differs.sum() == (step + 1) * 4 * 9
    assert torch.isfinite(changed).all()
    torch.testing.assert_close(changed[:, 1:2], rows(images[1:2], relevance[1:2]))


def test_regions_may_be_a_map_of_segments(net, images, relevance):
    segments = torch.full((12, 15), 7)
    segments[:4] = 2
    segments[:, 10:] = -1
    found = score(net, images, relevance, PixelFlipping(regions=segments, n_steps=50))
    heat = relevance.values.sum(dim=1)
    expected = []
    for example in range(3):
        names = sorted([2, 7, -1], key=lambda name: -float(heat[example][segments == name].mean()))
        x, curve = images[example].clone(), []
        for name in [None, *names]:
            x = x if name is None else torch.where(segments == name, 0.0, x)
            curve.append(net(x[None])[0, TARGET[example]].detach())
        expected.append(torch.stack(curve))
    expected = torch.stack(expected)
    torch.testing.assert_close(values_of(found), (expected[:, :1] - expected).mean(dim=1))


def test_the_presets_are_the_papers_curves_of_probabilities(net, images, relevance):
    soft = nn.Sequential(net, nn.Softmax(dim=1))
    taken = [0, 45, 90, 135, 180]
    hidden = plain_curve(soft, images, TARGET, relevance, taken, torch.zeros_like(images))
    found = score(net, images, relevance, Deletion(n_steps=4))
    torch.testing.assert_close(values_of(found), torch.trapezoid(hidden, torch.tensor(taken) / 180.0, dim=1))
    blurred = Sample(images, ClassLogit(0)).baseline("blur")
    shown = plain_curve(soft, images, TARGET, relevance, taken, blurred, insert=True)
    found = score(net, images, relevance, Insertion(n_steps=4))
    torch.testing.assert_close(values_of(found), torch.trapezoid(shown, torch.tensor(taken) / 180.0, dim=1))
    assert Deletion().better == pellucid.technique("deletion").better
    assert Insertion().better == pellucid.technique("insertion").better
    assert PixelFlipping().better == pellucid.technique("pixel_flipping").better


def test_an_example_is_scored_the_same_in_any_company(net, images, relevance):
    evaluator = PixelFlipping(measure="morf_lerf_gap", substitution="inpaint", n_steps=5)
    whole = values_of(score(net, images, relevance, evaluator))
    alone = values_of(score(net, images[1:2], relevance[1:2], evaluator, TARGET[1:2]))
    torch.testing.assert_close(whole[1:2], alone)


def test_maps_of_a_layer_are_brought_to_the_inputs_size(net, images):
    grid = Attribution(torch.rand(3, 4, 5, dtype=torch.float64), over="0")
    assert torch.isfinite(values_of(score(net, images, grid, PixelFlipping(n_steps=3)))).all()


def test_a_signal_is_flipped_along_its_axis():
    inputs = torch.ones(2, 3, 30).double()
    inputs[:, :, 10:20] = 2
    found = score(lambda x: x.sum(dim=(1, 2))[:, None], inputs, Attribution(inputs), PixelFlipping(n_steps=3), target=0)
    torch.testing.assert_close(curve_of(found)[1], torch.tensor([120.0, 60, 30, 0]).double())


def test_explanations_that_cannot_be_flipped_are_refused(net, images, relevance):
    sample = Sample(images, ClassLogit(0))

    def first(sample, explanation, **parameters):
        return next(PixelFlipping(**parameters).evaluate(sample, explanation))

    with pytest.raises(pellucid.InputError, match="not finite"):
        first(sample, Attribution(torch.full_like(images, float("nan"))))
    with pytest.raises(pellucid.InputError, match="of 3 examples; the sample has 1"):
        first(sample[:1], relevance)
    with pytest.raises(pellucid.Unsuitable, match="Projection"):
        first(sample, pellucid.Projection(torch.rand(3, 2)))
    with pytest.raises(pellucid.Unsuitable, match="one value for each feature"):
        first(Sample(torch.rand(3, 6), ClassLogit(0)), Attribution(torch.rand(3, 5)))
    for regions in (0, 16, torch.zeros(12, 14, dtype=torch.long), torch.zeros(12, 15)):
        with pytest.raises(pellucid.ParameterError, match="region"):
            first(sample, relevance, regions=regions)


def test_inpainting_is_for_what_has_neighbours():
    table = torch.rand(3, 6)
    with pytest.raises(pellucid.ParameterError, match="inpaint"):
        score(lambda x: x, table, Attribution(table), PixelFlipping(substitution="inpaint"), target=0)


@pytest.mark.parametrize(
    "parameters",
    [{"n_steps": 0}, {"fraction": 0.0}, {"fraction": 1.1}, {"measure": "auc"}, {"order": "best"}],
)
def test_bad_parameters_are_refused(parameters):
    with pytest.raises(pellucid.ParameterError):
        PixelFlipping(**parameters)


def test_probabilities_of_no_class_are_refused(net, images, relevance):
    with pytest.raises(pellucid.TargetError, match="class"):
        score(net, images, relevance, Deletion(), target=lambda output: output.sum(dim=1))
