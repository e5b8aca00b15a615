"""Maximal examples: against a plain search, receptive fields by the recursion of the textbook, planted units."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import InputError, LayerError, ParameterError
from pellucid_examples import maximal_examples, streaming
from pellucid_examples.maximal_examples import MaximalExamples


def images(n, size=20, seed=0, channels=1):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Stack(nn.Module):
    """Strides, padding, dilation, pooling, an in-place ReLU and BatchNorm."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 3, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.two = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.two(self.pool(self.relu(self.norm(self.one(x)))))
        return self.head(F.gelu(x).mean(dim=(2, 3)))


KERNELS = {
    "one": [(5, 2, 2, 1)],
    "relu": [(5, 2, 2, 1)],
    "pool": [(5, 2, 2, 1), (3, 2, 1, 1)],
    "two": [(5, 2, 2, 1), (3, 2, 1, 1), (3, 1, 2, 2)],
}


def field(steps, place, size):
    """First pixel, and the one after the last, that a position sees: back through (kernel, stride, pad, dilation)."""
    low = high = place
    sizes = [size]
    for kernel, stride, pad, dilation in steps:
        sizes.append((sizes[-1] + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1)
    for (kernel, stride, pad, dilation), before in zip(reversed(steps), reversed(sizes[:-1]), strict=True):
        taps = [low * stride - pad + dilation * tap for tap in range(kernel)]
        low = min(tap for tap in taps if tap >= 0)
        taps = [high * stride - pad + dilation * tap for tap in range(kernel)]
        high = max(tap for tap in taps if tap < before)
    return low, high + 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Stack().eval()


def plain(maps, channel, k):
    """The greatest values of a channel, one for each example, with their places."""
    found = []
    for index, one in enumerate(maps[:, channel]):
        place = int(one.argmax())
        found.append((float(one.max()), index, place // one.shape[1], place % one.shape[1]))
    return sorted(found, key=lambda line: -line[0])[:k]


@pytest.mark.parametrize("layer", list(KERNELS))
@pytest.mark.parametrize("weights", ["drawn", "zero"])
def test_examples_and_receptive_fields_are_those_of_the_plain_search(model, layer, weights):
    if weights == "zero":  # the field is what a unit can depend on, whatever its weights
        with torch.no_grad():
            model.one.weight[:, :, :, 3:] = 0
    x = images(30)
    result = pellucid.explain(model, x, MaximalExamples(layer=layer, k=6))
    kept = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(maps=o.clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    for channel in range(len(result)):
        expected = plain(kept["maps"], channel, 6)
        torch.testing.assert_close(result.values[channel], torch.tensor([line[0] for line in expected]))
        assert result.indices[channel].tolist() == [line[1] for line in expected]
        for rank, (_, index, row, column) in enumerate(expected):
            top, bottom = field(KERNELS[layer], row, 20)
            left, right = field(KERNELS[layer], column, 20)
            assert result.boxes[channel, rank].tolist() == [top, left, bottom, right]
            crop, part = result.crops[channel, rank], x[index, :, top:bottom, left:right]
            height, width = part.shape[1:]
            rows = slice(crop.shape[1] - height, None) if top == 0 else slice(0, height)
            columns = slice(crop.shape[2] - width, None) if left == 0 else slice(0, width)
            assert torch.equal(crop[:, rows, columns], part)
            assert crop.count_nonzero() == part.count_nonzero()
    assert (result.kind, result.over) == ("maximal", layer)
    assert result.names[0] == "channel 0"


def test_outside_the_box_nothing_changes_the_unit_and_inside_its_edges_something_does(model):
    x = images(12).double()
    model = model.double()
    result = pellucid.explain(model, x, MaximalExamples(layer="two", channels=(2,), k=3))
    assert result.names == ("channel 2",)
    for rank in range(3):
        index, (top, left, bottom, right) = int(result.indices[0, rank]), result.boxes[0, rank].tolist()
        other = images(1, seed=9).double()[0]
        other[:, top:bottom, left:right] = x[index, :, top:bottom, left:right]
        with torch.no_grad():
            found = model.two(model.pool(model.relu(model.norm(model.one(other[None])))))[0, 2]
        assert float((found - result.values[0, rank]).abs().min()) < 1e-12


NETS = {
    "strided, pooled, dilated": lambda: [
        nn.Conv2d(1, 3, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 3, dilation=2)
    ],
    "wide strides, averaged, dilated and padded": lambda: [
        nn.Conv2d(1, 4, 5, 3), nn.AvgPool2d(2, 1), nn.Conv2d(4, 4, 3, 1, 3, 3, groups=2)
    ],
    "dilated pooling, transposed": lambda: [
        nn.Conv2d(1, 3, 4, 2, 1), nn.MaxPool2d(2, 2, dilation=2), nn.ConvTranspose2d(3, 3, 3, 2)
    ],
    "padded by reflection, shuffled": lambda: [
        nn.Conv2d(1, 4, 3, 2, 1, padding_mode="reflect"), nn.PixelShuffle(2), nn.LPPool2d(1, 3, 2)
    ],
}  # fmt: skip


@pytest.mark.parametrize("net", list(NETS))
def test_the_box_is_the_support_of_the_numeric_gradient(net):
    """The gradients at a hundred inputs together reach every pixel that a unit depends on, and no other."""
    torch.manual_seed(1)
    stack = nn.Sequential(*NETS[net]())
    model = nn.Sequential(stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)).double().eval()
    x = images(12, 28).double()
    model(x)
    result = pellucid.explain(model, x, MaximalExamples(layer="0", k=5))
    noise = images(100, 28, seed=5).double().requires_grad_()
    maps = stack(noise)
    found = set()
    for channel in range(len(result)):
        for rank, index in enumerate(result.indices[channel].tolist()):
            place = int(stack(x[index : index + 1])[0, channel].argmax())
            (slope,) = torch.autograd.grad(maps[:, channel].flatten(1)[:, place].sum(), noise, retain_graph=True)
            rows, columns = (slope != 0).any(dim=0)[0].nonzero().unbind(dim=1)
            expected = [int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1]
            assert result.boxes[channel, rank].tolist() == expected
            found.add(tuple(expected))
    assert len(found) > 3


class Branches(nn.Module):
    """Channels with different fields, a global one among them."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 7, padding=3)
        self.mixed, self.head = nn.Identity(), nn.Linear(3, 2)

    def forward(self, x):
        everywhere = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
        return self.head(self.mixed(torch.cat([self.small(x), self.large(x), everywhere], dim=1)).mean(dim=(2, 3)))


def sizes(boxes):
    return (boxes[..., 2:] - boxes[..., :2]).tolist()


def test_each_channel_has_its_own_field_and_a_weight_of_zero_adds_nothing():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.zeros(3, 1, 15, 15)
    x[:, :, 7, 7] = 1
    for conv in (model.small, model.large):
        nn.init.ones_(conv.weight)
    result = pellucid.explain(model, x, MaximalExamples(layer="mixed", k=1))
    assert sizes(result.boxes)[0] == [[1, 1]]
    assert sizes(result.boxes)[2] == [[15, 15]]
    directions = torch.tensor([[2.0, 0, 0], [1, -1e-9, 0], [0, 1, 1]])
    result = pellucid.explain(model, x, MaximalExamples(layer="mixed", directions=directions, k=1))
    assert result.boxes[0, 0].tolist() == [7, 7, 8, 8]
    assert sizes(result.boxes)[1] == [[7, 7]]
    assert sizes(result.boxes)[2] == [[15, 15]]
    assert result.names == ("direction 0", "direction 1", "direction 2")


def test_a_directions_values_are_the_weighted_sums(model):
    x = images(10)
    direction = torch.tensor([0.5, -1.0, 2.0])
    result = pellucid.explain(model, x, MaximalExamples(layer="one", directions=direction, k=4))
    with torch.no_grad():
        maps = torch.einsum("c,bchw->bhw", direction, model.one(x))[:, None]
    expected = plain(maps, 0, 4)
    torch.testing.assert_close(result.values[0], torch.tensor([line[0] for line in expected]))
    assert result.indices[0].tolist() == [line[1] for line in expected]


def test_units_of_a_vector_see_the_whole_image(model):
    x = images(10)
    result = pellucid.explain(model, x, MaximalExamples(layer="head", channels=(1, 0), k=2))
    with torch.no_grad():
        order = model(x).argsort(dim=0, descending=True)
    assert result.indices.tolist() == [order[:2, 1].tolist(), order[:2, 0].tolist()]
    assert result.names == ("unit 1", "unit 0")
    assert sizes(result.boxes) == [[[20, 20]] * 2] * 2


def test_a_planted_unit_finds_its_glyph():
    """A template in a few images of noise: those images, that place."""
    glyph = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).sign()
    model = nn.Sequential(nn.Conv2d(1, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight[0, 0], model[0].weight[1, 0] = glyph, -glyph
        model[0].bias.zero_()
    x = 0.3 * images(40)
    planted = {11: (3, 8), 30: (15, 0), 4: (7, 7)}
    for index, (row, column) in planted.items():
        x[index, 0, row : row + 5, column : column + 5] += glyph
    result = pellucid.explain(model, x, MaximalExamples(layer="0", channels=(0,), k=3))
    assert set(result.indices[0].tolist()) == set(planted)
    for rank, index in enumerate(result.indices[0].tolist()):
        row, column = planted[index]
        assert result.boxes[0, rank].tolist() == [row, column, row + 5, column + 5]
        assert float((result.crops[0, rank, 0].sign() == glyph).double().mean()) > 0.9


def test_blocks_and_ties_keep_the_callers_order(model, monkeypatch):
    x = images(5).repeat(5, 1, 1, 1)
    whole = pellucid.explain(model, x, MaximalExamples(layer="one", k=7))
    monkeypatch.setattr(streaming, "FIRST", 2)
    monkeypatch.setattr(streaming, "LARGEST", 4)
    blocks = pellucid.explain(model, x, MaximalExamples(layer="one", k=7))
    torch.testing.assert_close(blocks.values, whole.values)
    assert (blocks.indices % 5).tolist() == (whole.indices % 5).tolist()
    assert torch.equal(blocks.boxes, whole.boxes)


def test_crops_that_are_too_large_are_left_out_and_said(model, monkeypatch):
    monkeypatch.setattr(maximal_examples, "PICTURE_BYTES", 100)
    result = pellucid.explain(model, images(6), MaximalExamples(layer="one", k=2))
    assert result.crops is None
    assert result.boxes is not None
    assert "name fewer channels" in result.checks.named("crops").note


def test_blocks_that_are_kept_need_no_passes_until_something_changes(model, tmp_path):
    x = images(30)
    plain = pellucid.explain(model, x, MaximalExamples(layer="two", k=3))
    fields = 1 + 20 + 20  # one look for the layer, and one for each row and column
    for passes in (30 + fields, fields):
        found = pellucid.explain(model, x, MaximalExamples(layer="two", k=3, folder=tmp_path))
        assert torch.equal(found.indices, plain.indices)
        assert torch.equal(found.boxes, plain.boxes)
        assert found.meta.passes["forward"] * 30 == pytest.approx(passes)
    others = MaximalExamples(layer="two", channels=(1, 3), k=3, folder=tmp_path)
    assert torch.equal(pellucid.explain(model, x, others).indices, plain.indices[[1, 3]])


def test_tables_have_units_and_no_crops():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(9, 6)
    result = pellucid.explain(model, x, MaximalExamples(layer="0", k=2))
    assert torch.equal(result.indices, model[0](x).detach().topk(2, dim=0).indices.T)
    assert (result.crops, result.boxes) == (None, None)


def test_the_plot_shows_crops(model):
    axes = pellucid.explain(model, images(8), MaximalExamples(layer="one", k=4)).plot().axes
    shown = [ax for ax in axes if ax.images]
    assert len(shown) == 3 * 4
    assert shown[0].images[0].get_array().shape[:2] == (5, 5)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"k": 9}, InputError, "k=9 of 8"),
        ({"channels": (3,)}, LayerError, "expected 0 to 2"),
        ({"channels": ()}, ParameterError, "empty"),
        ({"channels": (-1,)}, ParameterError, "greater than or equal to 0"),
        ({"directions": torch.ones(2)}, ParameterError, "have 2 channels"),
        ({"directions": torch.ones(3), "channels": (0,)}, ParameterError, "no channels besides"),
        ({"layer": "three"}, LayerError, "three"),
    ],
)
def test_what_cannot_be_used_is_refused(model, parameters, error, message):
    with pytest.raises(error, match=message):
        pellucid.explain(model, images(8), MaximalExamples(**{"layer": "one", "k": 2, **parameters}))


def test_a_network_that_is_not_finite_is_refused(model):
    with torch.no_grad():
        model.one.bias.fill_(torch.inf)
    with pytest.raises(InputError, match="not finite"):
        pellucid.explain(model, images(8), MaximalExamples(layer="one", k=2))
