"""The guard: the model, the inputs and the process are as they were before, whatever happens."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import pellucid
from pellucid import Look
from pellucid.engine.guard import guarded


class Everything(nn.Module):
    """Train mode in parts, buffers that a forward pass changes in every way, and random numbers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("counter", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("empty", None)
        self.register_buffer("removed", torch.ones(1), persistent=False)

    def forward(self, x):
        self.counter += 1
        self.replaced = self.replaced + 1
        self.empty = torch.ones(3)
        self.removed = None
        if "added" not in self._buffers:
            self.register_buffer("added", torch.ones(1))
        torch.rand(1), np.random.rand(), random.random()
        return self.drop(self.norm(self.inner(x)))


@pytest.fixture
def everything(net):
    def make():
        model = Everything(net()).train()
        model.inner.bn.eval()
        model.inner.conv2.requires_grad_(False)
        model.inner.head.weight.grad = torch.ones_like(model.inner.head.weight)
        model.inner.relu2.register_forward_hook(lambda *_: None)
        return model

    return make


def state(model):
    """All that must stay, in a form that compares."""
    return {
        "modes": [part.training for part in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "parameters": [(id(p), p._version, p.tolist()) for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()],
        "buffers": [
            (n, None if b is None else (id(b), b.tolist()))
            for part in model.modules()
            for n, b in part._buffers.items()
        ],
        "persistent": sorted(model.state_dict()),
        "hooks": [
            (list(part._forward_hooks), list(part._forward_pre_hooks), list(part._backward_hooks))
            for part in model.modules()
        ],
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


RUNS = {
    "gradients": lambda sample: (yield Look(at=sample, gradients=["input"])),
    "layers": lambda sample: (yield Look(at=sample, activations=["auto"], gradients=["inner.conv1"])),
    "functions": lambda sample: (yield Look(at=sample.jittered(3, 0.1), activations=["inner/mean"])),
    "error": lambda sample: [(yield Look(at=sample)), 1 / 0],
}


@pytest.mark.parametrize("technique", RUNS)
def test_all_is_as_it_was(everything, images, planned, technique):
    model, x = everything(), images()
    before, version = state(model), x._version
    outcome = planned(model, x, {"one": RUNS[technique]}, 1)
    assert bool(outcome.errors) == (technique == "error")
    assert state(model) == before
    assert x._version == version
    assert x.equal(images())


def test_all_is_as_it_was_after_an_interruption(everything, images, planned):
    model = everything()

    def interrupts(sample):
        yield Look(at=sample, activations=["inner.conv1"])
        raise KeyboardInterrupt

    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        planned(model, images(), interrupts, 1)
    assert state(model) == before


def test_all_is_as_it_was_when_the_model_fails_half_way(net, images, planned):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("tired")
            return self.inner(x)

    model = Fails().train()
    before = state(model)
    with pytest.raises(pellucid.ModelError, match="tired"):
        planned(model, images(), RUNS["gradients"], 1, batch_size=1)
    assert state(model) == before


def test_the_verbs_keep_the_state_too(everything, images):
    model, x = everything(), images()
    before = state(model)
    found = pellucid.explain(model, x, ["saliency", "grad_cam", "smoothgrad"], 1)
    pellucid.evaluate(model, x, found)
    assert state(model) == before
    assert any("train mode" in note for note in found["saliency"].meta.notes)


def test_the_model_runs_in_eval_mode(images, planned):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.BatchNorm1d(432), nn.Linear(432, 3)).train()
    scores = planned(model, images(), lambda sample: (yield Look(at=sample)), 1).scores
    torch.testing.assert_close(scores, model.eval()(images())[:, 1].detach())


def test_random_numbers_depend_on_the_seed_alone(images, planned):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            return x.mean(dim=(2, 3)) + torch.rand(4) + random.random() + float(np.random.rand())

    model = Noisy()

    def passes(sample):
        return (yield Look(at=sample, activations=["auto"])).scores

    first = planned(model, images(), passes, 1, seed=3)  # finds the layers
    torch.rand(7), random.random(), np.random.rand()
    assert planned(model, images(), passes, 1, seed=3).equal(first)
    assert not planned(model, images(), passes, 1, seed=4).equal(first)


def test_modules_that_do_more_when_their_mode_changes(images, planned):
    class Merges(nn.Module):
        """Adds its update to the weight in eval mode, as low-rank adapters do."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 432))
            self.update = nn.Parameter(torch.full((3, 432), 2.0))
            self.merged = False

        def train(self, mode=True):
            super().train(mode)
            if mode == self.merged:
                self.weight.data += self.update.data * (-1 if mode else 1)
                self.merged = not mode
            return self

        def forward(self, x):
            weight = self.weight if self.merged else self.weight + self.update
            return x.flatten(1) @ weight.T

    model = nn.Sequential(Merges()).train()
    scores = planned(model, images(), lambda sample: (yield Look(at=sample)), 1).scores
    torch.testing.assert_close(scores, 3 * images().flatten(1).sum(dim=1))
    assert not model[0].merged
    assert model[0].training
    assert model[0].weight.unique().tolist() == [1.0]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_any_mode_of_the_caller(net, images, t, planned, context):
    expected = planned(net(), images(), {"s": t.saliency, "c": t.cam(), "l": t.scores}).results
    model = net()
    with context():
        x = images() + 0
        target = torch.tensor([0, 1, 2])
        found = planned(model, x, {"s": t.saliency, "c": t.cam(), "l": t.scores}).results
        planned(model, x, t.saliency, target)
        for given in (pellucid.Loss(target), pellucid.Similarity(torch.ones(4)), pellucid.Similarity(torch.ones(3, 4))):
            assert planned(model, x, t.saliency, given).isfinite().all()
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    assert (grad, inference) == (context is torch.enable_grad, context is torch.inference_mode)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_region_masks_made_under_inference_mode(images, t, planned):
    with torch.inference_mode():
        mask = torch.ones(12, 12)
    assert planned(nn.Conv2d(3, 2, 1), images(), t.saliency, pellucid.Region(1, mask)).isfinite().all()


def test_frozen_models(net, images, t, planned):
    model = net().requires_grad_(False)
    expected = planned(net(), images(), t.saliency)
    torch.testing.assert_close(planned(model, images(), t.saliency), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_inputs_that_have_a_graph(net, images, t, planned):
    x = images().requires_grad_() * 1.0
    torch.testing.assert_close(planned(net(), x, t.saliency), planned(net(), images(), t.saliency))
    leaf = images().requires_grad_()
    planned(net(), leaf, t.saliency)
    assert leaf.grad is None


@pytest.mark.parametrize("kind", ["weight", "spectral", "orthogonal", "old weight"])
def test_parametrised_weights(images, t, planned, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    if kind == "old weight":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model[3])
    else:
        norm = {"weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm,
                "orthogonal": parametrizations.orthogonal}[kind]  # fmt: skip
        norm(model[3])
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = planned(model, images(), {"s": t.saliency, "c": t.cam()}, 1)
    assert not found.errors
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    x = images().requires_grad_()
    (expected,) = torch.autograd.grad(model.eval()(x)[:, 1].sum(), x)
    torch.testing.assert_close(found.results["s"], expected, rtol=1e-4, atol=1e-6)
    loss = model.train()(images()).sum()
    loss.backward()  # the model can be trained on
    assert all(parameter.grad is not None for parameter in model[3].parameters())


def test_the_guard_itself_puts_back_what_the_block_changes(net):
    model = net().train()
    before = state(model)

    def spoil():
        with guarded(model, 0):
            assert not any(part.training for part in model.modules())
            model.bn.running_mean.add_(1)
            torch.manual_seed(9), random.seed(9), np.random.seed(9)
            model.head.weight.grad = torch.ones(4, 8)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil()
    assert state(model) == before


class Uncounted(nn.Module):
    """Changes buffers in ways that autograd does not count."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.register_buffer("table", torch.full((300, 300), torch.nan))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("swapped", torch.zeros(2, 3))
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def forward(self, x):
        self.table.data[0, 0] = 1.0
        self.steps.data.add_(1)
        self.swapped.data = torch.ones(3)
        self.sparse.mul_(2)
        norm = self.norm
        x = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
        return self.head(x.mean(dim=(2, 3)))


def test_changes_of_buffers_that_autograd_does_not_count_are_undone(images):
    model = Uncounted().eval()
    before = {name: (id(buffer), buffer.clone()) for name, buffer in model.named_buffers()}
    pellucid.explain(model, images(), "saliency", 1)
    for name, buffer in model.named_buffers():
        known, values = before[name]
        assert id(buffer) == known, name
        torch.testing.assert_close(buffer, values, rtol=0, atol=0, equal_nan=True)


def test_buffers_that_nothing_changed_are_not_written(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 2)).eval()
    model[1].register_buffer("unknown", torch.full((3,), torch.nan))
    model[1].register_buffer("sparse", torch.eye(4).to_sparse())
    versions = [buffer._version for buffer in model.buffers()]
    pellucid.explain(model, images(), ["saliency", "grad_cam"], 1)
    assert [buffer._version for buffer in model.buffers()] == versions
