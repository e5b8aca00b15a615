"""Models of every form: how often they use a part, and how their gradients are made."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid import Adapter, Look, Mean, ModelError, Unsuitable


def near(one, two, tolerance=1e-5):
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()) + 1e-12)


def gradient(function, x, chosen=1):
    """The plain gradient of a class's score."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(x.clone())[:, chosen].sum(), x)
    return slope


# --- modules used in unusual ways ------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One module under two names, called twice."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = self.one
        self.blocks = nn.ModuleList([nn.Sequential(self.one, nn.ReLU()), nn.ReLU()])
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.two(self.one(x)).mean(dim=(2, 3)))


def test_a_module_under_several_names(images, t, planned):
    torch.manual_seed(0)
    model, x = Twice().eval(), images()
    first = model.one(x).detach()
    for name in ("one:0", "two:0", "blocks.0.0:0"):
        near(planned(model, x, t.activations(name), 1)[name], first)
    near(planned(model, x, t.activations("two:1"), 1)["two:1"], model.one(first).detach())
    with pytest.raises(pellucid.LayerError, match=r"runs 2 times .* 'one:0', 'one:1'"):
        planned(model, x, t.activations("two"), 1)


def test_one_place_by_several_names(net, images, t, planned):
    names = ["relu2", "relu2:0", "relu2/relu", "auto"]
    techniques = {name: t.look(activations=[name], gradients=[name]) for name in names}
    outcome = planned(net(), images(), {"all": t.look(activations=names, gradients=names), **techniques}, 1)
    assert not outcome.errors
    for name in names:
        near(outcome.results["all"].activations[name], outcome.results["relu2"].activations["relu2"])
        near(outcome.results["all"].gradients[name], outcome.results["relu2"].gradients["relu2"])
        near(outcome.results[name].gradients[name], outcome.results["relu2"].gradients["relu2"])


def test_modules_and_functions_together(net, images, t, planned):
    names = ["conv1", "/mean", "relu1/relu", "pool", "conv2"]
    seen = planned(net(), images(), t.look(activations=names, gradients=names), 1)
    for name in names:
        alone = planned(net(), images(), t.look(activations=[name], gradients=[name]), 1)
        near(seen.activations[name], alone.activations[name])
        near(seen.gradients[name], alone.gradients[name])


def test_a_model_that_catches_a_layers_failure(images, t, planned):
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrong, self.conv, self.head = nn.Conv2d(5, 2, 3), nn.Conv2d(3, 2, 3), nn.Linear(2, 3)

        def forward(self, x):
            try:
                x = self.wrong(x)
            except RuntimeError:
                x = self.conv(x)
            return self.head(x.mean(dim=(2, 3)))

    model = Careful().eval()
    near(planned(model, images(), t.activations("conv"), 1)["conv"], model.conv(images()).detach())
    assert planned(model, images(), t.look(activations=["auto"]), 1).layers["auto"].name == "conv"


def test_a_changed_control_flow_is_noticed_and_followed(images, t, planned):
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head, self.use = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3), "a"

        def forward(self, x):
            x = torch.relu(self.a(x)) if self.use == "a" else torch.sigmoid(self.b(x))
            return self.head(x.mean(dim=(2, 3)))

    adapter = Adapter(Switch().eval())
    assert planned(adapter, images(), t.look(activations=["a"]), 1).activations["a"].shape == (3, 4, 10, 10)
    planned(adapter, images(), t.look(activations=["auto"]), 1)
    adapter.module.use = "b"
    seen = planned(adapter, images(), t.look(activations=["auto"], gradients=["auto"]), 1)
    assert seen.layers["auto"].name == "/sigmoid"
    near(seen.activations["auto"], torch.sigmoid(adapter.module.b(images())).detach())
    with pytest.raises(pellucid.LayerError, match="'a' exists but never runs"):
        planned(adapter, images(), t.activations("a"), 1)


def test_a_replaced_part_is_noticed(net, images, t, planned):
    adapter = Adapter(net())
    planned(adapter, images(), t.cam(), 1)
    adapter.module.relu2 = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
    layer = planned(adapter, images(), t.look(activations=["relu2.0"]), 1).layers["relu2.0"]
    assert layer.name == "relu2.0"


# --- gradients of other kinds ----------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Recomputes its features in the backward pass."""

    def __init__(self, *, reentrant=False):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh())
        self.head, self.reentrant = nn.Linear(4, 3), reentrant

    def plainly(self, x):
        return self.head(self.features(x).mean(dim=(2, 3)))

    def forward(self, x):
        return self.head(checkpoint(self.features, x, use_reentrant=self.reentrant).mean(dim=(2, 3)))


def test_checkpointed_models(images, t, planned):
    torch.manual_seed(0)
    model, x = Checkpointed().eval(), images()
    plain = nn.Sequential(model.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head)
    near(planned(model, x, t.saliency, 1), gradient(plain, x))
    for layer in ("features.0", "features.2", "auto"):
        seen = planned(model, x, t.look(activations=[layer], gradients=[layer]), 1)
        other = planned(plain, x, t.look(activations=["0.0"], gradients=[layer.replace("features", "0")]), 1)
        near(seen.gradients[layer], next(iter(other.gradients.values())))


def test_reentrant_checkpoints_are_refused_with_the_reason(images, t, planned):
    with pytest.raises(ModelError, match="use_reentrant"):
        planned(Checkpointed(reentrant=True).eval(), images(), t.saliency, 1)


class Energy(nn.Module):
    """Its output is a gradient itself, as a score model's."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        if not x.requires_grad:
            x.requires_grad_()
        energy = self.net(x).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return slope.flatten(1)[:, :4]


def test_models_with_a_graph_of_their_own(images, t, planned):
    torch.manual_seed(0)
    model, x = Energy().eval(), images()
    expected = model(x.clone()).detach()
    near(planned(model, x, t.scores, 1), expected[:, 1])
    near(planned(model, x, t.saliency, 1), gradient(model, x))
    seen = planned(model, x, t.look(at=lambda s: s.jittered(4, 0.1), outputs=True, fold=Mean()), 1)
    assert seen.outputs.shape == (3, 4)


def test_a_forward_without_gradients_is_unsuitable(net, images, t, planned):
    class Without(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    model = Without().eval()
    near(planned(model, images(), t.scores, 1), net()(images())[:, 1].detach())
    for technique in (t.saliency, t.gradients("inner.conv2"), t.integrated(20)):
        with pytest.raises(Unsuitable, match=r"no_grad.*works_with=model"):
            planned(model, images(), technique, 1)
    with pytest.raises(pellucid.LayerError, match=r"depends differentiably.*name a layer"):
        planned(model, images(), t.cam(), 1)
    assert planned(model, images(), t.activations("inner.conv2"), 1)["inner.conv2"].shape == (3, 8, 6, 6)


class Detaches(nn.Module):
    """The features are cut off from the inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x.detach()).mean(dim=(2, 3)))


def test_inputs_that_are_cut_off_are_told_also_in_company(images, t, planned):
    outcome = planned(Detaches().eval(), images(), {"saliency": t.saliency, "layer": t.gradients("conv")}, 1)
    assert isinstance(outcome.errors.pop("saliency"), Unsuitable)
    assert not outcome.errors
    assert outcome.results["layer"]["conv"].abs().max() > 0


def test_a_target_before_the_layer(net, images, t, planned):
    with pytest.raises((pellucid.LayerError, Unsuitable), match="depend"):
        planned(net(), images(), t.gradients("conv2"), pellucid.Unit("conv1", 0))


def test_a_gradient_that_is_zero(images, t, planned):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    nn.init.constant_(model[0].bias, -1e4)
    found = planned(model, images(), {"saliency": t.saliency, "cam": t.cam("1"), "ig": t.integrated()}, 1)
    assert all(value.abs().max() == 0 for value in found.results.values())


def test_a_zero_initialised_head_still_has_a_layer_for_auto(images, t, planned):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    nn.init.zeros_(model[3].weight)
    assert planned(model, images(), t.look(activations=["auto"]), 1).layers["auto"].name == "1"


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e15])
def test_very_large_and_very_small_inputs(net, images, t, planned, scale):
    model = net().double()
    x = images(dtype=torch.float64) * scale
    near(planned(model, x, t.saliency, 1), gradient(model, x), 1e-9)
    assert planned(net(), x.float(), t.saliency, 1).isfinite().all()


# --- numbers, formats, containers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(net, images, t, planned, dtype):
    model = net().to(dtype)
    found = planned(model, images(), {"s": t.saliency, "c": t.cam(), "i": t.integrated(), "m": t.smooth()}, 1)
    assert not found.errors
    assert found.results["s"].dtype == dtype
    expected = planned(net(), images(), {"s": t.saliency, "c": t.cam()}, 1).results
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 2e-1, torch.float64: 1e-5}[dtype]
    near(found.results["s"].float(), expected["s"], tolerance)
    assert found.results["i"].isfinite().all()


def test_the_channels_last_change_results_by_rounding_only(images, t, planned):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.GELU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    x = images(4, 24)
    near(planned(model, x, t.saliency, 1), gradient(model, x))


def test_models_that_view_their_inputs(images, t, planned):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(400, 3)

        def forward(self, x):
            return self.head(self.conv(x.view(-1, 3, 12, 12)).view(len(x), -1))

    model = Viewing().eval()
    near(planned(model, images(), t.saliency, 1), gradient(model, images()))
    slope = model.head.weight[1].detach().view(1, 4, 10, 10).expand(3, -1, -1, -1)
    near(planned(model, images(), t.gradients("conv"), 1)["conv"], slope)
    near(planned(model, images(), t.scores, 1), model(images())[:, 1].detach())


def test_a_view_that_fails_on_any_format_is_the_models_error(images, t, planned):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).transpose(1, 2).view(len(x), -1)

    with pytest.raises(ModelError, match="view size"):
        planned(Wrong(), images(), t.scores, 1)


def test_recurrent_models(t, planned):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 6, batch_first=True, num_layers=2, dropout=0.5), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Recurrent().train(), torch.randn(4, 7, 5)
    seen = planned(model, x, t.look(activations=["lstm"], gradients=["input", "lstm"]), 1)
    near(seen.gradients["input"], gradient(model.eval(), x))
    assert seen.activations["lstm"].shape == (4, 7, 6)
    assert seen.gradients["lstm"][:, :-1].abs().max() == 0


def test_transformer_encoders_take_the_same_way_with_and_without_gradients(t, planned):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = nn.TransformerEncoder(layer, 2)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(48, 3)).eval()
    x = torch.randn(3, 6, 8)
    names = ["0.layers.0.linear1", "0.layers.1.norm2", "0.layers.1.self_attn"]
    plain = planned(model, x, t.activations(*names), 1)
    graph = planned(model, x, t.look(activations=names, gradients=names), 1)
    for name in names:
        near(plain[name], graph.activations[name])
    near(planned(model, x, t.saliency, 1), gradient(model, x))


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrappers(net, images, wrap):
    techniques = ["saliency", "grad_cam"]
    found = pellucid.explain(wrap(net()), images(), techniques, 1)
    expected = pellucid.explain(net(), images(), techniques, 1)
    for name in techniques:
        near(found[name].values, expected[name].values)


def test_a_model_that_compiles_itself(net, images):
    model = net()
    model.compile(backend="eager")
    near(
        pellucid.explain(model, images(), "grad_cam", 1).values, pellucid.explain(net(), images(), "grad_cam", 1).values
    )


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("how", ["trace", "script"])
def test_scripted_models(images, how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    scripted = torch.jit.trace(model, images()) if how == "trace" else torch.jit.script(model)
    found = pellucid.explain(scripted, images(), "saliency", 1)
    near(found.values, gradient(model, images()).abs())
    with pytest.raises(Unsuitable, match="activations"):
        pellucid.explain(scripted, images(), "grad_cam", 1)


def test_a_model_that_mixes_its_batch_is_refused(images, t, planned):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))

    class Mixes(nn.Module):
        def forward(self, x):
            return model(x).mean(dim=0, keepdim=True)

    with pytest.raises(ModelError, match="mixes its batch"):
        planned(Mixes(), images(), t.scores, 1)


def test_a_layer_without_the_examples_first_is_refused(images, t, planned):
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(12, 4), nn.Linear(4, 3)

        def forward(self, x):
            x = x.mean(dim=1).transpose(0, 1)  # (positions, B, features)
            return self.head(self.first(x).mean(dim=0))

    with pytest.raises(pellucid.LayerError, match="no tensor with one row for each example"):
        planned(Sequences(), images(), t.activations("first"), 1)


def test_looks_at_derived_samples_keep_the_base_class(images, t, planned):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), images()
    model[1].bias.data = torch.tensor([0.1, 0.0, 0.0, 0.0])
    predicted = model(x).argmax(dim=1)
    at = {"at": lambda sample: sample.along("zero", [0.0, 0.1, 1.0])}
    seen = planned(model, x, t.look(**at, outputs=True, gradients=["input"]), None)
    chosen = seen.outputs.gather(2, predicted.expand(3, -1)[..., None])[..., 0]
    near(seen.scores, chosen)
    assert seen.classes.tolist() == predicted.tolist()
    assert (seen.outputs[0].argmax(dim=1) != predicted).any(), "the row's own class would be another"
    later = planned(
        model, x, lambda sample: (yield Look(at=sample[1:].at(sample.inputs[1:] * 0).jittered(2, 0.1))).scores
    )
    near(later, model(x[1:] * 0).gather(1, predicted[1:, None])[:, 0].detach().expand(2, -1))
