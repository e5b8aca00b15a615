"""Data sets of which some examples at a time are read, and training examples beside queries."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pellucid import ClassLogit, InputError, Loss, Sample, Source, Training

N = 9


def pairs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 2, 3, generator=generator), torch.arange(N) % 4


class Items(Dataset):
    """Items that are made as they are asked for; it notes which."""

    def __init__(self, make, count=N):
        self.make, self.count, self.asked = make, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        self.asked.append(place)
        return self.make(place)


class Halved(TensorDataset):
    """Items that are made of the tensors."""

    def __getitem__(self, place):
        x, y = super().__getitem__(place)
        return x / 2, y


class Transformed(Dataset):
    """As `Halved`, of a data set that keeps its tensors by the name that a TensorDataset does."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return N

    def __getitem__(self, place):
        return self.tensors[0][place] / 2, self.tensors[1][place]


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


class Counted(Endless):
    def __len__(self):
        return N


def swapped(batch):
    """A collate_fn of items whose label comes first."""
    return torch.stack([x for _, x in batch]), torch.tensor([y for y, _ in batch])


def forms(folder):
    """The same data in every form, by name."""
    x, y = pairs()
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "y.npy", y.int().numpy())
    read_only, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    return {
        "tensors": (x, y),
        "list": [x, y],
        "arrays": (x.numpy(), y.numpy()),
        "mapped": (read_only, labels),
        "a view of mapped": (np.load(folder / "x.npy", mmap_mode="r+")[:], y),
        "TensorDataset": TensorDataset(x, y),
        "Dataset": Items(lambda place: (x[place], int(y[place]))),
        "Dataset of arrays": Items(lambda place: (read_only[place], labels[place])),
        "DataLoader": DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True),
        "DataLoader, collated": DataLoader(Items(lambda place: (int(y[place]), x[place])), collate_fn=swapped),
        "DataLoader without batches": DataLoader(Items(lambda place: (x[place], int(y[place]))), batch_size=None),
        "Dataset that keeps tensors": Transformed((x * 2, y)),
        "TensorDataset with items of its own": Halved(x * 2, y),
        "arrays turned round": (x.flip(0, 2).numpy()[::-1, :, ::-1], y.flip(0).numpy().astype(np.uint64)[::-1]),
    }


def test_every_form_of_a_data_set_is_read_alike(tmp_path):
    x, y = pairs()
    places = torch.tensor([7, 0, 3])
    for name, given in forms(tmp_path).items():
        source = Source.of(given, labelled=True)
        inputs, labels = source.read(places)
        assert (source.count, inputs.dtype, labels.dtype) == (N, torch.float32, torch.int64), name
        assert torch.equal(inputs, x[places]), name
        assert torch.equal(labels, y[places]), name
        held = name in ("tensors", "list", "arrays", "TensorDataset", "arrays turned round")
        assert (source.inputs is not None) == held, name
        assert (source.labels is not None) == (held or "mapped" in name), name
        if "collated" not in name:
            alone = Source.of(given)
            assert torch.equal(alone.read(places)[0], x[places]), name
            assert (alone.read(places)[1], alone.labels) == (None, None)
            assert alone.digest() == Source.of(x).digest()
    assert Source.of(x + 1).digest() != Source.of(x).digest()


def test_what_is_read_is_the_readers_own(tmp_path):
    for name, given in forms(tmp_path).items():
        Source.of(given, labelled=True).read(torch.arange(N))[0].zero_()
        again = Source.of(given, labelled=True).read(torch.arange(N))[0]
        assert torch.equal(again, pairs()[0]), name


def test_inputs_alone_are_a_data_set_where_no_labels_are_needed():
    x, _ = pairs()
    for given in (x, x.numpy(), TensorDataset(x), Items(lambda place: x[place]), DataLoader(Items(lambda p: x[p]))):
        assert torch.equal(Source.of(given).read(torch.tensor([2, 5]))[0], x[[2, 5]])
        with pytest.raises(InputError, match=r"expected .*label"):
            Source.of(given, labelled=True).read(torch.tensor([2]))


@pytest.mark.parametrize(
    ("given", "labelled", "message"),
    [
        (7, False, "set is a int; expected inputs"),
        ("data", False, "set is a str"),
        ({"x": torch.ones(3, 2)}, False, "set is a dict"),
        ([], False, "set is a list"),
        (torch.ones(4), False, r"has inputs \(4,\)"),
        (torch.ones(0, 3), False, r"has inputs \(0, 3\)"),
        (np.array([["a"]]), False, "ndarray is no tensor"),
        ([torch.ones(4, 2)] * 3, False, "set is a list"),
        (Endless(), False, "Endless without a length"),
        (Counted(), False, "Counted without a length, or without items by their places"),
        (DataLoader(Endless()), True, "Endless without a length"),
        (Items(None, 0), True, "empty Items"),
        (torch.ones(4, 2), True, "set is a Tensor; expected .inputs, labels."),
        ((torch.ones(4, 2), torch.ones(3)), True, r"\(4, 2\) and labels \(3,\)"),
        ((torch.ones(4, 2), torch.tensor(1)), True, r"labels \(\)"),
        ((torch.ones(2, 2), torch.tensor([0, -1])), True, "a label of the set is -1"),
        ((torch.ones(2, 2), torch.tensor([0, torch.nan])), True, "some labels of the set are not finite"),
    ],
)
def test_what_is_no_data_set_is_told_at_once(given, labelled, message):
    with pytest.raises(InputError, match=message):
        Source.of(given, "the set", labelled=labelled)


@pytest.mark.parametrize(
    ("given", "labelled", "message"),
    [
        (Items(lambda place: "abc"), False, "item 1 of the set holds str; expected a tensor"),
        (Items(lambda place: torch.ones(2)), True, "item 1 of the set holds Tensor; expected pairs"),
        (Items(lambda place: (torch.ones(2), 0, 1)), True, "holds Tensor, int, int"),
        (Items(lambda place: ()), False, "holds nothing"),
        (Items(lambda place: (torch.ones(place), 0)), True, r"shapes \[\(1,\), \(4,\)\]"),
        (Items(lambda place: (torch.ones(2), "cat")), True, "a str is no tensor"),
        (Items(lambda place: (torch.ones(2), -place)), True, "a label of the set is -4"),
        (Items(lambda place: (torch.ones(2), float("inf"))), True, "not finite"),
        (DataLoader(Items(lambda place: 1), collate_fn=lambda batch: batch[0]), False, "collate_fn makes holds int"),
        (DataLoader(Items(lambda place: 1), collate_fn=lambda _: torch.ones(3, 2)), False, "of 2 items"),
    ],
)
def test_what_is_no_example_is_told_as_it_is_read(given, labelled, message):
    with pytest.raises(InputError, match=message):
        Source.of(given, "the set", labelled=labelled).read(torch.tensor([1, 4]))


def queries():
    return Sample(torch.zeros(2, 2, 3, dtype=torch.float64), ClassLogit(1))


def test_training_examples_are_samples_for_the_queries_model():
    x, y = pairs()
    items = Items(lambda place: (x[place], int(y[place])))
    train = Training(Source.of(items, labelled=True), queries(), Loss)
    part = train.part(2, 5)
    assert (len(train), len(part), part.inputs.dtype) == (N, 3, torch.float64)
    assert torch.equal(part.inputs, x[2:5].double())
    assert part.target.labels.tolist() == y[2:5].tolist()
    assert torch.equal(train[torch.tensor([8, 1])].inputs, x[[8, 1]].double())
    assert items.asked == [2, 3, 4, 8, 1]
    assert train.labels.tolist() == y.tolist()  # of those that were not read yet, in their order
    assert items.asked[5:] == [0, 5, 6, 7]
    assert train.held is None
    assert Training(Source.of(x), queries()).part(0, 2).target.classes == 1
    real = Training(Source.of((x, y.float()), labelled=True), queries(), Loss)
    assert real[3:4].target.labels.dtype == torch.float64


def test_what_is_in_memory_is_checked_at_once():
    x, y = pairs()
    x[4, 0, 0] = torch.inf
    for wrong, message in ((x, "not finite"), (x[:, :1], "shape")):
        with pytest.raises(InputError, match=f"the training inputs .*{message}"):
            Training(Source.of((wrong, y), labelled=True), queries(), Loss).check()
        late = Training(Source.of(Items(lambda place, x=wrong: (x[place], 0)), labelled=True), queries(), Loss)
        late.check()
        with pytest.raises(InputError, match=message):
            late.part(3, 6)
