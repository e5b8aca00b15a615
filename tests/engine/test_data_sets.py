"""Data sets that are explained themselves and need not fit in memory: what is read of them, when, and how often."""

import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.counted import Items as Noted
from tests.data.counted import Net
from torch.utils.data import DataLoader, TensorDataset

import pellucid
from pellucid import Exemplars, Explainer, InputError, Interrupted, Look, Streamed, TargetError, adapt, explain

N = 13


def images():
    return torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return Net(3).eval()


class Items(Noted):
    """Images, all of one class."""

    def __init__(self, x=None):
        super().__init__(images() if x is None else x, 1)


@dataclass(frozen=True, eq=False)
class InParts(Explainer):
    """The examples with the greatest score, looked at five at a time."""

    k: int = 2

    def explain(self, sample):
        scores = []
        for start in range(0, len(sample), 5):
            seen = yield Look(at=sample.part(start, start + 5))
            scores.append(seen.scores)
        best = torch.cat(scores).topk(self.k)
        return Exemplars(best.values[None], best.indices[None], examples=sample.held)


def forms(folder, x):
    np.save(folder / "x.npy", x.numpy())
    yield "read-only", np.load(folder / "x.npy", mmap_mode="r")
    yield "writable", np.load(folder / "x.npy", mmap_mode="r+")
    yield "a view", np.load(folder / "x.npy", mmap_mode="r")[::-1][::-1]
    yield "TensorDataset", TensorDataset(x, torch.zeros(len(x)))
    yield "Dataset", Items(x)
    yield "DataLoader", DataLoader(Items(x), batch_size=4, shuffle=True)


@pytest.mark.parametrize("target", [None, 1, "each"])
def test_a_data_set_gives_what_a_tensor_gives(model, tmp_path, target):
    x = images()
    target = [0, 1] * 6 + [0] if target == "each" else target
    expected = explain(model, x, [InParts(), pellucid.create("saliency")], target=target)
    for name, given in forms(tmp_path, x):
        alone = explain(model, given, InParts(), target=target)
        assert torch.equal(alone.values, expected["InParts"].values), name
        assert torch.equal(alone.indices, expected["InParts"].indices), name
        assert alone.meta.input_hash == expected["InParts"].meta.input_hash, name
        assert (alone.inputs, alone.examples) == (None, None)
        # What looks at the whole reads the whole, and has it in its result.
        whole = explain(model, given, "saliency", target=target)
        torch.testing.assert_close(whole.values, expected["saliency"].values)
        assert torch.equal(whole.inputs, x), name
        both = explain(model, given, [InParts(), pellucid.create("saliency")], target=target)
        assert torch.equal(both["InParts"].indices, expected["InParts"].indices), name
        torch.testing.assert_close(both["saliency"].values, expected["saliency"].values)


def test_each_example_is_read_once_and_shown_once(model):
    items = Items()
    found = explain(model, items, InParts())
    assert items.asked == [0, *range(N)]  # the first also tells what the data set holds
    assert model.shown == N
    assert found.meta.passes["forward"] == 1
    model.shown = 0
    explain(model, images(), InParts())
    assert model.shown == N
    model.shown, items.asked[:] = 0, []
    explain(model, items, "saliency")
    assert items.asked == [0, *range(N)]


def test_what_no_technique_read_is_read_for_the_checksum(model):
    @dataclass(frozen=True, eq=False)
    class Some(Explainer):
        def explain(self, sample):
            for places in (slice(0, 3), [7, 6], slice(2, 5), slice(9, 11)):
                yield Look(at=sample[places])
            return Exemplars(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))

    items = Items()
    assert explain(model, items, Some()).meta.input_hash == explain(model, images(), Some()).meta.input_hash
    assert items.asked == [0, 0, 1, 2, 7, 6, 2, 3, 4, 9, 10, *range(5, N)]


def test_neither_more_than_a_part_is_in_memory_nor_is_the_users_data_changed(model, tmp_path, monkeypatch):
    x = images()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    sizes, plain = [], np.memmap.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "__getitem__", lambda self, index: sizes.append(len(index)) or plain(self, index))
        explain(model, mapped, InParts())
    assert (max(sizes), sum(sizes)) == (5, N + 1)

    @dataclass(frozen=True, eq=False)
    class Spoils(Explainer):
        def explain(self, sample):
            sample.part(0, 4).inputs.zero_()
            sample.inputs.zero_()
            return (yield from InParts().explain(sample))

    explain(model, mapped, Spoils())
    mapped.flush()
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")), x)
    tensors = TensorDataset(x.clone())
    explain(model, tensors, Spoils())
    assert torch.equal(tensors.tensors[0], x)


@pytest.mark.parametrize("given", ["tensor", "data set"])
def test_parts_that_were_looked_at_are_let_go(model, given):
    """Also where the engine remembers a part's outputs, which its predicted classes are of."""
    alive = []

    @dataclass(frozen=True, eq=False)
    class Watched(Explainer):
        def explain(self, sample):
            parts = []
            for start in range(N):
                part = sample.part(start, start + 1)
                parts.append(weakref.ref(part.inputs))
                yield Look(at=part)
                alive.append(sum(one() is not None for one in parts))
            return Exemplars(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))

    explain(model, images() if given == "tensor" else Items(), Watched())
    assert max(alive) <= 2


def test_other_types_are_cast_and_said_once(model, tmp_path):
    items = Items(images().double())
    found = explain(model, items, InParts())
    assert torch.equal(found.indices, explain(model, images(), InParts()).indices)
    assert sum("cast from float64" in note for note in found.meta.notes) == 1
    with pytest.raises(InputError, match="scaled and normalised"):
        explain(model, Items(torch.ones(N, 1, 6, 6, dtype=torch.uint8)), InParts())
    numbers = np.lib.format.open_memmap(tmp_path / "bytes.npy", "w+", np.uint8, (20, 3))
    numbers[:] = np.random.default_rng(0).integers(0, 255, (20, 3))
    found = explain(None, numbers, pellucid.create("mmd_critic", n_prototypes=3, n_criticisms=2))
    expected = explain(None, np.array(numbers), pellucid.create("mmd_critic", n_prototypes=3, n_criticisms=2))
    assert torch.equal(found.indices, expected.indices)


def test_photos_go_through_the_models_transform(model):
    x = torch.randint(0, 255, (N, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    class Photos(Items):
        def __getitem__(self, place):
            return Image.fromarray(self.x[place].numpy()), 0

    def transform(photo):
        return torch.from_numpy(np.array(photo))[None].float() / 255

    adapted = adapt(model, transform=transform)
    expected = explain(adapted, x[:, None].float() / 255, InParts())
    for given in (Photos(x), DataLoader(Photos(x))):
        assert torch.equal(explain(adapted, given, InParts()).indices, expected.indices)
    with pytest.raises(InputError, match=r"say pellucid\.adapt"):
        explain(model, Photos(x), InParts())


class Stopped(Items):
    """Ctrl-C comes while an example is read."""

    def __getitem__(self, place):
        if place == 8:
            raise KeyboardInterrupt
        return super().__getitem__(place)


def test_what_goes_wrong_while_a_data_set_is_read_is_told(model):
    bad = images()
    bad[[6, 11]] = torch.nan
    with pytest.raises(InputError, match=r"not finite \(NaN or infinity\) in 1 examples: \[6\]"):
        explain(model, Items(bad), InParts())
    with pytest.raises(InputError, match=r"in 1 examples: \[6\]|in 2 examples: \[6, 11\]"):
        explain(model, Items(bad), "saliency")
    with pytest.raises(InputError, match=r"one example without the axis of examples"):
        explain(model, Items(images()[0]), InParts())
    with pytest.raises(InputError, match="the data set is an empty Items"):
        explain(model, Items(images()[:0]), InParts())
    with pytest.raises(InputError, match="item 0 of the data set holds list"):
        explain(model, Items([[1.0], [2.0]]), InParts())
    with pytest.raises(TargetError):
        explain(model, Items(), InParts(), target=[0, 1])
    with pytest.raises(Interrupted):
        explain(model, Stopped(), InParts())

    class Broken(Items):
        def __getitem__(self, place):
            raise OSError(f"no file {place}")

    with pytest.raises(OSError, match="no file 0"):
        explain(model, Broken(), InParts())


def test_a_data_set_is_refused_as_a_tensor_is_though_its_bad_example_was_not_looked_at(model):
    bad = images()
    bad[12] = torch.nan

    @dataclass(frozen=True, eq=False)
    class Early(Explainer):
        def explain(self, sample):
            seen = yield Look(at=sample.part(0, 4))
            return Exemplars(seen.scores[None], torch.arange(4)[None])

    for techniques in (Early(), [Early(), InParts()]):
        for given in (bad, Items(bad)):
            with pytest.raises(InputError, match=r"\[12\]"):
                explain(model, given, techniques)


def test_a_streamed_sample_can_be_given_another_target(model):
    seen = []

    @dataclass(frozen=True, eq=False)
    class Other(Explainer):
        def explain(self, sample):
            assert isinstance(sample, Streamed)
            other = replace(sample, target=pellucid.ClassLogit(1))
            seen.append((yield Look(at=other.part(0, N))).scores)
            return Exemplars(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))

    explain(model, Items(), Other(), target=0)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], model(images())[:, 1])
