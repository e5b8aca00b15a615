"""Attributions: maps, tables, pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pellucid.errors import InputError, ParameterError
from pellucid.protocol.leaves import Leaves
from pellucid.results import Attribution, Meta, TargetRecord, draw, load


def bilinear(grid, height, width):
    """Enlarges one map position by position: half-pixel centres, edges held."""
    grid = grid.double()
    rows, columns = grid.shape
    out = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            low, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            v, u = y - top, x - left
            out[i, j] = (1 - v) * ((1 - u) * grid[top, left] + u * grid[top, right]) + v * (
                (1 - u) * grid[low, left] + u * grid[low, right]
            )
    return out


def test_a_grid_is_enlarged_to_the_inputs_and_keeps_its_signs_and_scale():
    values = torch.randn(2, 3, 4)
    heatmap = Attribution(values, over="layer4", inputs=torch.rand(2, 3, 10, 17)).heatmap()
    assert heatmap.shape == (2, 10, 17)
    for one, grid in zip(heatmap, values, strict=True):
        torch.testing.assert_close(one.double(), bilinear(grid, 10, 17), rtol=0, atol=1e-6)


def test_channels_are_summed_with_their_signs():
    values = torch.randn(2, 3, 5, 6)
    result = Attribution(values)
    assert torch.equal(result.heatmap(), values.sum(dim=1))
    torch.testing.assert_close(result.channels(), values.sum(dim=(2, 3)))
    assert Attribution(values, over="layer4").heatmap((7, 7)).shape == (2, 7, 7)


def test_the_size_is_remembered_without_the_inputs(tmp_path):
    result = Attribution(torch.randn(2, 3, 4), over="layer4", inputs=torch.rand(2, 3, 10, 17))
    found = load(result.save(tmp_path / "x", inputs=False))
    assert found.inputs is None
    torch.testing.assert_close(found.heatmap(), result.heatmap())
    assert Attribution(torch.randn(2, 3, 4), over="layer4").heatmap().shape == (2, 3, 4)


def test_segments_are_painted():
    segments = torch.tensor([[0, 1], [1, -1]])
    result = Attribution(torch.tensor([[2.0, -3.0], [5.0, 7.0]]), over="segments", segments=segments)
    assert result.heatmap().tolist() == [[[2, -3], [-3, 0]], [[5, 7], [7, 0]]]
    assert result[1].heatmap().tolist() == [[[5, 7], [7, 0]]]
    each = torch.stack([segments, segments.flip(0)])
    apart = Attribution(result.values, over="segments", segments=each, inputs=torch.rand(2, 3, 2, 2))
    assert apart.heatmap()[1].tolist() == [[7, 0], [5, 7]]
    assert torch.equal(apart[[1]].segments, each[1:])


@pytest.mark.parametrize(
    ("values", "segments", "match"),
    [
        (torch.rand(2, 3), torch.tensor([[0, 3]]), "segment 3 has no value"),
        (torch.rand(2, 3, 4), None, "expected \\(B, segments\\)"),
        (torch.rand(2, 3), torch.zeros(3, 4, 4), "number of examples"),
        (torch.rand(2, 3), torch.zeros(2, 1, 4, 4, dtype=torch.long), "expected \\(2, H, W\\)"),
    ],
)
def test_segments_that_do_not_fit(values, segments, match):
    with pytest.raises(InputError, match=match):
        Attribution(values, over="segments", segments=segments)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 8), (2, 3, 4, 4, 4)])
def test_what_has_no_place_on_a_map_says_so_and_is_drawn_otherwise(shape):
    result = Attribution(torch.randn(shape))
    with pytest.raises(InputError, match="no place on a map"):
        result.heatmap()
    assert pixels(result.plot()).std() > 0


def test_several_inputs_are_named():
    values = Leaves({"image": torch.randn(2, 3, 4, 4), "table": torch.randn(2, 5)})
    inputs = Leaves({"image": torch.rand(2, 3, 4, 4), "table": torch.rand(2, 5)})
    result = Attribution(values, inputs=inputs)
    assert torch.equal(result.heatmap(name="image"), values["image"].sum(dim=1))
    assert result.top(2, name="table").values.shape == (2, 2)
    with pytest.raises(InputError, match="name one: image, table"):
        result.heatmap()
    with pytest.raises(InputError, match=r"no input is named 'imag'.*Did you mean 'image'"):
        result.heatmap(name="imag")
    assert pixels(result.plot()).std() > 0
    assert pixels(result.plot(name="table")).std() > 0
    assert Attribution(Leaves({"only": torch.ones(1, 3, 2, 2)})).heatmap().tolist() == [[[3, 3], [3, 3]]]


@given(st.integers(1, 4), st.integers(0, 9), st.sampled_from(["value", "magnitude"]))
def test_top_is_what_sorting_finds(batch, k, by):
    values = torch.randn(batch, 7, generator=torch.Generator().manual_seed(batch * 10 + k))
    top = Attribution(values, over="features").top(k, by=by)
    for row in range(batch):
        key = [abs(value) if by == "magnitude" else value for value in values[row].tolist()]
        order = sorted(range(7), key=lambda place: -key[place])[:k]
        assert top.places[row].tolist() == order
        assert torch.equal(top.values[row], values[row, order])


def test_top_of_a_picture_is_of_its_map():
    values = torch.zeros(1, 3, 4, 5)
    values[0, :, 2, 3] = 1.0
    top = Attribution(values).top(1)
    assert top.values.item() == 3
    assert divmod(top.places.item(), 5) == (2, 3)


def test_a_table_has_named_columns():
    table = Attribution(torch.tensor([[1.0, -2.0]]), over="features", names=["age", "height"]).to_dataframe()
    assert list(table.columns) == ["age", "height"]
    assert table.loc[0, "height"] == -2.0
    assert list(Attribution(torch.rand(1, 2), over="segments").to_dataframe()) == ["segment 0", "segment 1"]
    assert Attribution(torch.rand(1, 2), over="training examples").part_names() == ("example 0", "example 1")
    assert Attribution(torch.rand(1, 2), over="layer4").part_names() == ("unit 0", "unit 1")
    with pytest.raises(InputError, match="not a table"):
        Attribution(torch.rand(1, 3, 4, 4)).to_dataframe()
    with pytest.raises(InputError, match="3 names were given for 2 values"):
        Attribution(torch.rand(1, 2), names=("a", "b", "c"))


def test_grids_have_no_channels():
    with pytest.raises(InputError, match="no channels"):
        Attribution(torch.rand(1, 3, 3), over="layer4").channels()


def test_values_must_be_tensors():
    with pytest.raises(InputError, match="of type list; expected a tensor"):
        Attribution([1, 2])


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(draw.png(figure, 60))).convert("RGB")).astype(int)


def photo_result(values, channels=3, **changes):
    inputs = torch.rand(len(values), channels, 24, 24, generator=torch.Generator().manual_seed(0))
    return Attribution(
        values,
        over="layer4" if values.dim() == 3 else "input",
        inputs=inputs,
        target=TargetRecord("predicted", torch.zeros(len(values), dtype=torch.long)),
        meta=Meta(technique="grad_cam", categories=("tabby, tabby cat",)),
        **changes,
    )


SPECIAL = {
    "constant": torch.ones(2, 6, 6),
    "zero": torch.zeros(2, 6, 6),
    "NaN": torch.full((2, 6, 6), torch.nan),
    "one NaN": torch.randn(2, 6, 6).index_put(
        (torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)
    ),
    "infinite": torch.full((2, 6, 6), torch.inf),
    "tiny": torch.full((2, 6, 6), 1e-42),
    "huge": torch.full((2, 6, 6), 3e38),
    "one pixel": torch.zeros(2, 3, 24, 24).index_fill(3, torch.tensor(0), 0.0).clamp(min=0),
    "half": torch.randn(2, 6, 6).half(),
    "integers": torch.arange(72).view(2, 6, 6),
}


@pytest.mark.parametrize("style", ["overlay", "heatmap", "side"])
@pytest.mark.parametrize("name", SPECIAL)
def test_any_map_is_drawn(name, style):
    assert pixels(photo_result(SPECIAL[name]).plot(style=style)).std() > 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_inputs_of_any_number_of_channels_are_drawn(channels):
    assert pixels(photo_result(torch.randn(2, 6, 6), channels).plot()).std() > 0


def test_no_examples_and_many_are_drawn():
    assert draw.png(photo_result(torch.randn(0, 6, 6)).plot())
    figure = photo_result(torch.randn(11, 6, 6)).plot()
    assert sum(bool(ax.get_images()) for ax in figure.axes) == 8
    assert len([ax for ax in photo_result(torch.randn(11, 6, 6)).plot([10, -11]).axes if ax.get_images()]) == 2
    with pytest.raises(InputError, match="example 11 does not exist; there are 11"):
        photo_result(torch.randn(11, 6, 6)).plot([11])


def test_titles_are_class_names_and_the_scale_is_stated():
    figure = photo_result(torch.randn(1, 6, 6)).plot()
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["tabby"]
    assert "99.5th percentile" in figure.get_supxlabel()
    assert "Grad-CAM" in figure.get_supxlabel()


def test_one_bound_makes_examples_comparable_and_the_bar_has_true_values():
    figure = photo_result(torch.randn(2, 6, 6)).plot(bound=3.0)
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert [ax.get_ylim() for ax in bars] == [(-3.0, 3.0)] * 2
    assert "percentile" not in figure.get_supxlabel()


def test_an_unknown_style_is_refused():
    with pytest.raises(ParameterError, match=r"no style 'overly'.*Did you mean 'overlay'"):
        photo_result(torch.randn(1, 6, 6)).plot(style="overly")


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=400))
def test_the_limit_is_the_nearest_rank_percentile_of_the_magnitudes(values):
    found = draw.limit(torch.tensor(values))
    magnitudes = sorted(abs(value) for value in values)
    rank = -(-995 * len(values) // 1000)
    expected = magnitudes[rank - 1] or magnitudes[-1] or 1.0
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == draw.limit(-torch.tensor(values))


def test_photos_are_denormalised():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    photo = torch.rand(2, 3, 4, 5)
    inputs = (photo - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = photo.mul(255).round().permute(0, 2, 3, 1).numpy()
    assert abs(draw.photos(inputs, mean, std).astype(float) - expected).max() <= 1
    assert abs(draw.photos(photo).astype(float) - expected).max() == 0
    assert draw.photos((photo * 255).byte()).dtype == np.uint8
    grey = draw.photos(photo[:, :1])
    assert (grey[..., 0] == grey[..., 2]).all()
    stretched = draw.photos(photo * 10 - 3)
    assert stretched.min() == 0
    assert stretched.max() == 255
    assert draw.photos(torch.full((1, 3, 2, 2), torch.nan)).max() == 0
    with pytest.raises(InputError, match="no photos"):
        draw.photos(torch.rand(3, 4, 5))


def test_an_overlay_shows_the_photo_where_the_map_is_zero_and_colour_where_it_is_strong():
    photo = np.full((3, 3, 3), 128, dtype=np.uint8)
    heatmap = np.zeros((3, 3))
    heatmap[0, 0], heatmap[2, 2], heatmap[1, 1] = 1.0, -1.0, np.nan
    mixed = draw.blend(photo, heatmap, 1.0).astype(int)
    assert (mixed[0, 1] == mixed[1, 1]).all()
    assert mixed[0, 1].std() < 2
    assert mixed[0, 0, 0] > mixed[0, 0, 2] + 60
    assert mixed[2, 2, 2] > mixed[2, 2, 0] + 60


def test_the_colour_map_is_white_at_zero_and_as_strong_on_both_sides():
    colours = draw.colours()
    assert np.allclose(colours(0.5)[:3], 1.0)
    luminance = np.array([np.dot(colours(x)[:3], [0.299, 0.587, 0.114]) for x in np.linspace(0, 1, 101)])
    assert (np.diff(luminance[:51]) > 0).all()
    assert (np.diff(luminance[50:]) < 0).all()


def test_a_picture_for_a_web_page():
    photo = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    overlay = draw.overlay_png(photo, torch.randn(5, 10), size=80)
    image = Image.open(io.BytesIO(overlay.png))
    assert image.size == (80, 40)
    assert overlay.bound > 0
    assert draw.overlay_png(photo, np.ones((20, 40)), bound=2.0).bound == 2.0
    assert Image.open(io.BytesIO(draw.colour_bar_png(64, 4))).size == (64, 4)


def test_the_helpers_are_reached_from_the_package():
    from pellucid import results

    assert results.overlay_png is draw.overlay_png
    with pytest.raises(AttributeError, match="no attribute 'overlay_gif'"):
        _ = results.overlay_gif
