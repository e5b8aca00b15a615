"""Layers: names, layouts, and the one that "auto" means."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pellucid import Adapter, Layer, LayerError
from pellucid.engine.guard import guarded
from pellucid.engine.passes import Engine


def near(one, two, tolerance=1e-5):
    two = two.detach()
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()) + 1e-12)


# --- four ways to write one network ----------------------------------------------------------------------------------


class Modules(nn.Module):
    def __init__(self, *, inplace=False):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6))
        self.relu1, self.relu2, self.relu3 = (nn.ReLU(inplace) for _ in range(3))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        x = self.relu3(self.conv3(self.relu2(self.conv2(x))) + x)
        return self.head(self.pool(x).flatten(1))


class Functional(Modules):
    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv3(F.relu(self.conv2(x))) + x)
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), self.head.weight, self.head.bias)


class Reused(Modules):
    def forward(self, x):
        x = self.relu1(self.conv1(x))
        x = self.relu1(self.conv3(self.relu1(self.conv2(x))) + x)
        return self.head(self.pool(x).flatten(1))


class InPlace(Modules):
    def __init__(self):
        super().__init__(inplace=True)

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        y = self.relu2(self.conv2(x))
        y = self.conv3(y)
        y += x
        return self.head(self.pool(self.relu3(y)).flatten(1))


def styles():
    for style, name in ((Modules, "relu3"), (Functional, "/relu:2"), (Reused, "relu1:2"), (InPlace, "relu3")):
        torch.manual_seed(0)
        yield style().double().eval(), name


def test_four_coding_styles_of_one_network_have_identical_maps(images, t, planned):
    x = images(dtype=torch.float64)
    found = []
    for model, name in styles():
        seen = planned(model, x, t.look(activations=["auto"], gradients=["auto"]), 1)
        assert seen.layers["auto"].name == name
        found.append((planned(model, x, t.cam(), 1), seen.activations["auto"], seen.gradients["auto"]))
        near(planned(model, x, t.cam(name), 1), found[-1][0], 1e-12)
    for other in found[1:]:
        for one, two in zip(other, found[0], strict=True):
            near(one, two, 1e-12)


# --- names -----------------------------------------------------------------------------------------------------------


def found(model, x, name):
    model = model.eval()
    adapter = Adapter(model)
    with guarded(model, 0):
        from pellucid.engine.inputs import make_sample

        engine = Engine(adapter)
        sample, _ = make_sample(engine, x, 0, 0)
        return engine.find(sample, name).layer


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1", (6, 12, 12)),
        ("conv1:0", (6, 12, 12)),
        ("relu1:1", (6, 12, 12)),
        ("pool", (6, 1, 1)),
        ("head", (4,)),
        ("/flatten", (6,)),
        ("/add", (6, 12, 12)),
        ("relu1/relu:1", (6, 12, 12)),
        ("conv2/conv2d", (6, 12, 12)),
        ("", (4,)),
    ],
)
def test_modules_calls_and_functions_have_names(images, name, shape):
    layer = found(Reused(), images(), name)
    assert (layer.name, layer.shape) == (name, shape)


def test_each_call_of_a_reused_module_is_a_layer_of_its_own(images, t, planned):
    torch.manual_seed(0)
    model, x = Reused().eval(), images()
    one = F.relu(model.conv1(x))
    two = F.relu(model.conv2(one))
    for call, value in enumerate((one, two, F.relu(model.conv3(two) + one))):
        near(planned(model, x, t.activations(f"relu1:{call}"), 1)[f"relu1:{call}"], value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("conv4", "no layer 'conv4'. Did you mean 'conv"),
        ("Conv1", "Did you mean 'conv1'"),
        ("zzz", "no layer 'zzz'. `pellucid doctor` lists"),
        ("relu1", "runs 3 times in one forward pass; say which call is meant: 'relu1:0', 'relu1:1', 'relu1:2'"),
        ("relu1:3", "no layer 'relu1:3'"),
        ("relu2", "'relu2' exists but never runs"),
        ("relu2:0", "no layer 'relu2:0'"),
    ],
)
def test_layers_that_are_not_there(images, name, told):
    with pytest.raises(LayerError) as error:
        found(Reused(), images(), name)
    assert told in str(error.value)


def test_a_module_that_returns_no_rows(images):
    class Stats(nn.Module):
        def forward(self, x):
            return x.mean()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stats, self.head = Stats(), nn.Linear(432, 3)

        def forward(self, x):
            return self.head(x.flatten(1)) * self.stats(x.detach() * 0 + 1)

    with pytest.raises(LayerError, match="'stats' returns no tensor with one row"):
        found(Model(), images(), "stats")


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_maps_of_each_layout():
    values = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    assert Layer("a", (3, 2, 4), "channels_first", (2, 4)).maps(values).equal(values)
    last = values.permute(0, 2, 3, 1)
    assert Layer("a", (2, 4, 3), "channels_last", (2, 4)).maps(last).equal(values)
    tokens = torch.cat([torch.full((2, 2, 3), -1.0), values.flatten(2).transpose(1, 2)], dim=1)
    layer = Layer("a", (10, 3), "tokens", (2, 4), 2)
    assert layer.maps(tokens).equal(values)
    assert layer.maps(torch.stack([tokens, tokens])).equal(torch.stack([values, values]))
    assert [one.channels for one in (layer, Layer("a", (3, 2, 4), "channels_first", (2, 4)), Layer("a", (5,)))] == [
        3,
        3,
        0,
    ]
    with pytest.raises(LayerError, match="no map of positions; choose a layer with maps"):
        Layer("fc", (10,)).maps(torch.ones(2, 10))


class Tokens(nn.Module):
    """Patches as tokens behind some others, through a block, to one token or to the mean of all."""

    def __init__(self, prefix=1, *, pool="first", last=False):
        super().__init__()
        self.patch, self.block, self.norm = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.LayerNorm(8)
        self.mix = nn.Linear(9 + prefix, 9 + prefix)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 8))
        self.head, self.pool, self.last = nn.Linear(8, 4), pool, last

    def forward(self, x):
        x = self.patch(x)
        if self.last:
            return self.head(torch.tanh(self.block(x.permute(0, 2, 3, 1))).mean(dim=(1, 2)))
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + torch.tanh(self.mix(self.norm(x).transpose(1, 2))).transpose(1, 2)
        x = x + torch.tanh(self.block(x))
        return self.head(x[:, 0] if self.pool == "first" else x.mean(dim=1))


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("pool", ["first", "mean"])
def test_tokens_behind_a_prefix(images, t, planned, prefix, pool):
    torch.manual_seed(0)
    seen = planned(Tokens(prefix, pool=pool).eval(), images(), t.look(activations=["auto"], gradients=["auto"]), 1)
    layer = seen.layers["auto"]
    assert (layer.layout, layer.grid, layer.prefix) == ("tokens", (3, 3), prefix)
    assert seen.maps("auto").shape == (3, 8, 3, 3)
    # The last tokens through which the output depends on more than one position.
    assert seen.map_gradients("auto").flatten(2).abs().sum(dim=1).gt(0).sum() > 3


def test_the_values_of_attention_are_no_map(images, t, planned):
    class Attends(Tokens):
        """Reads its class token from a last block of attention whose queries, keys and values are as wide as tokens."""

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
            y = self.norm(x)
            x = x + F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
            return self.head(x[:, 0])

    torch.manual_seed(0)
    assert planned(Attends().eval(), images(), t.look(activations=["auto"]), 1).layers["auto"].name == "norm"


def test_maps_with_the_channels_last(images, t, planned):
    torch.manual_seed(0)
    seen = planned(Tokens(last=True).eval(), images(), t.look(activations=["auto", "patch"], gradients=["auto"]), 1)
    layer = seen.layers["auto"]
    assert (layer.layout, layer.grid, layer.shape) == ("channels_last", (3, 3), (3, 3, 8))
    assert seen.maps("auto").shape == seen.map_gradients("auto").shape == (3, 8, 3, 3)
    assert seen.layers["patch"].layout == "channels_first"


def test_auto_depends_on_shapes_not_on_names_or_examples(images, t, planned):
    for count in (1, 3):
        for size in (12, 16):
            torch.manual_seed(0)
            seen = planned(Modules().eval(), images(count, size), t.look(activations=["auto"]), 1)
            assert (seen.layers["auto"].name, seen.layers["auto"].grid) == ("relu3", (size, size))


def test_auto_where_every_unit_is_dead(images, t, planned):
    model = Modules().eval()
    nn.init.constant_(model.conv3.bias, -1e4)
    assert planned(model, images(), t.look(activations=["auto"]), 1).layers["auto"].name == "relu3"


def test_class_maps_belong_to_the_head(images, t, planned):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    assert planned(model, images(), t.look(activations=["auto"]), 1).layers["auto"].name == "1"


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.ones(2, 5), "found no map of positions"),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(12, 3)), torch.ones(2, 2, 5), "found no map"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), torch.ones(2, 3, 12, 12), "found no map of positions"),
    ],
)
def test_models_without_maps(t, planned, model, inputs, told):
    with pytest.raises(LayerError, match=told):
        planned(model.eval(), inputs, t.cam(), 1)


def test_small_models_of_torchvision(t, planned):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    vit = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    nn.init.normal_(vit.heads.head.weight)
    swin = models.SwinTransformer(
        patch_size=[2, 2], embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4], num_classes=5
    )
    setting = models.convnext.CNBlockConfig
    convnext = models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=5)
    for model, layout, grid, size in (
        (vit, "tokens", (4, 4), 32),
        (swin, "channels_first", (8, 8), 32),  # its last map is permuted before it is pooled
        (convnext, "channels_first", (4, 4), 32),
        (models.resnet18(num_classes=5), "channels_first", (2, 2), 64),
    ):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        seen = planned(model.eval(), x, t.look(activations=["auto"], gradients=["auto"]), 1)
        assert (seen.layers["auto"].layout, seen.layers["auto"].grid) == (layout, grid), type(model).__name__
        assert planned(model, x, t.cam(), 1).isfinite().all()
        assert seen.map_gradients("auto").abs().max() > 0
    blocks = [name for name, part in swin.named_modules() if type(part).__name__ == "SwinTransformerBlock"]
    seen = planned(swin, torch.randn(2, 3, 32, 32), t.look(activations=blocks), 1)
    assert {seen.layers[name].layout for name in blocks} == {"channels_last"}
    assert seen.maps(blocks[-1]).shape == (2, 24, 8, 8)
