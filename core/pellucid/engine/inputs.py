"""Inputs: from what a user gives to a sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pellucid.adapter import Adapter
from pellucid.engine.passes import Engine
from pellucid.engine.tables import check_names, named, table
from pellucid.errors import InputError
from pellucid.protocol.leaves import Leaves
from pellucid.protocol.sample import Frame, Sample
from pellucid.protocol.source import Source, Streamed
from pellucid.protocol.target_given import make_target


def make_sample(engine: Engine, inputs: Any, target: Any, seed: int) -> tuple[Sample, list[str]]:
    """Makes a sample of a user's inputs, and says what was changed about them.

    The sample has its own copy of the inputs, so that nothing can change the user's. Of a memory-mapped array, a
    Dataset or a DataLoader the examples are read as they are looked at, see `Streamed`.

    Raises:
        InputError: when the inputs are of the wrong type or shape, empty or not finite.
        TargetError: when the target does not fit them.
    """
    adapter = engine.adapter
    notes: list[str] = []
    names: tuple[str, ...] | None = None
    if adapter.prepare is None and _is_data_set(inputs):
        return _streamed(engine, inputs, target, seed, notes), notes
    prepared = None if adapter.prepare is None else adapter.prepare(inputs)
    if prepared is not None:
        values, extras, frame = {"": prepared.inputs}, prepared.frame.extras, replace(prepared.frame, extras={})
        notes.extend(prepared.notes)
    else:
        inputs, names = table(adapter.feature_names, inputs)
        values, extras, build = _taken_apart(adapter, inputs)
        frame = Frame(build, present=None if names is None else partial(named, names))
    fitted = {name: _fitted(name, tensor, engine, notes) for name, tensor in values.items()}
    frame.extras.update({name: extra.detach().to(engine.device).clone() for name, extra in extras.items()})
    counts = {name: int(tensor.shape[0]) for name, tensor in {**fitted, **extras}.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs have different numbers of examples: {counts}; expected the same first axis")
    if prepared is None:
        _check_rank(adapter.module, fitted)
        if names is not None and "" in fitted:
            check_names(names, fitted[""])
    examples = next(iter(counts.values()))
    single = set(fitted) == {""}
    sample = Sample(
        fitted[""] if single else Leaves(fitted),
        make_target(target, examples, adapter.categories),
        seed,
        adapter.mean,
        adapter.std,
        frame,
    )
    return sample, notes


def _is_data_set(inputs: Any) -> bool:
    return isinstance(inputs, (Dataset, DataLoader)) or (isinstance(inputs, np.memmap) and inputs.ndim > 1)


def _streamed(engine: Engine, inputs: Any, target: Any, seed: int, notes: list[str]) -> Streamed:
    """A sample of a data set, of which the first example is read to see what it is."""
    adapter = engine.adapter

    def shown(item: Any) -> Any:
        return _transformed(adapter, item)[0] if _is_photo(item) else item

    def fit(inputs: Tensor, places: Tensor) -> Tensor:
        floating = inputs if inputs.is_floating_point() else _as_floating(adapter, inputs)
        return _fitted("", floating, engine, notes, places)

    source = Source.of(inputs, "the data set", convert=shown)
    made = make_target(target, source.count, adapter.categories)
    sample = Streamed(made, seed, adapter.mean, adapter.std, source=source, fit=fit)
    _check_rank(adapter.module, {"": sample.part(0, 1).inputs})
    return sample


def _taken_apart(adapter: Adapter, inputs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Named floating tensors, other tensors, and how the model is called with them."""
    if _is_photo(inputs) or (isinstance(inputs, (list, tuple)) and inputs and all(map(_is_photo, inputs))):
        inputs = _transformed(adapter, inputs)
    if isinstance(inputs, Mapping):
        given = {str(name): value for name, value in inputs.items()}
        by_name = _takes_names(adapter.module, given)
    elif isinstance(inputs, (tuple, list)) and any(isinstance(value, Tensor) for value in inputs):
        given = {str(index): value for index, value in enumerate(inputs)}
        by_name = None
    else:
        tensor = _tensor("the inputs", inputs)
        if not tensor.is_floating_point():
            tensor = _as_floating(adapter, tensor)
        return {"": tensor}, {}, _alone
    tensors = {
        name: _tensor(f"input '{name}'", value)
        for name, value in given.items()
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0  # a single number belongs to no example
    }
    values = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    extras = {name: tensor for name, tensor in tensors.items() if name not in values}
    if not values:
        raise InputError(
            f"none of the inputs {sorted(given)} is a floating-point tensor, so that nothing can be attributed to "
            "them; give embeddings in place of token ids"
        )

    def build(leaves: Any, others: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = {name: leaves[name] if name in values else others.get(name, given[name]) for name in given}
        if by_name is None:
            return tuple(filled.values()), {}
        return ((), filled) if by_name else ((filled,), {})

    return values, extras, build


def _alone(inputs: Any, extras: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (inputs,), {}


def _takes_names(module: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a model takes a mapping's entries as keywords, rather than the mapping as one argument."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return True
    return set(given) <= {parameter.name for parameter in parameters}


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind == "U":
            raise TypeError("this model reads no texts; pictures are read by pellucid.load_images")
        if array.dtype == object:
            raise TypeError("mixed or ragged values")
        # Torch warns of arrays that cannot be written, such as one that is memory-mapped to be read.
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what}: {type(value).__name__} is no tensor ({error}); expected a tensor or array (B, ...), photos, or "
            "a mapping or tuple of tensors"
        ) from None


def _as_floating(adapter: Adapter, tensor: Tensor) -> Tensor:
    if "gradients" not in adapter.offers and tensor.dtype != torch.bool:
        return tensor.to(torch.get_default_dtype())
    raise InputError(
        f"the inputs are of type {tensor.dtype}; expected floating-point numbers. Photos of bytes are to be scaled and "
        "normalised as the model was trained (or given as PIL images to a model whose transform is known)"
    )


def _fitted(name: str, tensor: Tensor, engine: Engine, notes: list[str], places: Tensor | None = None) -> Tensor:
    """A copy of inputs as the model takes them; `places` are those of the examples among more."""
    what = f"input '{name}'" if name else "the inputs"
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise InputError(f"{what} have shape {tuple(tensor.shape)}; expected (B, ...) with at least one example")
    tensor = tensor.detach()
    # One sum finds out about all numbers but those whose sum overflows.
    if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        bad = (~torch.isfinite(tensor)).flatten(1).any(dim=1) if tensor.dim() > 1 else ~torch.isfinite(tensor)
        shown = (bad.nonzero().flatten() if places is None else places[bad.cpu()]).tolist()
        raise InputError(f"{what} are not finite (NaN or infinity) in {len(shown)} examples: {shown[:10]}; remove them")
    dtype = engine.dtype
    if dtype is not None and tensor.dtype != dtype:
        note = f"{what} were cast from {tensor.dtype} to the model's {dtype}".replace("torch.", "")
        notes.extend([note] if note not in notes else [])
    # A copy, also of a tensor that was made under inference mode, of which autograd would not take gradients.
    return tensor.to(device=engine.device, dtype=dtype or tensor.dtype, copy=True).contiguous()


def _check_rank(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Finds the commonest mistake before the model does: one photo without the axis of examples."""
    first = next((part for part in module.modules() if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    if first is None or set(values) != {""}:
        return
    expected = (
        2
        + {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[
            next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(first, kind))
        ]
    )
    shape = tuple(values[""].shape)
    if len(shape) == expected - 1 and shape[0] == first.in_channels:
        raise InputError(
            f"the inputs have shape {shape}, which looks like one example without the axis of examples; expected "
            f"(B, {first.in_channels}, ...): give inputs[None]"
        )


def _is_photo(value: Any) -> bool:
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _transformed(adapter: Adapter, photos: Any) -> Tensor:
    if adapter.transform is None:
        raise InputError(
            f"photos were given, but how {adapter.name} wants them is not known; give a tensor (B, C, H, W), or say "
            "pellucid.adapt(model, transform=...)"
        )
    photos = [photos] if _is_photo(photos) else photos
    return torch.stack([adapter.transform(photo) for photo in photos])
