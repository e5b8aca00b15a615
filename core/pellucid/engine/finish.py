"""Finishing a result: what the core knows of a run that a technique does not."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pellucid.adapter import Adapter
from pellucid.engine.drive import Cost
from pellucid.engine.parts import Parts
from pellucid.errors import ProtocolError
from pellucid.protocol.blocks import raw
from pellucid.protocol.leaves import each, tensors_of
from pellucid.protocol.sample import Sample
from pellucid.protocol.source import Streamed, form_sum
from pellucid.results import Attribution, Check, Checks, Explanation, Projection, TargetRecord


@dataclass(eq=False)
class Finisher:
    """Fills in what results of one run have in common.

    Attributes:
        adapter: the model.
        parts: the model's parts.
        sample: what was explained.
        classes: (B,) the class of each example, where the target is one.
        notes: what adapting the model and fitting the inputs did.
        checks: certificates of the run itself, such as what an optimisation changed.
        device: where the user's inputs are, and the results go.
    """

    adapter: Adapter
    parts: Parts
    sample: Sample
    classes: Tensor | None
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    device: torch.device

    def finish(
        self, result: Any, technique: Any, cost: Cost, *, layer: str | None = None, shared: bool = False
    ) -> Explanation:
        """A technique's result with its provenance, target, inputs and general checks.

        Raises:
            ProtocolError: when it is no explanation, or not one for each example.
        """
        record = getattr(technique, "technique", None)
        made_by = provenance(technique)
        name = made_by["technique"]
        if not isinstance(result, Explanation):
            raise ProtocolError(
                f"technique '{name}' returned {type(result).__name__}; expected an Explanation, such as an Attribution"
            )
        examples = len(self.sample)
        by_example = record is not None and "across_examples" not in record.tags
        if by_example and isinstance(result, Attribution) and len(result) != examples:
            raise ProtocolError(f"technique '{name}' returned {len(result)} rows for {examples} examples")
        meta = replace(
            result.meta,
            **made_by,
            layer=result.meta.layer or layer,
            seed=self.sample.seed,
            passes={"forward": cost.forward / examples, "backward": cost.backward / examples},
            shared=shared,
            seconds=cost.seconds,
            model=self.adapter.name,
            model_hash=self._hashes[0],
            input_hash=self._hashes[1],
            categories=None if self.adapter.categories is None else tuple(self.adapter.categories),
            mean=self.adapter.mean,
            std=self.adapter.std,
            notes=(*result.meta.notes, *self.notes),
            created=self._now,
        )
        values = each(self._delivered, result.values) if isinstance(result.values, Tensor | Mapping) else result.values
        general = general_checks(values) if isinstance(result, Attribution) else []
        changes: dict[str, Any] = {
            "values": values,
            "meta": meta,
            "checks": Checks((*result.checks, *general, *self.checks)),
            "target": self._target,
            "inputs": self._inputs,
        }
        if isinstance(result, Attribution) and result.error is not None:
            changes["error"] = each(self._delivered, result.error)
        if layer is not None and getattr(result, "over", None) == "auto":
            changes["over"] = layer
        finished: Explanation = replace(result, **changes)
        if self.sample.frame.present is not None and isinstance(finished, Attribution):
            finished = self.sample.frame.present(finished)
        return finished

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        """The digests of the model and of the inputs, which all results of the run share."""
        return model_hash(self.adapter, self.parts), input_hash(self.sample)

    @cached_property
    def _now(self) -> str:
        return _now()

    @cached_property
    def _target(self) -> TargetRecord:
        return TargetRecord(self.sample.target.describe(), self.classes)

    @cached_property
    def _inputs(self) -> Any:
        held = self.sample.held
        return None if held is None else each(lambda leaf: leaf.to(self.device), held)

    def _delivered(self, values: Tensor) -> Tensor:
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        return values.detach().to(self.device)


def general_checks(values: Any) -> list[Check]:
    """The certificates that every attribution gets: that it is finite, and that it says anything at all."""
    if not isinstance(values, Tensor | Mapping):
        return []
    leaves = [leaf.flatten(1) for leaf in tensors_of(values) if isinstance(leaf, Tensor) and leaf.dim() > 1]
    if not leaves:
        return []
    extremes = [(leaf.amin(dim=1).tolist(), leaf.amax(dim=1).tolist()) for leaf in leaves]
    pairs = [list(zip(low, high, strict=True)) for low, high in extremes]
    constant = [all(low == high for low, high in one) for one in zip(*pairs, strict=True)]
    infinite = [0] * len(constant)
    for leaf, ends in zip(leaves, extremes, strict=True):
        # Counting takes longer than finding the extremes, which are not finite where any value is not.
        if not all(map(math.isfinite, itertools.chain(*ends))):
            infinite = [a + b for a, b in zip(infinite, (~torch.isfinite(leaf)).sum(dim=1).tolist(), strict=True)]
    return [
        Check.bound("finite", infinite, 0, "values that are NaN or infinite"),
        Check.bound("not constant", constant, 0, "1 where all values of an example are equal"),
    ]


def mapped(result: Projection, technique: Any, seed: int, seconds: float) -> Projection:
    """A map with its provenance: what made it, and when."""
    meta = replace(result.meta, **provenance(technique), seed=seed, seconds=seconds, created=_now())
    return replace(result, meta=meta)


def provenance(technique: Any) -> dict[str, Any]:
    """What made a result, by the fields of `Meta`: the technique with its parameters, its provider, the versions."""
    record = getattr(technique, "technique", None)
    return {
        "technique": record.name if record else type(technique).__name__,
        "parameters": plain_parameters(technique),
        "provider": record.distribution if record else "",
        "version": record.version if record else "",
        "pellucid_version": _version(),
        "torch_version": str(torch.__version__),
    }


def plain_parameters(technique: Any) -> dict[str, Any]:
    """A technique's parameters as JSON has them: tensors by shape, techniques by name and parameters."""
    return {name: _plain(value) for name, value in technique.get_params().items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}" if value.numel() > 16 else value.tolist()
    if hasattr(value, "get_params"):
        record = getattr(value, "technique", None)
        return {"use": record.name if record else type(value).__name__, **plain_parameters(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in value]
    return getattr(value, "__qualname__", type(value).__name__)


def model_hash(adapter: Adapter, parts: Parts) -> str:
    """A digest of a model's parameters and buffers: their names, shapes and some of their values."""
    state = parts.state
    known = adapter.cache.get("model hash")
    if known is None or known[0] != state:
        named = [*adapter.module.named_parameters(), *adapter.module.named_buffers()]
        digest = hashlib.blake2b(repr([name for name, _ in named]).encode(), digest_size=8)
        for _, tensor in named:
            # A hundred values of each tensor tell two trainings apart; all of them would cost as much as a pass.
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            numbers = _numbers(tensor.detach())
            digest.update(raw(numbers[:: max(1, numbers.numel() // 100)]))
        adapter.cache["model hash"] = known = (state, digest.hexdigest())
    return str(known[1])


def _numbers(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in one row, of a sparse one those that it holds."""
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values().flatten()
    return (tensor if tensor.layout is torch.strided else tensor.values()).flatten()


def input_hash(sample: Sample) -> str:
    """A checksum of the inputs: all their bytes and their shapes."""
    check = sample.checksum if isinstance(sample, Streamed) else 0
    for tensor in () if isinstance(sample, Streamed) else tensors_of(sample.inputs):
        # A checksum rather than a digest, which would cost several per cent of a pass on a small network.
        check = zlib.crc32(raw(tensor), form_sum(tuple(tensor.shape), tensor.dtype, check))
    return f"{check:08x}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version() -> str:
    from pellucid import __version__

    return __version__
