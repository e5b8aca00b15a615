"""Training data that are read block by block, and runs that were interrupted and go on."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pellucid
from pellucid import Blocks, InputError, Interrupted, Loss, SavedFileError, Trainer, create, digest, explain
from pellucid_influence import training

ALL = {
    "ntk_influence": {},
    "tracin": {},
    "trak": {},
    "trak, projected": {"projection": 64},
    "influence_functions": {},
    "influence_functions, low rank": {"curvature": "gauss_newton", "rank": 20, "damping": 0.1},
    "influence_functions, explicit": {"curvature": "gauss_newton", "damping": 0.1},
    "influence_functions, cg": {"solver": "cg"},
    "influence_functions, lissa": {"solver": "lissa", "batch_size": 41},
    "influence_functions, ek_fac": {"solver": "ek_fac"},
    "ntk_influence, surrogate": {"surrogate": True},
    "influence_control": {},
}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()


def images(n=41, q=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n + q, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x[:n], torch.arange(n) % 3, x[n:]


class Made(Dataset):
    """Images that are made as they are asked for; it notes how many are held at once at most."""

    def __init__(self):
        self.x, self.y, _ = images()
        self.asked = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        self.asked.append(place)
        return self.x[place], int(self.y[place])


@pytest.fixture
def blocks_of_five(monkeypatch):
    monkeypatch.setattr(training, "block_rows", lambda factors, budget=0: 5)
    monkeypatch.setattr(training, "LOOK", 5)
    monkeypatch.setattr(training, "PANEL_BYTES", 40_000)


@pytest.mark.parametrize("name", ALL)
def test_a_data_set_in_blocks_gives_what_tensors_give(name, blocks_of_five):
    x, y, q = images()
    technique, options = name.split(",")[0], ALL[name]
    whole = explain(net(), q, create(technique, train=(x, y), **options), target=1)
    for train in (Made(), DataLoader(Made(), batch_size=3, shuffle=True)):
        found = explain(net(), q, create(technique, train=train, **options), target=1)
        assert torch.allclose(found.values, whole.values, rtol=1e-9)
        if whole.self_influence is not None:
            assert torch.allclose(found.self_influence, whole.self_influence)
        assert found.train_labels.tolist() == y.tolist()
        assert found.train is None


def test_a_memory_mapped_array_is_read_in_blocks(tmp_path, monkeypatch, blocks_of_five):
    x, y, q = images()
    whole = explain(net(), q, create("ntk_influence", train=(x, y)), target=1)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r"), np.load(tmp_path / "y.npy", mmap_mode="r")
    read = []
    plain = np.memmap.__getitem__

    def noted(self, index):
        read.append(len(index))
        return plain(self, index)

    technique = create("ntk_influence", train=mapped)
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "__getitem__", noted)
        found = explain(net(), q, technique, target=1)
    assert torch.allclose(found.values, whole.values)
    assert max(read) == 5
    assert sum(read) == len(x)
    assert found.train is None


def test_no_example_is_read_twice_for_the_tangent_kernel(blocks_of_five):
    train = Made()
    explain(net(), images()[2], create("ntk_influence", train=train), target=1)
    assert train.asked == list(range(41))


def test_bad_data_sets():
    _, _, q = images()

    class Endless(IterableDataset):
        def __iter__(self):
            yield from ()

    class Lone(Made):
        def __getitem__(self, place):
            return self.x[place]

    class Late(Made):
        def __getitem__(self, place):
            return (self.x[place] * (torch.nan if place == 30 else 1), int(self.y[place]))

    class Large(Made):
        def __getitem__(self, place):
            return torch.zeros(1, 7, 7), 0

    for train, told in ((Endless(), "without a length"), (DataLoader(Endless()), "without a length"), (7, "int")):
        with pytest.raises(InputError, match=told):
            create("ntk_influence", train=train)
    for train, told in ((Lone(), "pairs"), (Late(), "finite"), (Large(), "shape")):
        with pytest.raises(InputError, match=told):
            explain(net(), q, create("ntk_influence", train=train), target=1)
    tensors = TensorDataset(*images()[:2])
    assert explain(net(), q, create("ntk_influence", train=DataLoader(tensors)), target=1).values.shape == (4, 41)


class Stopped(Made):
    """Ctrl-C comes while an example is read."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __getitem__(self, place):
        if place == self.at:
            raise KeyboardInterrupt
        return super().__getitem__(place)


def forwards(found):
    """How many examples went through the model."""
    return round(found.meta.passes["forward"] * len(found))


@pytest.mark.parametrize("name", ["ntk_influence", "tracin"])
def test_an_interrupted_run_goes_on_where_it_stood(name, tmp_path, blocks_of_five):
    _, _, q = images()
    states = {"checkpoints": [net(0).state_dict(), net(1).state_dict()]} if name == "tracin" else {}
    whole = explain(net(), q, create(name, train=Made(), **states), target=Loss(torch.tensor([0, 1, 2, 0])))

    def run(train, model=None, target=(0, 1, 2, 0), **options):
        technique = create(name, train=train, folder=tmp_path / "blocks", **{**states, **options})
        return explain(net() if model is None else model, q, technique, target=Loss(torch.tensor(target)))

    with pytest.raises(Interrupted):
        run(Stopped(at=23))
    kept = sorted(path.name for path in (tmp_path / "blocks").iterdir())
    assert len(kept) == 4  # those of five examples each that were finished
    assert all(part.endswith(".safetensors") for part in kept)

    again = run(Made())
    assert torch.equal(again.values, whole.values)
    assert torch.equal(again.self_influence, whole.self_influence)
    assert [check.value for check in again.checks] == pytest.approx([check.value for check in whole.checks])
    assert forwards(again) == forwards(whole) - 20
    assert forwards(run(Made())) == 4 * max(1, len(states.get("checkpoints", [])))  # only the queries

    # What has changed is computed anew: the model, the target, the parameters, or one example.
    others = Made()
    others.x = others.x.clone()
    others.x[7] += 1
    assert forwards(run(others)) == forwards(run(Made())) + 5 * max(1, len(states.get("checkpoints", [])))
    if name == "ntk_influence":
        assert torch.allclose(run(Made(), net(3)).values, explain(
            net(3), q, create(name, train=Made()), target=Loss(torch.tensor([0, 1, 2, 0]))
        ).values)  # fmt: skip
    assert forwards(run(Made(), target=(2, 1, 2, 0))) == forwards(whole)
    assert forwards(run(Made(), parameters=("0.*",))) == forwards(whole)


def test_trainings_are_kept_and_found_again(tmp_path, monkeypatch):
    """Leaving out, stopped in its middle, goes on; another recipe or other data are trained anew."""
    x, y, q = images(12)
    trainings = []
    fit = Trainer._fit

    def noted(self, model, kept, seed):
        if len(trainings) == 5:
            trainings.append("stopped")
            raise KeyboardInterrupt
        trainings.append(int((~kept).sum()))
        fit(self, model, kept, seed)

    def trainer(**changed):
        options = {"inputs": x, "labels": y, "epochs": 1, "batch_size": 4, "folder": tmp_path, **changed}
        return Trainer(net, **options)

    whole = explain(net(), q, create("leave_one_out", trainer=trainer(folder=None)), target=0)
    monkeypatch.setattr(Trainer, "_fit", noted)
    with pytest.raises(Interrupted):
        explain(net(), q, create("leave_one_out", trainer=trainer()), target=0)
    assert len(list(tmp_path.iterdir())) == 5
    found = explain(net(), q, create("leave_one_out", trainer=trainer()), target=0)
    assert torch.equal(found.values, whole.values)
    assert len(trainings) == 6 + 8
    trainer().weights(seed=1)
    for changed in ({"epochs": 2}, {"learning_rate": 0.2}, {"inputs": x + 1}, {"labels": y.flip(0)}):
        before = len(trainings)
        trainer(**changed).weights(seed=1)
        trainer(**changed).weights(seed=1)
        assert len(trainings) == before + 1


def test_blocks_that_cannot_be_kept_or_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SavedFileError, match="cannot write"):
        Blocks(tmp_path / "file").keep("a", {"x": torch.zeros(2)})
    kept = Blocks(tmp_path)
    assert kept.found("a") is None
    kept.keep("a", {"x": torch.arange(3.0).expand(2, 3)})
    assert torch.equal(kept.found("a")["x"], torch.arange(3.0).expand(2, 3))
    (tmp_path / "a.safetensors").write_text("damaged")
    with pytest.raises(SavedFileError, match="damaged"):
        kept.found("a")
    assert not Blocks(None)
    Blocks(None).keep("a", {})


def test_a_digest_tells_apart_what_differs():
    tensor = torch.arange(6.0)
    same = digest({"b": tensor, "a": 1}, [2, "x"])
    assert same == digest({"a": 1, "b": tensor.clone()}, [2, "x"])
    others = (
        ({"b": tensor.reshape(2, 3), "a": 1}, [2, "x"]),
        ({"b": tensor.int(), "a": 1}, [2, "x"]),
        ({"b": tensor + 1e-6 * (tensor == 5), "a": 1}, [2, "x"]),
        ({"b": tensor, "a": 1}, [2], "x"),
        ({"b": tensor, "c": 1}, [2, "x"]),
    )
    assert len({same, *(digest(*other) for other in others)}) == 6
    assert digest(torch.zeros(3, dtype=torch.bfloat16)) != digest(torch.zeros(3, dtype=torch.float16))
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
    assert pellucid.Blocks is Blocks
