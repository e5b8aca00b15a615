"""What `pellucid doctor` finds out."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid.adapter import Adapter
from pellucid.api import evaluate, explain
from pellucid.data.images import default_transform
from pellucid.data.references import load_model
from pellucid.engine.batching import rows_at_once
from pellucid.engine.guard import guarded
from pellucid.engine.inputs import make_sample
from pellucid.engine.passes import Engine
from pellucid.engine.run import Run, check_suits
from pellucid.errors import InputError, LayerError, PellucidError
from pellucid.protocol.explainer import Explainer, Passes
from pellucid.protocol.look import Look
from pellucid.protocol.sample import Sample
from pellucid.registry import Technique, registry

PACKAGES = ("pellucid", "torch", "torchvision", "numpy", "scikit-learn", "pluggy", "pydantic", "matplotlib")
ROWS_OF_A_TRIAL = 6
"""A technique that got so many rows through the model is taken to work; it need not finish."""


def environment() -> dict[str, str]:
    """Versions, threads and devices."""
    told = {"python": f"{platform.python_version()} on {platform.platform(terse=True)}"}
    for name in PACKAGES:
        try:
            told[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            told[name] = "no metadata"
    told["threads"] = str(torch.get_num_threads())
    cuda = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    told["devices"] = ", ".join(["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])])
    return told


def missing_extras() -> dict[str, list[str]]:
    """For each of Pellucid's extras that users install, the distributions that are not there."""
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("pellucid") or []:
        found = re.match(r"([A-Za-z0-9._-]+)(?!\S*\[)[^;]*;.*extra == ['\"]([^'\"]+)['\"]", line)
        if found is None or found[1] == "pellucid" or found[2] in ("all", "test", "bench"):
            continue
        try:
            importlib.metadata.distribution(found[1])
        except importlib.metadata.PackageNotFoundError:
            missing.setdefault(found[2], []).append(found[1])
    return missing


def examine(reference: str, shape: tuple[int, ...] | None = None, *, trust: bool = False) -> dict[str, Any]:
    """What a model is, its layers, how fast it is, and what works on it.

    Args:
        reference: the model's.
        shape: of one input, without the batch; None is what the model's preprocessing makes of a photo.
        trust: whether weights that need unpickling may be read.

    Raises:
        InputError: when the model fails on inputs of this shape.
    """
    adapter = load_model(reference, trust=trust)
    one = _input(adapter, shape)
    try:
        outputs = _raw(adapter, one)
    except PellucidError as error:
        hint = "" if shape is not None else "; say with --shape what one input looks like, such as 3,64,64"
        raise InputError(f"{reference} fails on an input {tuple(one.shape[1:])}: {error}{hint}") from error
    parameters = sum(parameter.numel() for parameter in adapter.module.parameters())
    layers, auto, problem, held = _layers(adapter, one)
    sizes = _batch_sizes(adapter, one, held)
    return {
        "name": adapter.name,
        "class": type(adapter.module).__name__,
        "parameters": f"{parameters:,}",
        "input": " x ".join(map(str, one.shape[1:])),
        "output": " x ".join(map(str, outputs.shape[1:])),
        "classes": f"{len(adapter.categories)} named" if adapter.categories else "not named",
        "offers": sorted(adapter.offers),
        "mode": "train" if any(part.training for part in adapter.module.modules()) else "eval",
        "device": str(Engine(adapter).device),
        "notes": list(adapter.notes),
        "layers": layers,
        "auto": auto,
        "auto_problem": problem,
        "batch_size": sizes,
        "seconds": {name: _seconds(adapter, one, name, size) for name, size in sizes.items()},
        "techniques": [_trial(adapter, one, record) for record in registry().records.values()],
    }


def _input(adapter: Adapter, shape: tuple[int, ...] | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if shape is not None:
        return torch.randn(1, *shape, generator=generator)
    from PIL import Image

    noise = (torch.rand(256, 256, 3, generator=generator) * 255).byte().numpy()
    return (adapter.transform or default_transform())(Image.fromarray(noise)).unsqueeze(0)


@dataclass_explainer
class _Looks(Explainer):
    """Looks at the inputs for outputs, or for the gradient by them, and returns the raw outputs."""

    gradient: bool = False

    def explain(self, sample: Sample) -> Passes[Any]:
        seen = yield Look(at=sample, outputs=True, gradients=["input"] if self.gradient else [])
        return seen.outputs
