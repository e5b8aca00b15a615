"""Prototypes and maximal examples of data sets that are not in memory: the same answers, read in blocks."""

import errno
import os

import numpy as np
import pytest
import torch
from tests.data.counted import Items as Noted
from tests.data.counted import Net
from torch.utils.data import DataLoader

import pellucid
from pellucid import InputError, Interrupted, Sample, SavedFileError
from pellucid.protocol import ClassLogit
from pellucid_examples import mmd_critic, streaming
from pellucid_examples.maximal_examples import MaximalExamples
from pellucid_examples.mmd_critic import MMDCritic

N = 60


def images():
    return torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return Net(4).eval()


class Items(Noted):
    """Arrays, all of one class, of which one may be met by Ctrl-C."""

    def __init__(self, stop_at=None):
        super().__init__(images(), 0)
        self.stop_at = stop_at

    def __getitem__(self, place):
        if place == self.stop_at:
            raise KeyboardInterrupt
        x, label = super().__getitem__(place)
        return x.numpy(), label


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "x.npy", images().numpy())
    return np.load(tmp_path / "x.npy", mmap_mode="r")


TECHNIQUES = {
    "prototypes of inputs": lambda: MMDCritic(4, 3),
    "prototypes by class": lambda: MMDCritic(6, 4, labels=torch.arange(N) % 3),
    "prototypes of a layer": lambda: MMDCritic(4, 3, layer="conv"),
    "prototypes of all positions": lambda: MMDCritic(4, 3, layer="conv", pooled=False),
    "maximal": lambda: MaximalExamples(layer="conv", k=3),
    "maximal directions": lambda: MaximalExamples(layer="head", directions=torch.tensor([[1.0, -1.0]]), k=5),
}


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_data_set_that_is_read_in_blocks_gives_what_a_tensor_gives(name, in_file, model, mapped, monkeypatch):
    expected = pellucid.explain(model, images(), TECHNIQUES[name]())
    monkeypatch.setattr(streaming, "FIRST", 5)
    monkeypatch.setattr(streaming, "LARGEST", 7)
    monkeypatch.setattr(mmd_critic, "LARGEST", 7)
    if in_file:
        monkeypatch.setattr(streaming, "HELD_BYTES", 0)
    for given in (mapped, Items(), DataLoader(Items(), batch_size=3)):
        found = pellucid.explain(model, given, TECHNIQUES[name]())
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.values, expected.values)
        assert (found.inputs, found.examples) == (None, None)
        assert found.meta.input_hash == expected.meta.input_hash
        assert [check.name for check in found.checks] == [check.name for check in expected.checks]
        if expected.boxes is None:  # of what is not in memory the chosen are kept, for pictures
            some = found.indices >= 0
            assert torch.equal(found.crops[some], images()[found.indices[some]])
            assert not bool(found.crops[~some].any())
        else:
            assert torch.equal(found.boxes, expected.boxes)
            assert torch.equal(found.crops, expected.crops)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_no_more_than_a_block_is_read_at_once_and_none_twice(name, model, mapped, monkeypatch):
    monkeypatch.setattr(streaming, "FIRST", 5)
    monkeypatch.setattr(streaming, "LARGEST", 7)
    monkeypatch.setattr(mmd_critic, "LARGEST", 7)
    items, sizes, plain = Items(), [], np.memmap.__getitem__
    found = pellucid.explain(model, items, TECHNIQUES[name]())
    chosen = set(found.indices[found.indices >= 0].tolist())
    asked = [place for place in range(N) for _ in range(items.asked.count(place))]
    # Each once; the first again for its form, and the chosen again for their pictures.
    assert all(asked.count(place) <= 1 + (place in chosen) for place in range(1, N))
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "__getitem__", lambda self, index: sizes.append(len(index)) or plain(self, index))
        pellucid.explain(model, mapped, TECHNIQUES[name]())
    assert max(sizes) <= 7
    assert sum(sizes) <= N + len(chosen) + 5


@pytest.mark.parametrize("given", ["tensor", "data set"])
@pytest.mark.parametrize(("name", "more"), [("prototypes of a layer", 0), ("maximal", 1 + 8 + 8)])
def test_each_example_goes_through_the_model_once(given, name, more, model, monkeypatch):
    """For maximal examples the first once more for the layer, and for each row and column."""
    pellucid.explain(model, images(), TECHNIQUES[name]())  # so that the layers are known
    model.shown = 0
    pellucid.explain(model, images() if given == "tensor" else Items(), TECHNIQUES[name]())
    assert model.shown == N + more


def test_blocks_are_as_large_as_their_inputs_allow(model, mapped, monkeypatch):
    """An image takes 256 bytes; what the head gives of it, 8."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 256 * 9)
    monkeypatch.setattr(mmd_critic, "BLOCK_BYTES", 256 * 9)
    monkeypatch.setattr(streaming, "FIRST", 2)
    plain = np.memmap.__getitem__
    for technique, largest in ((MMDCritic(4, 3), 9), (MMDCritic(4, 3, layer="head"), 8)):
        sizes = []
        with monkeypatch.context() as patch:
            patch.setattr(np.memmap, "__getitem__", lambda s, index, n=sizes: n.append(len(index)) or plain(s, index))
            pellucid.explain(model, mapped, technique)
        assert max(sizes) == largest


def test_an_interrupted_run_goes_on_where_it_stood(model, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "FIRST", 10)
    monkeypatch.setattr(streaming, "LARGEST", 10)
    technique = MMDCritic(4, 3, layer="conv", folder=tmp_path / "kept")
    with pytest.raises(Interrupted):
        pellucid.explain(model, Items(stop_at=34), technique)
    model.shown = 0
    found = pellucid.explain(model, Items(), technique)
    assert model.shown == 1 + 30  # one for the model's digest
    assert torch.equal(found.indices, pellucid.explain(model, images(), MMDCritic(4, 3, layer="conv")).indices)


def test_room_is_in_memory_or_in_a_file_that_goes_with_it(tmp_path, monkeypatch):
    row = torch.ones(2, 3, dtype=torch.float64)
    assert streaming.room(5, row).shape == (5, 2, 3)
    monkeypatch.setattr(streaming, "HELD_BYTES", 100)
    room = streaming.room(5, row, tmp_path / "new")
    assert (room.shape, room.dtype) == ((5, 2, 3), torch.float64)
    room[3] = row
    assert room.sum() == 6
    assert list((tmp_path / "new").iterdir()) == []

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SavedFileError, match="No space left"):
        streaming.room(5, row, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SavedFileError, match="file"):
        streaming.room(5, row, tmp_path / "file")


def test_pictures_are_left_out_where_they_are_too_large_or_none(monkeypatch):
    indices = torch.tensor([[0, -1]])
    assert streaming.pictures(Sample(images(), ClassLogit(0)), indices) is None
    rows = np.zeros((9, 4), np.float32)

    class Rows(Items):
        def __getitem__(self, place):
            return rows[place % 9]

    found = pellucid.explain(None, Rows(), MMDCritic(2, 1, gamma=1.0))
    assert found.crops is None
    monkeypatch.setattr(streaming, "PICTURE_BYTES", 100)
    assert pellucid.explain(None, Items(), MMDCritic(2, 1)).crops is None


def test_a_report_of_streamed_prototypes_shows_them():
    found = pellucid.explain(None, Items(), MMDCritic(3, 2))
    shown = [ax for ax in found.plot().axes if ax.images]
    assert len(shown) == 5


def test_what_is_wrong_with_a_data_set_is_told(model):
    with pytest.raises(InputError, match="60 examples; expected at most 60"):
        pellucid.explain(None, Items(), MMDCritic(40, 21))
    with pytest.raises(InputError, match="k=61 of 60"):
        pellucid.explain(model, Items(), MaximalExamples(k=61))
    broken = Items()
    broken.x[44, 0, 3, 3] = torch.nan
    for technique in (MMDCritic(3, 2), MMDCritic(3, 2, layer="conv"), MaximalExamples(k=2)):
        with pytest.raises(InputError, match=r"\[44\]"):
            pellucid.explain(model, broken, technique)
    with torch.no_grad():
        model.conv.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="layer 'conv' is not finite for 60 examples"):
        pellucid.explain(model, Items(), MMDCritic(3, 2, layer="conv"))
