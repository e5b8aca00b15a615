"""Runs that were interrupted go on where they stood, to the same bits, and nothing old is taken for what is asked."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from pellucid import Blocks, Interrupted, Trainer, Unsuitable, adapt, create, explain
from pellucid_influence import curvature, progress, training

N, QUERIES = 41, 4


class Net(nn.Sequential):
    """It counts the examples that go through it."""

    rows = 0

    def forward(self, x):
        self.rows += len(x)
        return super().forward(x)


def net(seed=0):
    torch.manual_seed(seed)
    return Net(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()


def images():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N + QUERIES, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x[:N], torch.arange(N) % 3, x[N:]


class Made(Dataset):
    """Images that are made as they are asked for; Ctrl-C comes after so many."""

    def __init__(self, stop=None, changed=False):
        self.x, self.y, _ = images()
        self.x[7] += changed
        self.read, self.stop = 0, stop

    def __len__(self):
        return N

    def __getitem__(self, place):
        if self.read == self.stop:
            raise KeyboardInterrupt
        self.read += 1
        return self.x[place], int(self.y[place])


# What each is asked, another setting, and how many examples a finished run still looks at: the queries, and what is
# held against blocks or makes no kept part.
STATES = [net(3).state_dict(), net(4).state_dict()]
TECHNIQUES = {
    "trak": ({"models": STATES}, {"models": STATES[:1]}, 2 * QUERIES),
    "trak, projected": ({"projection": 8, "models": STATES}, {"projection": 9}, 2 * QUERIES),
    "ntk_influence, surrogate": ({"surrogate": True}, {"parameters": ("0.*",)}, 5 * QUERIES + N),
    "influence_functions": ({}, {"parameters": ("3.*",)}, QUERIES),
    "influence_functions, low rank": (
        {"curvature": "gauss_newton", "rank": 20, "damping": 0.1}, {"rank": 21}, QUERIES + N,
    ),
    "influence_functions, explicit": ({"curvature": "gauss_newton", "damping": 0.1}, {"damping": 0.2}, QUERIES),
    "influence_functions, cg": ({"solver": "cg", "n_steps": 4}, {"n_steps": 5}, QUERIES),
    "influence_functions, lissa": ({"solver": "lissa", "n_steps": 9, "batch_size": 7}, {"n_steps": 10}, QUERIES),
    "influence_functions, ek_fac": ({"solver": "ek_fac"}, {"curvature": "gauss_newton"}, QUERIES),
}  # fmt: skip
SUMS = [name for name in TECHNIQUES if name.split(" ")[-1] in ("explicit", "cg", "lissa", "ek_fac")]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of five examples, of which fifteen are held against the others; all is written as soon as it is there."""
    monkeypatch.setattr(training, "block_rows", lambda factors: 5)
    monkeypatch.setattr(training, "LOOK", 5)
    monkeypatch.setattr(training, "PANEL_BYTES", 10_000)
    monkeypatch.setattr(curvature, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "SHARE", 0)


def run(name, folder, train=None, model=None, queries=None, target=1, **changed):
    """What is found, and how many examples the model was shown."""
    options = {**TECHNIQUES[name][0], **changed}
    model = net() if model is None else model
    technique = create(name.split(",")[0], train=Made() if train is None else train, folder=folder, **options)
    return explain(model, images()[2] if queries is None else queries, technique, target=target), model


def same(one, other):
    return torch.equal(one.values, other.values) and (
        one.self_influence is None or torch.equal(one.self_influence, other.self_influence)
    )


def looked_at(found):
    """How many examples were."""
    return round(found.meta.passes["forward"] * len(found))


def goes_on(name, folder, left, anew):
    counted = Made()
    plain, _ = run(name, None)
    whole, model = run(name, folder / "whole", counted)
    assert same(whole, plain)
    stopped = net()
    with pytest.raises(Interrupted):
        run(name, folder / "blocks", Made(stop=counted.read * 7 // 10), stopped)
    assert all(path.suffix == ".safetensors" for path in (folder / "blocks").iterdir())
    again, resumed = run(name, folder / "blocks")
    assert same(again, plain)
    assert [check.value for check in again.checks] == pytest.approx([check.value for check in plain.checks])
    assert stopped.rows + resumed.rows <= model.rows + left + anew
    assert resumed.rows < 0.75 * model.rows
    assert looked_at(run(name, folder / "blocks")[0]) == left


def nothing_old_is_taken(name, folder):
    run(name, folder)
    for changed in (
        {"model": net(1)},
        {"train": Made(changed=True)},
        {"queries": images()[2].flip(3)},
        {"target": 2},
        TECHNIQUES[name][1],
    ):
        assert same(run(name, folder, **changed)[0], run(name, None, **changed)[0])


@pytest.mark.parametrize("name", TECHNIQUES)
def test_an_interrupted_run_goes_on_where_it_stood(name, tmp_path, small_blocks):
    # At most fifteen examples are held, and a block is looked at when Ctrl-C comes; three are the engine's own checks.
    goes_on(name, tmp_path, TECHNIQUES[name][2], anew=15 + 5 + 3)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_nothing_old_is_taken_for_what_is_asked(name, tmp_path, small_blocks):
    nothing_old_is_taken(name, tmp_path)


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_rows_that_do_not_fit_in_memory_go_on(name, tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(curvature, "PANEL_BYTES", 0)
    residual = N * name.endswith("lissa")  # is computed in the end
    goes_on(name, tmp_path, TECHNIQUES[name][2] + residual, anew=N)  # a step of conjugate gradients is all examples
    nothing_old_is_taken(name, tmp_path / "changed")


def test_techniques_may_share_a_folder(tmp_path, small_blocks):
    """Of the same examples one asks the losses' gradients, another the margins', a third the outputs'."""
    for name, options in (*((name, {}) for name in TECHNIQUES), ("trak", {"models": None})):
        assert same(run(name, tmp_path, **options)[0], run(name, None, **options)[0])


def test_progress_is_written_now_and_then_and_when_all_is_done(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    blocks = Blocks(tmp_path)

    def begun():
        total = torch.zeros(1)
        return total, progress.Progress(blocks, "a", {"total": total})

    total, one = begun()
    for step in range(1, 26):
        now[0] += 1
        total += 1
        one.reached(step)
    total, two = begun()
    assert (two.done, float(total)) == (20, 20)  # the tenth and the twentieth second
    total += 1
    two.reached(21, finished=True)
    total, three = begun()
    assert (three.done, float(total)) == (21, 21)
    nothing = progress.Progress(Blocks(None), "a", {"total": total})
    nothing.reached(5, finished=True)
    assert begun()[1].done == 21


class Stopping(Trainer):
    """Ctrl-C comes after so many steps."""

    def losses(self, outputs, labels):
        if len(steps) == stop[0]:
            raise KeyboardInterrupt
        steps.append(len(outputs))
        return super().losses(outputs, labels)


steps: list[int] = []
stop: list[int | None] = [None]


def mlp(seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_unrolling_goes_on_where_it_stood(optimizer, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "SHARE", 0)
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def unrolled(folder, after=None, queries=x[20:], target=1, seeds=(3,), **changed):
        """What is found, and how many steps were taken."""
        options = {"inputs": x[:20], "labels": torch.arange(20) % 3, "learning_rate": 0.05, "momentum": 0.5, **changed}
        trainer = Stopping(options.pop("make", mlp), optimizer=optimizer, epochs=4, batch_size=5, **options)
        steps.clear()
        stop[0] = after
        found = explain(mlp(), queries, create("unrolled", trainer=trainer, seeds=seeds, folder=folder), target=target)
        return found, len(steps)

    plain, whole = unrolled(None)
    assert whole == 3 * 16  # there, once more by stretches of four, and back
    for name, after in (("there", 10), ("back", 37)):
        with pytest.raises(Interrupted):
            unrolled(tmp_path / name, after)
        again, rest = unrolled(tmp_path / name)
        assert same(again, plain)
        assert rest == whole - {"there": 8, "back": 32}[name]  # the stretches that were finished
        assert same(unrolled(tmp_path / name)[0], plain)
        assert unrolled(tmp_path / name)[1] == 0

    for changed in (
        {"queries": x[20:] + 1}, {"target": 0}, {"seeds": (4,)}, {"inputs": x[:20] + 1}, {"learning_rate": 0.06},
        {"labels": torch.arange(20) % 2}, {"make": lambda: mlp(8)},
    ):  # fmt: skip
        assert same(unrolled(tmp_path / "there", **changed)[0], unrolled(None, **changed)[0])


def test_what_was_refused_while_unrolling_is_refused_again(tmp_path):
    """Statistics that training changes are seen also where some of it was kept."""

    def normed():
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()

    x = torch.randn(20, 5, dtype=torch.float64)
    trainer = Trainer(normed, x, torch.arange(20) % 3, epochs=1, batch_size=5)
    for _ in range(2):
        with pytest.raises(Unsuitable, match="BatchNorm"):
            explain(normed(), x[:2], create("unrolled", trainer=trainer, folder=tmp_path), target=0)


@pytest.mark.parametrize("name", ["trak, projected", "influence_functions, cg"])
def test_what_is_kept_is_of_the_output_that_counts(name, tmp_path, small_blocks):
    """What is kept of the training examples depends on no query, but on which output their loss is of."""

    class Heads(Net):
        def forward(self, x):
            logits = super().forward(x)
            return logits, logits.flip(1) * 2

    torch.manual_seed(0)
    model = Heads(*net())
    for output in (0, 1, lambda made: made[0], lambda made: made[1]):
        queries = adapt(model, output=output)
        options = {"models": None} if name.startswith("trak") else {}
        assert same(run(name, tmp_path, model=queries, **options)[0], run(name, None, model=queries, **options)[0])
