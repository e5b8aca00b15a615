"""The planner: the fewest passes, and the same results in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Adapter, ClassLogit, Look, Mean, ModelError, Sum, together


class Backwards:
    """Counts the calls of `torch.autograd.grad`."""

    def __init__(self, monkeypatch):
        self.calls = 0
        real = torch.autograd.grad

        def grad(*args, **kwargs):
            self.calls += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", grad)


@pytest.fixture
def backwards(monkeypatch):
    return Backwards(monkeypatch)


def near(one, two, tolerance=1e-5):
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()))


# --- the fewest passes -----------------------------------------------------------------------------------------------


def test_one_forward_and_one_backward_serve_all_one_pass_techniques(net, images, t, planned, backwards):
    model, adapter = net(), None
    adapter = Adapter(model)
    techniques = {
        "saliency": t.saliency,
        "product": t.saliency,
        "cam": t.cam(),
        "layer_cam": t.layer_cam(),
        "named": t.cam("relu2"),
        "activations": t.activations("conv1", "head"),
        "scores": t.scores,
        "outputs": t.outputs,
    }
    planned(adapter, images(), techniques)  # "auto" is found by a pass of one example, once
    assert sorted(model.rows) == [1, 3]
    model.rows.clear()
    backwards.calls = 0
    outcome = planned(adapter, images(), techniques)
    assert not outcome.errors
    assert model.rows == [3]
    assert backwards.calls == 1
    assert (outcome.total.calls, outcome.total.forward, outcome.total.backward) == (1, 3, 3)


@pytest.mark.parametrize("target", [None, 2, [0, 1, 2], lambda out: out[:, 1] ** 2])
def test_company_changes_no_result(net, images, t, planned, target):
    techniques = {"saliency": t.saliency, "cam": t.cam("relu2"), "ig": t.integrated(), "early": t.cam("conv1")}
    outcome = planned(net(), images(), techniques, target)
    for name, technique in techniques.items():
        near(planned(net(), images(), technique, target), outcome.results[name])


def test_results_are_those_of_autograd(net, images, t, planned):
    model, x = net().double(), images(dtype=torch.float64)
    found = planned(model, x, {"saliency": t.saliency, "scores": t.scores, "ig": t.integrated(7)}, [1, 0, 3]).results
    for row, wanted in enumerate([1, 0, 3]):
        one = x[row : row + 1].clone().requires_grad_()
        score = model(one)[0, wanted]
        assert found["scores"][row] == pytest.approx(score.item(), abs=1e-12)
        near(found["saliency"][row], torch.autograd.grad(score, one)[0][0], 1e-12)
        slopes = []
        for step in range(7):
            point = (x[row : row + 1] * (step + 0.5) / 7).requires_grad_()
            slopes.append(torch.autograd.grad(model(point)[0, wanted], point)[0][0])
        near(found["ig"][row], x[row] * torch.stack(slopes).mean(dim=0), 1e-6)  # alphas are single numbers


def test_several_targets_share_one_forward(net, images, t, planned, backwards):
    model = net()
    targets = [ClassLogit(0), ClassLogit(2), ClassLogit()]
    seen = planned(model, images(), t.look(gradients=["input", "conv2"], targets=targets))
    assert model.rows.count(3) == 1
    assert seen.scores.shape == (3, 3)
    assert seen.gradients["input"].shape == (3, 3, 3, 12, 12)
    for index, target in enumerate((0, 2, None)):
        near(seen.gradients["input"][index], planned(net(), images(), t.saliency, target))
        near(seen.gradients["conv2"][index], planned(net(), images(), t.gradients("conv2"), target)["conv2"])
        near(seen.scores[index], planned(net(), images(), t.scores, target))


def test_different_samples_go_through_the_model_together(net, images, t, planned):
    model = net()

    def scaled(scale):
        return t.look(at=lambda sample: sample.at(sample.inputs * scale), gradients=["input"])

    outcome = planned(model, images(), {"half": scaled(0.5), "double": scaled(2), "plain": scaled(1)}, 1)
    assert model.rows == [9]
    for name, scale in (("half", 0.5), ("double", 2)):
        near(outcome.results[name].gradients["input"], planned(net(), images() * scale, t.saliency, 1))


def test_equal_derived_samples_are_shown_once(net, images, t, planned):
    model = net()
    techniques = {"mean": t.smooth(fold=Mean), "moments": t.smooth(), "kept": t.look(at=lambda s: s.jittered(4, 0.1))}
    outcome = planned(model, images(), techniques, 1, batch_size=100)
    assert model.rows == [12]
    near(outcome.results["mean"][0], outcome.results["moments"][0])
    assert outcome.results["kept"].scores.shape == (4, 3)
    model.rows.clear()
    planned(model, images(), {"one": t.smooth(4), "other": t.smooth(5)}, 1, batch_size=100)
    assert sum(model.rows) == 27


def test_what_a_technique_costs_alone_is_counted_beside_what_all_cost(net, images, t, planned):
    techniques = {"saliency": t.saliency, "cam": t.cam("relu2"), "scores": t.scores}

    def twice(sample):
        return (yield from together(t.saliency(sample), t.cam("relu2")(sample)))

    outcome = planned(net(), images(), {**techniques, "twice": twice}, 1)
    assert (outcome.total.forward, outcome.total.backward) == (3, 3)
    assert set(outcome.results) == {*techniques, "twice"}


def test_progress_is_told(net, images, t):
    from pellucid.engine.drive import Drive
    from pellucid.engine.guard import guarded
    from pellucid.engine.inputs import make_sample
    from pellucid.engine.passes import Engine
    from pellucid.engine.planner import Planner

    told: list[tuple[int, int]] = []
    model = net()
    with guarded(model, 0):
        engine = Engine(Adapter(model))
        sample, _ = make_sample(engine, images(), 1, 0)
        planner = Planner(engine, 2, lambda done, known: told.append((done, known)))
        planner.run({"ig": Drive(t.integrated(3)(sample))})
    assert told == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]


# --- graphs ----------------------------------------------------------------------------------------------------------


def saved(run) -> list[torch.Size]:
    """The shapes of all tensors that autograd saved."""
    shapes = []

    def pack(tensor):
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return shapes


def test_forwards_without_gradients_build_no_graph(net, images, t, planned):
    adapter, graphs = Adapter(net()), []
    techniques = {"activations": t.activations("conv1", "relu2"), "scores": t.scores}
    planned(adapter, images(), techniques, 1)  # finds the layers, by a pass with a graph
    adapter.module.head.register_forward_hook(lambda part, args, out: graphs.append(out.requires_grad))
    assert saved(lambda: planned(adapter, images(), techniques, 1)) == []
    assert graphs == [False]


def test_the_graph_starts_at_the_layer_whose_gradient_is_wanted(net, images, t, planned):
    adapter = Adapter(net())
    techniques = {"cam": t.cam("relu2"), "early": t.activations("conv1", "bn"), "scores": t.scores}
    planned(adapter, images(), techniques, 1)  # finds the layers
    shapes = saved(lambda: planned(adapter, images(), techniques, 1))
    assert shapes  # the head's
    assert all(len(shape) < 4 for shape in shapes), "a convolution's input was saved"
    shapes = saved(lambda: planned(adapter, images(), {**techniques, "saliency": t.saliency}, 1))
    assert any(shape == (3, 3, 12, 12) for shape in shapes)


def test_no_gradient_is_computed_for_parameters(net, images, t, planned):
    model = net()
    flags = []
    model.head.register_forward_hook(
        lambda part, args, out: flags.append(any(p.requires_grad for p in model.parameters()))
    )
    planned(model, images(), t.saliency)
    assert flags == [False]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000, "auto"])
def test_any_batch_size_gives_the_same(net, images, t, planned, batch_size):
    stripes = torch.eye(4).repeat_interleave(3, dim=1).reshape(4, 1, 12, 1)
    techniques = {
        "saliency": t.saliency,
        "cam": t.cam("relu2"),
        "ig": t.integrated(),
        "noise": lambda sample: (yield Look(at=sample.jittered(5, 0.1), outputs=True, gradients=["conv2"])).gradients[
            "conv2"
        ],
        "sum": lambda sample: (
            (yield Look(at=sample.masked(4, stripes), fold=Sum(lambda part: part.scores * (part.draws + 1)))).folded
        ),
    }
    found = planned(net(), images(5), techniques, batch_size=batch_size)
    expected = planned(net(), images(5), techniques, batch_size=5)
    assert not found.errors
    for name in techniques:
        near(found.results[name], expected.results[name])


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_one_example_does_not_depend_on_the_others(net, images, t, planned, batch_size):
    techniques = {"cam": t.cam("relu2"), "smooth": t.smooth(3, Mean), "ig": t.integrated()}
    whole = planned(net(), images(4), techniques, batch_size=batch_size).results
    alone = planned(net(), images(4)[2:3], techniques, batch_size=batch_size).results
    near(whole["cam"][2:3], alone["cam"])
    near(whole["smooth"][0][2:3], alone["smooth"][0])
    near(whole["ig"][2:3], alone["ig"])


def test_batches_have_the_size_that_was_asked(net, images, t, planned):
    model = net()
    planned(model, images(4), t.integrated(5), 1, batch_size=7)
    assert model.rows == [7, 7, 6]


class Limited(nn.Module):
    """Runs out of memory above some rows."""

    def __init__(self, inner, most, error):
        super().__init__()
        self.inner, self.most, self.error = inner, most, error
        self.done = 0

    def forward(self, x):
        if len(x) > self.most:
            raise self.error
        self.done += len(x)
        return self.inner(x)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 11])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_goes_on_with_smaller_batches_and_no_row_twice(net, images, t, planned, most, error):
    model = Limited(net(), most, error).eval()
    techniques = {"ig": t.integrated(6), "saliency": t.saliency, "kept": t.look(at=lambda s: s.jittered(3, 0.1))}
    outcome = planned(model, images(4), techniques, 1)
    assert not outcome.errors
    expected = planned(net(), images(4), techniques, 1)
    near(outcome.results["ig"], expected.results["ig"])
    near(outcome.results["saliency"], expected.results["saliency"])
    near(outcome.results["kept"].scores, expected.results["kept"].scores)
    assert outcome.total.forward == expected.total.forward
    assert model.done - outcome.total.forward in (0, 1)  # finding out what an example takes is a pass of one


def test_out_of_memory_for_one_example_is_told(net, images, t, planned):
    with pytest.raises(ModelError, match="memory does not suffice for a single example"):
        planned(Limited(net(), 0, torch.OutOfMemoryError("no memory")).eval(), images(), t.saliency, 1)


# --- through the front door ------------------------------------------------------------------------------------------


def test_the_five_one_pass_techniques_take_one_forward_and_one_backward(net, images, backwards):
    model = net()
    names = ["saliency", "input_x_gradient", "grad_cam", "layer_cam", pellucid.create("activations", layer="conv2")]
    pellucid.explain(model, images(), names)  # "auto" is found by a pass of one example, once for a model
    model.rows.clear()
    backwards.calls = 0
    found = pellucid.explain(model, images(), names)
    assert model.rows == [3]
    assert backwards.calls == 1
    assert set(found) == {"saliency", "input_x_gradient", "grad_cam", "layer_cam", "activations"}
    assert found["grad_cam"].meta.passes == {"forward": 1, "backward": 1}
    assert found["grad_cam"].meta.shared


def test_noisy_techniques_share_their_draws(net, images, backwards):
    model = net()
    options = {"n_samples": 6, "noise": 0.1}
    both = [pellucid.create("smoothgrad", **options), pellucid.create("vargrad", **options)]
    found = pellucid.explain(model, images(2), both, 1, batch_size=100)
    assert sum(model.rows) == 12
    for technique in both:
        alone = pellucid.explain(net(), images(2), technique, 1)
        near(found[alone.meta.technique].values, alone.values)


@pytest.mark.parametrize("batch_size", [1, 2, 7, "auto"])
def test_techniques_of_the_house_do_not_depend_on_the_batch_size(net, images, batch_size):
    names = ["integrated_gradients", "smoothgrad", "occlusion", "rise", "score_cam", "expected_gradients"]
    available = {technique.name for technique in pellucid.techniques("explainer")}
    names = [name for name in names if name in available]
    found = pellucid.explain(net(), images(), names, batch_size=batch_size)
    expected = pellucid.explain(net(), images(), names, batch_size=16)
    for name in names:
        near(found[name].values, expected[name].values, 1e-4)
