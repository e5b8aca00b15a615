"""Weights from local files, never unpickled unless the user trusts them."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import BadReference, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}
# What data-parallel and compiled models put before every name.
_PREFIXES = ("module.", "_orig_mod.")
# What torch's restricted unpickler says of objects that are no tensors.
_FOREIGN = re.compile(r"Unsupported (global|class)|GLOBAL")
# Where training scripts and Lightning keep the weights in a checkpoint.
_HOLDERS = ("state_dict", "model_state_dict", "model")


def weights_file(weights: object) -> Path | None:
    """Says which file a `weights` option means; None where it is the name of a set of weights.

    Raises:
        BadReference: it means a file, and there is none.
    """
    if not isinstance(weights, str | os.PathLike):
        return None
    path = Path(weights).expanduser()
    is_path = isinstance(weights, os.PathLike) or path.suffix.lower() in _SUFFIXES or len(path.parts) > 1
    if is_path and not path.is_file():
        raise BadReference(f"there is no file of weights '{path}'.")
    return path if is_path else None


def read_weights(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Reads a state dictionary onto the CPU.

    A checkpoint that holds it under "state_dict", "model_state_dict" or "model" is opened; the prefixes of
    data-parallel and compiled models are taken off.

    Args:
        path: a .safetensors file, or one written by `torch.save`.
        trust: whether a file that is more than tensors may be unpickled, which can run any code.

    Raises:
        BadReference: not a file of weights, or it needs unpickling without `trust`.
    """
    import torch

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # the readers raise whatever a damaged file leads them to
        if isinstance(error, pickle.UnpicklingError) and _FOREIGN.search(str(error)):
            raise BadReference(
                f"'{path}' holds more than tensors, and unpickling it can run any code. If you trust where it comes "
                "from, say so (`--trust`, or trust=True); otherwise ask for a .safetensors file."
            ) from error
        # What torch says of its options comes before the fault itself.
        told = (str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines() or [""])[0]
        raise BadReference(f"'{path}' cannot be read as weights ({type(error).__name__}: {told}).") from error
    return _state(content, path)


def load_weights(module: nn.Module, path: Path, *, trust: bool = False) -> None:
    """Puts the weights of a file into a module, all of them and nothing else.

    Raises:
        BadReference: see `read_weights`.
        ModelError: names or shapes differ; the module is then unchanged.
    """
    state, own = read_weights(path, trust=trust), module.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    # Old files lack the counters that BatchNorm got later; they play no part in a prediction.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    faults = [
        *shapes,
        *(f"the file lacks {name}" for name in missing),
        *(f"the model lacks {name}" for name in state if name not in own),
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(
            f"the weights in '{path}' do not fit the model: {'; '.join(faults[:3])}{more}. Name the architecture that "
            "they were trained with, for example with the option num_classes=..."
        )
    module.load_state_dict(state, strict=False)


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    for holder in _HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping | torch.nn.Module):
            return _state(content[holder], path)
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(value) for value in content.values()):
        raise BadReference(f"'{path}' holds no state dictionary: expected names of parameters with their tensors.")
    state = {str(name): value for name, value in content.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
