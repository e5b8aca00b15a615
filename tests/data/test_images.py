from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pellucid import Adapter, BadReference, InputError, load_images
from pellucid.data.images import default_transform, read_image, to_rgb


def adapter(**known) -> Adapter:
    return Adapter(nn.Identity(), **known)


def as_tensor(photo: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below" / ".hidden").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "below" / "a.jpg")
    Image.new("RGB", (8, 8), "lime").save(tmp_path / "below" / ".hidden" / "z.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_read_in_order_and_damaged_files_are_reported(folder):
    (folder / "a.png").write_bytes(b"no picture")
    whole = (folder / "b.png").read_bytes()
    (folder / "c.png").write_bytes(whole[: len(whole) // 2])
    images = load_images(folder, adapter(transform=as_tensor))
    assert images.names == ["b.png", "below/a.jpg"]
    assert [name for name, _ in images.skipped] == ["a.png", "c.png"]
    assert all(reason for _, reason in images.skipped)
    assert images.tensor.shape == (2, 3, 8, 8)
    assert images.tensor[0].mean(dim=(1, 2)).tolist() == [1, 0, 0]
    assert len(images) == 2


def test_a_damaged_file_that_is_named_is_an_error(folder):
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png' cannot be read as an image"):
        load_images(str(folder / "a.png"), adapter(transform=as_tensor))


def test_files_patterns_images_and_their_names(folder):
    specs = [folder / "b.png", str(folder / "**" / "*.jpg"), Image.new("L", (8, 8), 255), folder / "b.png"]
    images = load_images(specs, adapter(transform=as_tensor))
    assert images.names == ["b.png", "a.jpg", "image", "b.png (2)"]
    assert images.tensor[2].mean() == 1
    assert [photo.mode for photo in images.photos] == ["RGB"] * 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.png", "no file or folder 'absent.png'"),
        ("b.pmg", "Did you mean 'b.png'"),
        ("*.gif", "no file matches the pattern"),
        ("empty", "holds no images: looked for .bmp"),
        ("bad", "all 1 are unreadable. x.png: "),
    ],
)
def test_nothing_to_read_is_an_error(folder, monkeypatch, spec, message):
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_bytes(b"")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        load_images(spec, adapter(transform=as_tensor))


def test_no_specs_and_unknown_references():
    with pytest.raises(InputError, match="there are no images"):
        load_images([], adapter())
    with pytest.raises(BadReference, match="nobody provides pictures for 'web:cat'"):
        load_images("web:cat", adapter())


def test_demo_photos():
    pytest.importorskip("skimage")
    images = load_images(["demo:cat", "demo:chelsea", "demo:rocket"], adapter())
    assert images.names == ["cat", "chelsea", "rocket"]
    assert images.photos[0].size == (451, 300)
    assert torch.equal(images.tensor[0], images.tensor[1])
    with pytest.raises(BadReference, match=r"no photo 'cofee'.*Did you mean 'coffee'"):
        load_images("demo:cofee", adapter())


def test_different_sizes_make_no_batch(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"a\.png \(3, 8, 8\), b\.png \(3, 9, 8\)"):
        load_images(tmp_path, adapter(transform=as_tensor))


@pytest.mark.parametrize(
    ("transform", "message"), [(np.asarray, "gives ndarray"), (lambda _: torch.ones(2, 2), "2, 2")]
)
def test_a_transform_must_give_one_input(transform, message):
    with pytest.raises(InputError, match=message):
        load_images(Image.new("RGB", (8, 8)), adapter(transform=transform))


def test_every_bundled_photo_can_be_read():
    pytest.importorskip("skimage")
    from pellucid_adapters.demo import bundled_photos

    assert {"cat", "coffee", "rocket", "astronaut"} <= set(bundled_photos())
    for path in bundled_photos().values():
        assert read_image(path).mode == "RGB"


def test_the_assumed_preprocessing_is_told_once():
    unknown, photo = adapter(), Image.new("RGB", (300, 260), (124, 116, 104))
    for _ in range(2):
        images = load_images(photo, unknown)
    assert images.tensor.shape == (1, 3, 224, 224)
    assert images.tensor.abs().max() < 0.02  # ImageNet's mean colour becomes about zero
    assert unknown.mean == (0.485, 0.456, 0.406)
    assert len(unknown.notes) == 1
    assert "ImageNet's mean" in unknown.notes[0]
    assert unknown.pictures(images.tensor)[0, 0, 0].tolist() == [124, 116, 104]


def test_a_known_normalisation_is_kept():
    known = adapter(mean=(0.5,) * 3, std=(0.25,) * 3)
    images = load_images(Image.new("RGB", (300, 260), "white"), known)
    torch.testing.assert_close(images.tensor, torch.full((1, 3, 224, 224), 2.0))
    assert known.notes == ("preprocessing assumed: shorter side 256, centre crop 224",)


def test_the_default_preprocessing_resizes_and_crops():
    values = np.zeros((512, 1024, 3), dtype=np.uint8)
    values[:, 512:] = 255
    pixels = default_transform((0,) * 3, (1,) * 3)(Image.fromarray(values))
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, :, :110].max() == 0
    assert pixels[:, :, -110:].min() == 1


def test_the_exif_orientation_is_applied(tmp_path):
    values = np.zeros((4, 8, 3), dtype=np.uint8)
    values[:, :4] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    photo = read_image(tmp_path / "a.png")
    assert photo.size == (4, 8)
    assert np.asarray(photo)[:4].min() == 255  # what was on the left is above
    assert np.asarray(photo)[4:].max() == 0


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (2, 2), 100), (100, 100, 100)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("LA", (2, 2), (100, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("P", (2, 2), 0), (0, 0, 0)),
        (Image.fromarray(np.full((2, 2), 32896, dtype=np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 65535, dtype=np.int32)), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 0.2, dtype=np.float32)), (51, 51, 51)),
        (Image.fromarray(np.full((2, 2), 51.0, dtype=np.float32)), (51, 51, 51)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image, colour):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.getpixel((0, 0)) == colour


@pytest.mark.parametrize("value", [-1.0, 300.0, float("nan")])
def test_floating_point_values_of_unknown_scale_are_refused(value):
    with pytest.raises(InputError, match="mode 'F' has values"):
        to_rgb(Image.fromarray(np.full((2, 2), value, dtype=np.float32)))


def test_sixteen_bits_and_palettes_survive_files(tmp_path):
    Image.fromarray(np.full((2, 2), 32896, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    assert np.allclose(read_image(tmp_path / "print.jpg").getpixel((4, 4)), (255, 0, 0), atol=3)
    palette = Image.new("P", (2, 2), 0)
    palette.save(tmp_path / "clear.png", transparency=0)
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
