"""Photos from files, folders and patterns, made into one batch of inputs."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from pellucid.data.references import Reference, looks_like_reference, resolve
from pellucid.errors import BadReference, InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.adapter import Adapter

Spec = str | os.PathLike[str] | Image.Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Images:
    """A batch of photos, as the model takes them and as they were.

    Attributes:
        tensor: the model's inputs, (B, C, H, W).
        photos: the photos before preprocessing, upright, in RGB.
        names: one name for each, no two the same.
        skipped: what could not be read, with the reason.
    """

    tensor: Tensor
    photos: list[Image.Image]
    names: list[str]
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.names)


def load_images(specs: Spec | Sequence[Spec], adapter: Adapter) -> Images:
    """Reads photos and preprocesses them for a model.

    A spec is a file; a folder (every picture in it and below it, by path; hidden ones and files that are no pictures
    are passed over); a pattern such as "photos/*.jpg"; a reference such as "demo:cat"; or a PIL image. A damaged file
    that a folder or a pattern brings is skipped and reported in the result; one that is named is an error.

    Where the adapter knows no preprocessing, it gets ImageNet's usual one (shorter side 256, centre crop 224), and a
    note that says so.

    Raises:
        InputError: nothing to read, a named file is missing or damaged, or sizes differ after preprocessing.
        BadReference: a reference leads nowhere.
    """
    import torch

    read: list[tuple[str, Image.Image]] = []
    skipped: list[tuple[str, str]] = []
    for spec in [specs] if isinstance(specs, str | os.PathLike | Image.Image) else specs:
        read.extend(_read(spec, skipped))
    if not read:
        raise InputError("there are no images to explain" + _reasons(skipped))

    transform = _transform(adapter)
    photos = [photo for _, photo in read]
    names = _distinct(name for name, _ in read)
    inputs = [transform(photo) for photo in photos]
    for each in inputs:
        if not isinstance(each, torch.Tensor) or each.ndim != 3:
            got = tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
            raise InputError(f"the model's `transform` gives {got}: expected a tensor (C, H, W) for one photo.")
    if len({each.shape for each in inputs}) > 1:
        told = ", ".join(f"{name} {tuple(each.shape)}" for name, each in zip(names, inputs, strict=True))
        raise InputError(
            f"after this model's preprocessing the images differ in size ({told}) and make no batch. Explain them one "
            "at a time, or adapt the model with a `transform` that crops."
        )
    return Images(torch.stack(inputs), photos, names, skipped)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a picture as an upright RGB photo.

    See `to_rgb` for what becomes of other modes. Of several frames the first is read.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # PIL's decoders raise whatever a damaged file leads them to
        raise InputError(f"'{path}' cannot be read as an image: {str(error) or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Makes an upright RGB image of 8 bits of any PIL image.

    The EXIF orientation is applied; transparency is laid over white; 16-bit values are scaled to 8 bits instead of
    being clipped; floating-point values must lie in 0..1 or 0..255.

    Raises:
        InputError: the range of the values leaves their scale unknown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith(("I;16", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def default_transform(
    mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Callable[[Image.Image], Tensor]:
    """Makes ImageNet's usual preprocessing: shorter side to 256, centre crop 224, normalised; gives (3, 224, 224)."""
    import torch
    from torchvision.transforms import v2

    transform: Callable[[Image.Image], Tensor] = v2.Compose(
        [
            v2.Resize(256, antialias=True),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return transform


def _transform(adapter: Adapter) -> Callable[[Image.Image], Tensor]:
    if adapter.transform is None:
        assumed = adapter.mean is None or adapter.std is None
        if adapter.mean is None or adapter.std is None:
            adapter.mean, adapter.std = IMAGENET_MEAN, IMAGENET_STD
        adapter.transform = default_transform(adapter.mean, adapter.std)
        adapter.notes = (
            *adapter.notes,
            "preprocessing assumed: shorter side 256, centre crop 224"
            + (", ImageNet's mean and standard deviation" if assumed else ""),
        )
    return adapter.transform


def _read(spec: Spec, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, Image.Image]]:
    if isinstance(spec, Image.Image):
        yield "image", to_rgb(spec)
        return
    text, path = os.fspath(spec), Path(spec).expanduser()
    if path.is_dir():
        yield from _readable(path, _below(path), skipped)
        if not any(_below(path)):
            raise InputError(f"the folder '{path}' holds no images: looked for {', '.join(sorted(SUFFIXES))}.")
    elif path.is_file():
        yield path.name, read_image(path)
    elif looks_like_reference(text):
        yield from _from_reference(Reference.parse(text))
    elif glob.has_magic(text):
        # Not Path.glob: it takes no absolute patterns.
        found = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        files = [each for each in found if each.is_file()]
        if not files:
            raise InputError(f"no file matches the pattern '{text}'.")
        yield from _readable(Path(os.path.commonpath([each.parent for each in files])), files, skipped)
    else:
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"there is no file or folder '{text}'." + nearest(path.name, beside))


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            yield path


def _readable(folder: Path, files: Iterable[Path], skipped: list[tuple[str, str]]) -> Iterator[tuple[str, Image.Image]]:
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            yield name, read_image(file)
        except InputError as error:
            skipped.append((name, str(error.__cause__ or error)))


def _from_reference(reference: Reference) -> Iterator[tuple[str, Image.Image]]:
    found = resolve("images", reference)
    pictures = found if isinstance(found, Sequence) else [found]
    for place, picture in enumerate(pictures, start=1):
        name = reference.name if len(pictures) == 1 else f"{reference.name} {place}"
        if isinstance(picture, Image.Image):
            yield name, to_rgb(picture)
        elif isinstance(picture, str | os.PathLike):
            yield name, read_image(picture)
        else:
            raise BadReference(f"'{reference}' gives {type(picture).__name__} where an image or its path was expected.")


def _distinct(names: Iterable[str]) -> list[str]:
    taken: dict[str, None] = {}
    for name in names:
        own, count = name, 1
        while own in taken:
            count += 1
            own = f"{name} ({count})"
        taken[own] = None
    return list(taken)


def _reasons(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return ": give files, folders, patterns or references such as 'demo:cat'."
    return f": all {len(skipped)} are unreadable. " + "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])


def _eight_bits(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif image.mode != "F" and low >= 0 and high <= 65535:
        values = values / 257  # 65535 / 255
    elif not (image.mode == "F" and low >= 0 and high <= 255):
        raise InputError(
            f"an image of mode '{image.mode}' has values from {low:g} to {high:g}: expected 0..65535 for integers, "
            "0..1 or 0..255 for floating point. Save it with 8 bits."
        )
    return Image.fromarray(values.round().astype(np.uint8))
