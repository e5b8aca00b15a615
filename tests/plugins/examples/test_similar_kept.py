"""Similar examples by the tangent kernel, of data on disk, with a folder, and by an approximate index."""

import sys

import numpy as np
import pytest
import torch
from tests.plugins.examples.test_similar_examples import images, model  # noqa: F401
from torch.utils.data import Dataset, TensorDataset

import pellucid
from pellucid import Contrast, InputError, Interrupted, ParameterError, Unavailable, Unsuitable
from pellucid_examples import nearest, streaming
from pellucid_examples.similar_examples import SimilarExamples


def gradient(model, x, score):  # noqa: F811
    found = torch.autograd.grad(score(model(x[None]))[0], list(model.parameters()))
    return torch.cat([one.flatten() for one in found])


def cosines(model, queries, train, scores):  # noqa: F811
    rows = []
    for query, score in zip(queries, scores, strict=True):
        one = gradient(model, query, score)
        others = torch.stack([gradient(model, other, score) for other in train])
        rows.append(others @ one / others.norm(dim=1) / one.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("target", [None, 2, [1, 0, 1], lambda output: output[:, 0] * output[:, 1], "contrast"])
def test_the_kernels_distances_are_those_of_written_out_gradients(model, target, monkeypatch):  # noqa: F811
    monkeypatch.setattr(streaming, "LARGEST", 4)
    train, queries = images(9), images(3, seed=1)
    with torch.no_grad():
        predicted = model(queries).argmax(dim=1).tolist()
    if target == "contrast":
        target, scores = Contrast(None, 1), [lambda out, c=c: out[:, c] - out[:, 1] for c in predicted]
    elif callable(target):
        scores = [target] * 3
    else:
        classes = predicted if target is None else [target] * 3 if isinstance(target, int) else target
        scores = [lambda out, c=c: out[:, c] for c in classes]
    expected = 1 - cosines(model, queries, train, scores)
    found = pellucid.explain(model, queries, SimilarExamples(train, k=9, metric="ntk"), target=target)
    torch.testing.assert_close(found.values, expected.sort(dim=1).values)
    assert torch.equal(found.indices, expected.argsort(dim=1))
    assert found.over == "the tangent kernel"
    assert found.checks.named("uncovered parameters").passed


def test_the_kernel_finds_duplicates_of_the_query(model):  # noqa: F811
    train, queries = images(12), images(2, seed=1)
    train[[3, 8]] = queries[1]
    found = pellucid.explain(model, queries, SimilarExamples(train, k=2, metric="ntk"))
    assert found.indices[1].sort().values.tolist() == [3, 8]
    assert float(found.values[1].max()) < 1e-12


def test_a_score_without_gradient_is_like_nothing(model):  # noqa: F811
    found = pellucid.explain(
        model, images(1), SimilarExamples(images(4), k=4, metric="ntk"), target=lambda output: 0 * output[:, 0]
    )
    assert found.values.tolist() == [[1.0] * 4]


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(11, 2, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, 0])[0][:, -1]


def test_models_whose_parameters_have_no_gradients_for_each_example_are_refused():
    with pytest.raises(Unsuitable, match="the parameters"):
        pellucid.explain(Recurrent().double().eval(), images(1), SimilarExamples(images(4), k=1, metric="ntk"))


class Items(Dataset):
    """Examples that are made as they are asked for."""

    def __init__(self, inputs, pairs):
        self.inputs, self.pairs, self.read = inputs, pairs, []

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        self.read.append(place)
        return (self.inputs[place], 0) if self.pairs else self.inputs[place].numpy()


def test_data_on_disk_and_data_that_are_made_are_read_in_blocks(model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(streaming, "LARGEST", 4)
    train, queries = images(11), images(2, seed=1)
    expected = pellucid.explain(model, queries, SimilarExamples(train, k=3))
    mapped = np.lib.format.open_memmap(tmp_path / "train.npy", "w+", np.float64, tuple(train.shape))
    mapped[:] = train.numpy()
    mapped.flush()
    pairs, alone = Items(train, True), Items(train, False)
    for given in (np.load(tmp_path / "train.npy", mmap_mode="r"), pairs, alone, TensorDataset(train), (mapped, [0])):
        found = pellucid.explain(model, queries, SimilarExamples(given, k=3))
        assert torch.equal(found.indices, expected.indices)
        if isinstance(given, (Items, np.memmap)):  # of what is not in memory, only the chosen are kept for pictures
            assert found.examples is None
            assert torch.equal(found.crops, train[found.indices])
    chosen = {0, *expected.indices.flatten().tolist()}
    assert pairs.read[:11] == alone.read[:11] == list(range(11))
    assert set(pairs.read[11:]) == set(alone.read[11:]) == chosen
    assert expected.examples is not None
    assert expected.crops is None


def passes(result):
    """How many examples were shown to the model."""
    return result.meta.passes["forward"] * 2


def test_what_is_kept_needs_no_passes_until_something_changes(model, tmp_path):  # noqa: F811
    train, queries = images(20), images(2, seed=1)

    def run(given=train, **changed):
        return pellucid.explain(model, queries, SimilarExamples(given, k=4, folder=tmp_path, **changed))

    first, again = run(), run()
    plain = pellucid.explain(model, queries, SimilarExamples(train, k=4))
    assert passes(first) == pytest.approx(22)
    assert passes(again) == pytest.approx(2)
    for one in (first, again):
        assert torch.equal(one.indices, plain.indices)
        assert torch.equal(one.values, plain.values)
    assert passes(run(metric="cosine")) == pytest.approx(22)
    changed = train.clone()
    changed[17] = queries[0]
    assert run(changed).indices[0, 0] == 17
    with torch.no_grad():
        model.two.weight.mul_(1.1)
    assert passes(run()) == pytest.approx(22)


def test_a_run_that_was_interrupted_goes_on_where_it_stood(model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(streaming, "FIRST", 4)
    monkeypatch.setattr(streaming, "LARGEST", 4)
    train, queries = images(20), images(2, seed=1)

    class Stopped(Items):
        def __getitem__(self, place):
            if place == 13:
                raise KeyboardInterrupt
            return super().__getitem__(place)

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        pellucid.explain(model, queries, SimilarExamples(Stopped(train, True), k=4, folder=tmp_path))
    resumed = pellucid.explain(model, queries, SimilarExamples(train, k=4, folder=tmp_path))
    assert passes(resumed) == pytest.approx(2 + 8)  # of the 20, three blocks of four were finished
    plain = pellucid.explain(model, queries, SimilarExamples(train, k=4))
    assert torch.equal(resumed.indices, plain.indices)


@pytest.mark.parametrize("metric", ["perceptual", "cosine", "euclidean"])
def test_the_index_finds_what_all_comparisons_find(model, tmp_path, metric, monkeypatch):  # noqa: F811
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "WIDTH", 48)  # less than the activations have numbers, so that they are projected
    # Eighty clusters of five; noise without any would have no neighbours worth the name.
    train = images(80).repeat_interleave(5, dim=0) + 0.3 * images(400, seed=2)
    queries = train[[7, 70, 119, 222, 301]] + 0.1 * images(5, seed=1)
    train[123] = queries[2]
    exact = pellucid.explain(model, queries, SimilarExamples(train, k=5, metric=metric, layers=("one", "two")))
    technique = SimilarExamples(train, k=5, metric=metric, layers=("one", "two"), folder=tmp_path, exact_up_to=100)
    first = pellucid.explain(model, queries, technique)
    later = pellucid.explain(model, queries, technique)
    assert torch.equal(first.indices, exact.indices)
    assert later.meta.passes["forward"] < 0.4 * first.meta.passes["forward"]
    hits = (exact.indices[:, :, None] == later.indices[:, None]).any(dim=2).double().mean()
    told = first.checks.named("recall of the index").value
    assert told == later.checks.named("recall of the index").value
    # Later all proposals are compared with every query, so that it can only be better than was told.
    assert float(hits) >= told >= 0.9
    assert later.indices[2, 0] == 123
    place = {int(index): value for index, value in zip(exact.indices[0], exact.values[0], strict=True)}
    for index, value in zip(later.indices[0].tolist(), later.values[0], strict=True):
        assert index not in place or float(value) == pytest.approx(float(place[index]), abs=1e-9)


def test_without_a_folder_or_below_the_size_all_are_compared(model, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setitem(sys.modules, "faiss", None)
    train, queries = images(20), images(2, seed=1)
    pellucid.explain(model, queries, SimilarExamples(train, k=4, exact_up_to=3))
    pellucid.explain(model, queries, SimilarExamples(train, k=4, folder=tmp_path, exact_up_to=20))
    with pytest.raises(Unavailable, match=r"pellucid\[faiss\]"):
        pellucid.explain(model, queries, SimilarExamples(train, k=4, folder=tmp_path, exact_up_to=19))


def test_what_cannot_be_kept_or_read_is_refused(model, tmp_path):  # noqa: F811
    queries = images(2, seed=1)
    with pytest.raises(ParameterError, match="compares no vectors"):
        SimilarExamples(images(4), k=1, metric="ntk", folder=tmp_path)
    with pytest.raises(InputError, match="item 0 of train holds str"):
        pellucid.explain(model, queries, SimilarExamples(Items(["a", "b"], True), k=1))
    with pytest.raises(InputError, match="empty Items"):
        SimilarExamples(Items([], True), k=1)
    with pytest.raises(InputError, match="expected the same shape"):
        pellucid.explain(model, queries, SimilarExamples(Items(images(4)[:, :1], True), k=1))
    with pytest.raises(InputError, match="train is a int"):
        SimilarExamples(3, k=1)


class Settings(torch.nn.Module):
    """A layer of what its plain attributes make of the inputs; it counts its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls = torch.nn.Linear(4, 3), 0
        self.scale, self.mask, self.options, self.act = 1.0, torch.ones(4), {"shift": [0.0, 1]}, torch.tanh

    def forward(self, x):
        self.calls += 1
        return self.layer(self.act(x.float() * self.scale * self.mask + self.options["shift"][0]))


def test_what_is_kept_is_of_the_models_plain_attributes_too(tmp_path):
    """Their `repr` shows none of them, and a block of before would be wrong."""
    train, queries = torch.randn(9, 4), torch.randn(2, 4)

    def found(folder, **changed):
        settled = Settings()
        for name, value in changed.items():
            setattr(settled, name, value)
        technique = SimilarExamples(train, k=4, layers=("layer",), metric="euclidean", folder=folder)
        return pellucid.explain(settled, queries, technique), settled.calls

    first, calls = found(tmp_path)
    again, fewer = found(tmp_path)
    assert fewer < calls  # a count of calls is no setting
    assert torch.equal(again.values, first.values)
    for changed in (
        {"scale": 3.0},
        {"mask": torch.tensor([1.0, 0, 0, 1])},
        {"options": {"shift": [0.5, 1]}},
        {"act": torch.relu},
    ):
        assert torch.allclose(found(tmp_path, **changed)[0].values, found(None, **changed)[0].values)
