"""Classifiers of Hugging Face transformers: of images here, of texts in `hf_text`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pellucid import Adapter, BadReference, Unavailable
from pellucid_adapters import hf_text
from pellucid_adapters.module import adapted

if TYPE_CHECKING:
    from PIL.Image import Image


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a model of images, which takes `pixel_values` first, or of text, which takes `input_ids`; None for others.

    The option `processor` is the image processor that belongs to a model of images; for the options of a model of text
    see `hf_text.adapt`. A pipeline is adapted as the model that it holds, with its tokenizer or processor.
    """
    if not isinstance(model, nn.Module):
        return _of_pipeline(model, options)
    if next(iter(inspect.signature(model.forward).parameters), "") != "pixel_values":
        return hf_text.adapt(model, options)
    options = dict(options)
    processor = options.pop("processor", None)
    return adapted(
        model, options, categories=hf_text.categories_of(model), **(_facts(processor) if processor is not None else {})
    )


def _of_pipeline(pipeline: Any, options: dict[str, Any]) -> Adapter | None:
    model = getattr(pipeline, "model", None)
    if not isinstance(model, nn.Module):
        return None
    parts = {"tokenizer": getattr(pipeline, "tokenizer", None)}
    if next(iter(inspect.signature(model.forward).parameters), "") == "pixel_values":
        parts = {"processor": getattr(pipeline, "image_processor", None)}
    return adapt(model, {**{name: part for name, part in parts.items() if part is not None}, **options})


def load(kind: str, name: str, options: dict[str, Any]) -> Adapter:
    """Loads "hf:OWNER/NAME", or a folder that `save_pretrained` wrote, with its image processor or tokenizer.

    The configuration says whether it is a classifier of images or of texts. Only weights as safetensors are read, and
    no code of the repository is run. Options: `weights` (DEFAULT or none), `revision`.

    Raises:
        Unavailable: transformers is not installed.
        BadReference: no such model, it classifies neither images nor texts, or it cannot be downloaded.
    """
    try:
        import transformers
    except ImportError as error:
        raise Unavailable(f"'hf:{name}' needs transformers: pip install 'pellucid[transformers]'") from error
    options = dict(options)
    weights = options.pop("weights", "DEFAULT")
    revision = str(options.pop("revision", "main"))
    if options or weights not in (None, "DEFAULT"):
        raise BadReference(f"'hf:{name}' takes the options weights=DEFAULT|none|FILE and revision=..., not {options}.")
    notes: tuple[str, ...] = ()
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
        reads = type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:  # some kinds do both
            reads = any("SequenceClassification" in one for one in config.architectures or ())
        kinds: Any = (
            (transformers.AutoModelForSequenceClassification, transformers.AutoTokenizer, "tokenizer")
            if reads
            else (transformers.AutoModelForImageClassification, transformers.AutoImageProcessor, "processor")
        )
        builder, companion, part = kinds
        if weights is None:
            model = builder.from_config(config)
        else:
            model, loading = builder.from_pretrained(
                name, revision=revision, use_safetensors=True, output_loading_info=True
            )
            if loading["missing_keys"]:
                notes = (f"not in the weights, so random: {', '.join(sorted(loading['missing_keys']))}",)
    except (OSError, ValueError) as error:
        raise BadReference(f"'hf:{name}' cannot be loaded: {_first_line(error)}.") from error
    try:
        beside = companion.from_pretrained(name, revision=revision)
    except (OSError, ValueError):
        beside, notes = None, (*notes, f"no {'tokenizer' if reads else 'image processor'} comes with this model")
    if reads and beside is not None and set(beside.get_vocab().values()) <= set(beside.all_special_ids):
        # Where there is no vocabulary, transformers makes a tokenizer to which every word is unknown.
        beside, notes = None, (*notes, "no tokenizer comes with this model")
    adapter = adapt(model.eval(), {} if beside is None else {part: beside})
    if adapter is None:
        raise BadReference(
            f"'hf:{name}' is a {type(model).__name__}, which takes neither `pixel_values` nor `input_ids`."
        )
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
