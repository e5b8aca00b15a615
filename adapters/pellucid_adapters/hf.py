"""Image classifiers of Hugging Face transformers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pellucid import Adapter, BadReference, Unavailable
from pellucid_adapters.module import adapted

if TYPE_CHECKING:
    from PIL.Image import Image


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a model that takes `pixel_values` first and returns `logits`; None for others.

    The option `processor` is the image processor that belongs to the model.
    """
    if (
        not isinstance(model, nn.Module)
        or next(iter(inspect.signature(model.forward).parameters), "") != "pixel_values"
    ):
        return None
    options = dict(options)
    processor = options.pop("processor", None)
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    # A configuration that was told nothing names its classes LABEL_0, LABEL_1, ...: that says no more than the index.
    told = any(str(name) != f"LABEL_{index}" for index, name in names.items())
    return adapted(
        model,
        options,
        categories=[str(names[index]) for index in sorted(names)] if told else None,
        **(_facts(processor) if processor is not None else {}),
    )


def load(kind: str, name: str, options: dict[str, Any]) -> Adapter:
    """Loads "hf:OWNER/NAME", or a folder that `save_pretrained` wrote, with its image processor.

    Only weights as safetensors are read, and no code of the repository is run. Options: `weights` (DEFAULT or none),
    `revision`.

    Raises:
        Unavailable: transformers is not installed.
        BadReference: no such model, it is no image classifier, or it cannot be downloaded.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise Unavailable(f"'hf:{name}' needs transformers: pip install 'pellucid[transformers]'") from error
    options = dict(options)
    weights = options.pop("weights", "DEFAULT")
    revision = str(options.pop("revision", "main"))
    if options or weights not in (None, "DEFAULT"):
        raise BadReference(f"'hf:{name}' takes the options weights=DEFAULT|none|FILE and revision=..., not {options}.")
    notes: tuple[str, ...] = ()
    try:
        if weights is None:
            model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(name, revision=revision))
        else:
            model, loading = AutoModelForImageClassification.from_pretrained(
                name, revision=revision, use_safetensors=True, output_loading_info=True
            )
            if loading["missing_keys"]:
                notes = (f"not in the weights, so random: {', '.join(sorted(loading['missing_keys']))}",)
    except (OSError, ValueError) as error:
        raise BadReference(f"'hf:{name}' cannot be loaded: {_first_line(error)}.") from error
    try:
        processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError):
        processor, notes = None, (*notes, "no image processor comes with this model")
    adapter = adapt(model.eval(), {"processor": processor})
    if adapter is None:
        raise BadReference(f"'hf:{name}' is a {type(model).__name__}, which does not take `pixel_values` first.")
    adapter.notes = (*adapter.notes, *notes)
    return adapter


def _facts(processor: Any) -> dict[str, Any]:
    def transform(photo: Image) -> Tensor:
        pixels: Tensor = processor(photo, return_tensors="pt")["pixel_values"]
        return pixels[0]

    facts: dict[str, Any] = {"transform": transform}
    if getattr(processor, "do_normalize", False):
        facts["mean"], facts["std"] = tuple(processor.image_mean), tuple(processor.image_std)
    return facts


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
