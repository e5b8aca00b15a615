"""What `pellucid doctor` finds out."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from dataclasses import dataclass
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
from pellucid.engine.outputs import first_tensor
from pellucid.engine.passes import Engine
from pellucid.engine.run import Run, check_suits
from pellucid.errors import InputError, ModelError, ParameterError, PellucidError, Unsuitable
from pellucid.protocol.explainer import Explainer, Passes
from pellucid.protocol.look import Look
from pellucid.protocol.sample import Sample
from pellucid.protocol.target import Target
from pellucid.protocol.target_detected import PARTS, Detected
from pellucid.registry import Technique, registry
from pellucid.registry.problem import told as in_a_line

PACKAGES = ("pellucid", "torch", "torchvision", "numpy", "scikit-learn", "pluggy", "pydantic", "matplotlib")
ROWS_OF_A_TRIAL = 6
"""A technique that got so many rows through the model is taken to work; it need not finish."""
ROWS_OF_A_DATA_SET = 32
"""So many examples are a data set for techniques of whole data sets."""


TEXT = "a short text, which a model reads"
"""What a model of texts is examined with where nothing else is said."""


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


def examine(
    reference: str, shape: tuple[int, ...] | None = None, *, text: str | None = None, trust: bool = False
) -> dict[str, Any]:
    """What a model is, its layers, how fast it is, and what works on it.

    Args:
        reference: the model's.
        shape: of one input, without the batch; None is what the model's preprocessing makes of a photo.
        text: one input, for a model that reads texts; None is a short one.
        trust: whether weights that need unpickling may be read.

    Raises:
        InputError: when the model fails on inputs of this shape.
    """
    adapter = load_model(reference, trust=trust)
    one = _input(adapter, shape, text)
    try:
        raw, inputs = _raw(adapter, one)
        output, target = _scored(adapter, raw)
    except Exception as error:  # a model that is shown another shape than its own fails in any way
        given = repr(one[0]) if isinstance(one, list) else tuple(one.shape[1:])
        hint = "; say with --shape what one input looks like, such as 3,64,64" if shape is None and text is None else ""
        raise InputError(f"{reference} fails on an input {given}: {error}{hint}") from error
    parameters = sum(parameter.numel() for parameter in adapter.module.parameters())
    layers, auto, problem, held = _layers(adapter, one)
    sizes = _batch_sizes(adapter, inputs, held)
    return {
        "name": adapter.name,
        "class": type(adapter.module).__name__,
        "parameters": f"{parameters:,}",
        "input": " x ".join(map(str, inputs.shape[1:])),
        "output": output,
        "classes": f"{len(adapter.categories)} named" if adapter.categories else "not named",
        "offers": sorted(adapter.offers),
        "mode": "train" if any(part.training for part in adapter.module.modules()) else "eval",
        "device": str(Engine(adapter).device),
        "notes": list(adapter.notes),
        "layers": layers,
        "auto": auto,
        "auto_problem": problem,
        "batch_size": sizes,
        "seconds": {name: _seconds(adapter, one, name, size, target) for name, size in sizes.items()},
        "techniques": [_trial(adapter, one, record, target) for record in registry().records.values()],
    }


def _input(adapter: Adapter, shape: tuple[int, ...] | None, text: str | None) -> Any:
    """One input: a text in a list, or a tensor with one row."""
    if text is not None or (shape is None and adapter.prepare is not None):
        return [TEXT if text is None else text]
    generator = torch.Generator().manual_seed(0)
    if shape is not None:
        return torch.randn(1, *shape, generator=generator)
    from PIL import Image

    noise = (torch.rand(256, 256, 3, generator=generator) * 255).byte().numpy()
    return (adapter.transform or default_transform())(Image.fromarray(noise)).unsqueeze(0)


def _repeated(one: Any, rows: int) -> Any:
    return one * rows if isinstance(one, list) else one.expand(rows, *one.shape[1:])


def _raw(adapter: Adapter, one: Any) -> tuple[Any, Tensor]:
    """What the model returns at one input, and the numbers that this is to the model."""
    with guarded(adapter.module, 0), torch.no_grad():
        engine = Engine(adapter)
        sample, _ = make_sample(engine, one, None, 0)
        args, kwargs = sample.frame.build(sample.inputs, sample.frame.extras)
        return adapter.module(*args, **kwargs), sample.inputs


def _scored(adapter: Adapter, raw: Any) -> tuple[str, Target | None]:
    """What the model gives, in words, and the target of the trials: the predicted class, or any detected object."""
    try:
        return " x ".join(map(str, adapter.logits(raw).shape[1:])), None
    except ModelError:
        if not isinstance(raw, list) or not all(isinstance(one, dict) and one.keys() >= set(PARTS) for one in raw):
            raise
    return "detections", Detected(1, (0.0, 0.0, 1e6, 1e6), required=False)


def _layers(adapter: Adapter, one: Any) -> tuple[list[dict[str, Any]], str | None, str, int]:
    """The model's layers, the one that "auto" means or why there is none, and the bytes of all outputs together."""
    if "activations" not in adapter.offers:
        return [], None, f"{adapter.name} offers no activations", 0
    with guarded(adapter.module, 0):
        engine = Engine(adapter)
        sample, _ = make_sample(engine, one, None, 0)
        trace = engine.trace(sample.frame, sample.inputs, sample.frame.extras)
    auto = adapter.layer or (None if isinstance(trace.auto, str) else trace.auto.layer.name)
    layers = [
        {
            "name": name,
            "shape": list(place.layer.shape),
            "layout": place.layer.layout,
            "auto": name == auto,
            "outer": place.module is not None and "." not in name and name != "",
        }
        for name, place in trace.places.items()
        # A module that runs once is listed by its name alone, not by its only call too.
        if not (name.endswith(":0") and name[:-2] in trace.places)
    ]
    return layers, auto, trace.auto if isinstance(trace.auto, str) else "", trace.bytes


def _batch_sizes(adapter: Adapter, one: Tensor, held: int) -> dict[str, int]:
    """How many rows "auto" takes at once."""
    device = Engine(adapter).device
    per_row = held or 50 * one.numel() * one.element_size()
    kinds = {"forward": False} | ({"gradient": True} if "gradients" in adapter.offers else {})
    return {
        name: rows_at_once("auto", bytes_per_row=per_row, numel=one.numel(), gradients=gradients, device=device)
        for name, gradients in kinds.items()
    }


def _seconds(adapter: Adapter, one: Any, name: str, size: int, target: Target | None) -> float:
    """The seconds that an example takes in a full batch, the best of three after one to warm up."""
    rows = _repeated(one, size)
    best = float("inf")
    for round_ in range(4):
        started = time.perf_counter()
        Run(adapter, {name: _Looks(name == "gradient")}, rows, target=target or _first_score, batch_size=size).start()
        if round_:
            best = min(best, (time.perf_counter() - started) / size)
    return best


def _first_score(raw: Any) -> Tensor:
    tensor = first_tensor(raw)
    if tensor is None:
        raise ModelError("the model returns no tensor, so that nothing can be timed")
    return tensor.flatten(1)[:, 0]


def _trial(adapter: Adapter, one: Any, record: Technique, target: Target | None) -> dict[str, Any]:
    """Whether a technique works on the model, as a few rows of it tell; projectors need no model.

    "works" is None where that cannot be tried without more, such as training data or another kind of explanation.
    """
    told: dict[str, Any] = {"name": record.name, "kind": record.kind, "works": True, "why": ""}
    given = None
    try:
        technique = record.create()
        check_suits(adapter, technique)
        if record.kind == "explainer":
            # At least two examples, for techniques that take the others as references.
            rows = ROWS_OF_A_DATA_SET if "across_examples" in record.tags else 2
            explain(adapter, _repeated(one, rows), technique, target, progress=_enough)
        elif record.kind == "evaluator":
            given = explain(adapter, one, "random", target)
            evaluate(adapter, one, given, technique, target, controls=False, progress=_enough)
    except _Enough:
        pass  # it got through the model often enough: that is what the trial is for
    except PellucidError as error:
        other = given is not None and isinstance(error, (InputError, Unsuitable))  # it scores no such explanation
        told |= {"works": None if other or isinstance(error, ParameterError) else False, "why": str(error)}
    except Exception as error:  # a technique of another distribution may fail in any way, and must not end the rest
        told |= {"works": False, "why": in_a_line(error)}
    return told


class _Enough(BaseException):
    """Ends a trial; no exception of the model's, which the engine would take for a failure."""


def _enough(done: int, known: int) -> None:
    if done >= ROWS_OF_A_TRIAL:
        raise _Enough


@dataclass(frozen=True, eq=False)
class _Looks(Explainer):
    """Looks at the inputs for outputs, or for the gradient by them, and returns the raw outputs."""

    gradient: bool = False

    def explain(self, sample: Sample) -> Passes[Any]:
        seen = yield Look(at=sample, outputs=True, gradients=["input"] if self.gradient else [])
        return seen.outputs
