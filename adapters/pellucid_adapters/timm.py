"""Models of timm: preprocessing and class names come from the model's own configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from pellucid import Adapter, BadReference, Unavailable, nearest
from pellucid_adapters.module import adapted


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts a model that timm made; None for other classes of timm."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(model, nn.Module) or not config:
        return None
    from timm.data import create_transform, resolve_model_data_config

    data = resolve_model_data_config(model)
    return adapted(
        model,
        options,
        transform=create_transform(**data, is_training=False),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        categories=_categories(model, config),
    )


def load(kind: str, name: str, options: dict[str, Any]) -> Adapter:
    """Loads "timm:NAME" or "timm:NAME.TAG"; options other than `weights` go to `timm.create_model`.

    `weights` is DEFAULT, none, or a tag of timm's such as "a1_in1k".

    Raises:
        Unavailable: timm is not installed.
        BadReference: no such model or tag, a wrong option, or the weights cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise Unavailable(f"'timm:{name}' needs timm: pip install 'pellucid[timm]'") from error
    architecture = name.partition(".")[0]
    hosted = name.startswith(("hf_hub:", "hf-hub:", "local-dir:"))
    if not hosted and not timm.is_model(architecture):
        raise BadReference(f"timm has no model '{architecture}'." + nearest(architecture, timm.list_models()))
    options = dict(options)
    weights = options.pop("weights", "DEFAULT")
    tagged = name if weights in (None, "DEFAULT") else f"{architecture}.{weights}"
    if "." in tagged and not hosted and tagged not in timm.list_pretrained(f"{architecture}.*"):
        known = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        raise BadReference(
            f"timm has no weights '{tagged}': expected DEFAULT, none, a file, or one of {', '.join(known) or '(none)'}."
        )
    try:
        model = timm.create_model(tagged, pretrained=weights is not None, **options)
    except TypeError as error:
        raise BadReference(f"timm's {name} refuses its options {options}: {error}.") from error
    except Exception as error:  # network, disk and hub fail in ways of their own
        if weights is None:
            raise
        raise BadReference(
            f"the weights of timm's {name} cannot be had ({_first_line(error)}). "
            "Say weights=none for random ones, or weights=FILE."
        ) from error
    adapter = adapt(model.eval(), {})
    return adapter if adapter is not None else adapted(model, {})


def _categories(model: nn.Module, config: Any) -> list[str] | None:
    count = getattr(model, "num_classes", None)
    names = config.get("label_names")
    if not names:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(model)
        if subset is None:
            return None
        info = ImageNetInfo(subset)
        # The first of several synonyms, as torchvision has it.
        names = [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
    return list(names) if len(names) == count else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
