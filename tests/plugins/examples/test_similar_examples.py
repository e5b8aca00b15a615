"""Similar examples: against distances written out, duplicates of the query, and training data that do not fit."""

import pytest
import torch
from torch import nn

import pellucid
from pellucid import InputError, LayerError, ParameterError
from pellucid_examples import streaming
from pellucid_examples.similar_examples import SimilarExamples


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(2, 5, 3, stride=2)
        self.two = nn.Conv2d(5, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().double().eval()


def images(n, seed=0):
    return torch.randn(n, 2, 11, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(model, x):
    one = model.one(x)
    two = model.two(torch.relu(one))
    return {"one": one, "two": two, "head": model.head(torch.relu(two).mean(dim=(2, 3)))}


def plain(model, query, other, layers, metric):
    """The distance of two examples, position by position."""
    total, ours, theirs = 0.0, seen(model, query[None]), seen(model, other[None])
    for layer in layers:
        a, b = ours[layer][0], theirs[layer][0]
        if metric == "perceptual":
            if a.dim() == 1:
                a, b = a[:, None, None], b[:, None, None]
            places = [(i, j) for i in range(a.shape[1]) for j in range(a.shape[2])]
            parts = [
                (a[:, i, j] / a[:, i, j].norm() - b[:, i, j] / b[:, i, j].norm()).square().sum() for i, j in places
            ]
            total += float(sum(parts) / len(places))
        elif metric == "cosine":
            total += float(1 - (a * b).sum() / a.norm() / b.norm())
        else:
            total += float((a - b).square().sum())
    return total**0.5 if metric == "euclidean" else total


@pytest.mark.parametrize("metric", ["perceptual", "cosine", "euclidean"])
@pytest.mark.parametrize("layers", [("two",), ("one", "two", "head")])
@torch.no_grad()
def test_distances_are_those_of_the_definition(model, metric, layers):
    train, queries = images(12), images(3, seed=1)
    result = pellucid.explain(model, queries, SimilarExamples(train, k=12, layers=layers, metric=metric))
    for q in range(3):
        distances = [plain(model, queries[q], other, layers, metric) for other in train]
        order = sorted(range(12), key=lambda i: distances[i])
        assert result.indices[q].tolist() == order
        torch.testing.assert_close(result.values[q], torch.tensor(distances, dtype=torch.float64)[order])
    assert (result.kind, result.over) == ("similar", " + ".join(layers))


@pytest.mark.parametrize("metric", ["perceptual", "cosine", "euclidean"])
def test_duplicates_of_the_query_come_first_in_their_order(model, metric):
    train, queries = images(20), images(2, seed=1)
    train[[4, 17]] = queries[0]
    train[9] = queries[1]
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        technique = SimilarExamples(train, k=3, layers=("one", "two"), metric=metric)
        result = pellucid.explain(model.to(dtype), queries.to(dtype), technique)
        assert result.indices[0, :2].sort().values.tolist() == [4, 17]
        assert result.indices[1, 0] == 9
        assert float(result.values[0, :2].max()) <= tolerance
        assert float(result.values[0, 2]) > 0.01
        assert result.values.dtype == dtype


def test_the_perceptual_distance_does_not_care_for_the_contrast_of_features(model):
    """A bias-free layer of a brighter copy points the same way."""
    model.one.bias.data.zero_()
    train = images(6)
    result = pellucid.explain(model, 3 * train[2:3], SimilarExamples(train, k=1, layers=("one",)))
    assert result.indices.tolist() == [[2]]
    assert float(result.values) == pytest.approx(0, abs=1e-12)


def test_the_size_of_the_blocks_does_not_matter(model, monkeypatch):
    train, queries = images(23), images(2, seed=1)
    technique = SimilarExamples((train, torch.zeros(23)), k=7)
    whole = pellucid.explain(model, queries, technique)
    monkeypatch.setattr(streaming, "FIRST", 2)
    monkeypatch.setattr(streaming, "LARGEST", 5)
    blocks = pellucid.explain(model, queries, technique)
    assert torch.equal(blocks.indices, whole.indices)
    torch.testing.assert_close(blocks.values, whole.values)
    assert blocks.meta.passes["forward"] == pytest.approx((23 + 2) / 2)


def test_the_network_not_the_pixels_decides():
    """A planted truth: the network sees the mean of the second channel alone."""

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.pick = nn.Conv2d(2, 2, 1)
            with torch.no_grad():
                self.pick.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]])[..., None, None])
                self.pick.bias.copy_(torch.tensor([0.0, 1.0]))
            self.head = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.pick(x).mean(dim=(2, 3)))

    train = images(10).float()
    query = images(1, seed=1).float()
    query[0, 0], query[0, 1] = train[3, 0], train[7, 1]
    result = pellucid.explain(Second().eval(), query, SimilarExamples(train, k=1, layers=("pick",)))
    assert result.indices.tolist() == [[7]]


def test_the_plot_shows_the_input_first(model):
    result = pellucid.explain(model, images(2, seed=1), SimilarExamples(images(9), k=4))
    axes = result.plot().axes
    assert axes[0].get_title() == "input"
    assert len([ax for ax in axes if ax.images]) == 2 * 5


@pytest.mark.parametrize(
    ("train", "parameters", "error", "message"),
    [
        (images(3), {"k": 4}, ParameterError, "k=4 of 3"),
        (None, {}, InputError, "NoneType"),
        ((), {}, InputError, "tuple"),
        (images(6)[:, :1], {}, InputError, "same shape"),
        (images(6) / 0, {}, InputError, "not finite"),
        (images(6).long(), {}, InputError, "int64"),
        (images(6), {"layers": ()}, ParameterError, "at least 1"),
        (images(6), {"layers": ("three",)}, LayerError, "three"),
        (images(6), {"metric": "l1"}, ParameterError, "perceptual"),
    ],
)
def test_what_cannot_be_used_is_refused(model, train, parameters, error, message):
    with pytest.raises(error, match=message):
        pellucid.explain(model, images(2, seed=1), SimilarExamples(train, **parameters))


def test_what_excites_no_unit_is_like_no_other_by_the_cosine():
    """Half a distance from everything, it would be the nearest of many."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.zero_()
    train = torch.tensor([[-1.0, -1, -2], [0, 2, 0], [1, 1, 0], [-3, -1, -1]], dtype=torch.float64)
    queries = torch.tensor([[1.0, 0, 0], [-1, -1, -1]], dtype=torch.float64)
    found = pellucid.explain(model, queries, SimilarExamples(train, k=4, layers=("1",), metric="cosine"))
    expected = torch.tensor([[1 - 0.5**0.5, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected)
    assert found.indices[:, :2].tolist() == [[2, 0], [0, 3]]
