"""What all explanations share: provenance, checks, slicing, saving, showing."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from operator import index as as_index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import torch
from torch import Tensor

from pellucid.errors import InputError, SavedFileError
from pellucid.protocol.leaves import Leaves
from pellucid.results import storage
from pellucid.results.checks import Check, Checks
from pellucid.results.meta import Meta, TargetRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Index: TypeAlias = "int | slice | Sequence[int] | Sequence[bool] | Tensor"
KINDS: dict[str, type[Explanation]] = {}
_RECORDS: dict[str, type] = {"Check": Check, "Checks": Checks, "Meta": Meta, "TargetRecord": TargetRecord}


def per_example(axis: int = 0) -> dict[str, Any]:
    """Metadata of a field whose tensors have the examples on `axis`; slicing a result slices it."""
    return {"axis": axis}


ENTRY_PER_EXAMPLE = {"entries": True}
"""Metadata of a field that is a tuple with one entry for each example, such as names."""

ONLY_FOR_PLOTS = {"reference": True}
"""Metadata of a field that only plots need, such as a data set's photos; `save(inputs=False)` leaves it out."""


def record(kind: type) -> type:
    """Lets a small dataclass be part of results that are saved. Use it as a decorator."""
    _RECORDS[kind.__name__] = kind
    return kind


class Certificates:
    """A field that takes any checks and gives `Checks`."""

    def __get__(self, result: Explanation | None, owner: type | None = None) -> Checks:
        return Checks() if result is None else cast(Checks, result.__dict__["checks"])

    def __set__(self, result: Explanation, checks: Iterable[Check]) -> None:
        result.__dict__["checks"] = Checks(checks)


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The base of all results.

    A subclass is a frozen dataclass that declares its fields, with the metadata `per_example(axis)` or
    `ENTRY_PER_EXAMPLE` where slicing cuts them and `ONLY_FOR_PLOTS` where saving may leave them out, and a `plot`.
    Tensors are kept without their graph. Slicing (`result[3]`, `result[2:5]`, `result[mask]`) always gives a result of
    the same class; `len(result)` counts examples.

    Attributes:
        target: what was explained.
        meta: where the result comes from.
        checks: certificates of how far it can be trusted.
        inputs: the inputs that were explained, for plots; None where they were not kept.
    """

    _: KW_ONLY
    target: TargetRecord = field(default_factory=TargetRecord)
    meta: Meta = field(default_factory=Meta)
    checks: Certificates = Certificates()  # the default is what the descriptor gives: no checks
    inputs: Tensor | Leaves | None = field(default=None, metadata=ONLY_FOR_PLOTS)

    if TYPE_CHECKING:

        @property
        def values(self) -> Any:
            """The numbers of the result; each class says what they are over."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = KINDS.get(cls.__name__)
        if known is not None and known.__module__.startswith("pellucid.") and known.__module__ != cls.__module__:
            raise TypeError(
                f"a result class is already named '{cls.__name__}'; saved files need another name for yours"
            )
        KINDS[cls.__name__] = cls

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            bare = _map(lambda tensor: tensor.detach() if tensor.requires_grad else tensor, value)
            if bare is not value:
                object.__setattr__(self, part.name, bare)
        sizes = {part.name: _sizes(getattr(self, part.name), part.metadata["axis"]) for part in self._sliced()}
        counts = set().union(*sizes.values())
        for part in fields(self):
            entries = getattr(self, part.name)
            if "entries" in part.metadata and entries is not None:
                object.__setattr__(self, part.name, tuple(entries))
                sizes[part.name] = {len(entries)}
                counts.add(len(entries))
        if len(counts) > 1:
            told = ", ".join(f"{name} {sorted(size)}" for name, size in sizes.items() if size)
            raise InputError(f"the parts of this {type(self).__name__} differ in their number of examples: {told}")

    @classmethod
    def _sliced(cls) -> list[Any]:
        return [part for part in fields(cls) if "axis" in part.metadata]

    def __len__(self) -> int:
        sizes: set[int] = set().union(*(_sizes(getattr(self, p.name), p.metadata["axis"]) for p in self._sliced()))
        return next(iter(sizes), 0)

    def __getitem__(self, index: Index) -> Self:
        """The result for some of the examples; an integer keeps the axis, so that the class's shapes hold.

        What is not one for each example, such as the names of features, stays whole.

        Raises:
            IndexError: when an example does not exist.
        """
        count = len(self)
        places = _places(index, count)
        parts: dict[str, Any] = {
            part.name: _pick(getattr(self, part.name), places, part.metadata["axis"]) for part in self._sliced()
        }
        for part in fields(self):
            entries = getattr(self, part.name)
            if "entries" in part.metadata and entries is not None:
                parts[part.name] = tuple(entries[place] for place in places.tolist())
        if self.inputs is not None and _sizes(self.inputs, 0) == {count}:
            parts["inputs"] = _pick(self.inputs, places, 0)
        return replace(
            self,
            **parts,
            target=self.target.pick(places, count),
            checks=self.checks.pick(places.tolist(), count),
        )

    def to(self, device: torch.device | str) -> Self:
        """The result with every tensor on a device."""
        return replace(
            self,
            **{part.name: _map(lambda tensor: tensor.to(device), getattr(self, part.name)) for part in fields(self)},
        )

    def save(self, path: str | Path, *, inputs: bool = True) -> Path:
        """Writes the result to one `.safetensors` file, whole or not at all, and returns its path.

        Args:
            path: where; the suffix is added where it is missing.
            inputs: whether the inputs, and other tensors that only plots need, are written too.

        Raises:
            SavedFileError: when the file cannot be written there.
        """
        kept = self if inputs else self._without_references()
        parts = {part.name: getattr(kept, part.name) for part in fields(kept)}
        return storage.write(path, type(self).__name__, parts, _RECORDS)

    def _without_references(self) -> Self:
        dropped: dict[str, Any] = {part.name: None for part in fields(self) if "reference" in part.metadata}
        return replace(self, **dropped)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a result of this class.

        Raises:
            SavedFileError: when the file is missing, damaged, of a newer format, or holds a result of another class.
        """
        found = load(path)
        if not isinstance(found, cls):
            raise SavedFileError(f"'{path}' holds {type(found).__name__}; expected {cls.__name__}")
        return found

    def class_names(self) -> tuple[str, ...]:
        """What each example's target class is called: its name, `"class 7"`, or `""` where there is no class."""
        classes = self.target.classes
        if classes is None or len(classes) != len(self):
            return ("",) * len(self)
        return tuple(self.meta.category(int(index)) or f"class {int(index)}" for index in classes)

    def plot(self) -> Figure:
        """Draws the result and returns a matplotlib figure; nothing is shown, so that it works without a display."""
        raise NotImplementedError(f"{type(self).__name__} has no plot")

    def _shape(self) -> str:
        """The shape of the values in words."""
        return _shape(self.values)

    def _about(self) -> str:
        """What the representation says besides the technique, shape, target and checks."""
        return ""

    def __repr__(self) -> str:
        target = str(self.target) if self.target.description is not None or self.target.classes is not None else ""
        told = [
            self.meta.technique,
            self._about(),
            self._shape(),
            f"target: {target if len(target) <= 60 else target[:59] + '…'}" if target else "",
            f"checks: {self.checks.summary}" if self.checks else "",
        ]
        return f"{type(self).__name__}({', '.join(filter(None, told))})"

    def _repr_html_(self) -> str:
        """A self-contained picture and the checks, for notebooks."""
        return f"<div><code>{html.escape(repr(self))}</code><br>{self._picture_html()}{self.checks._repr_html_()}</div>"

    def _picture_html(self) -> str:
        """What the result looks like, as HTML that contains everything."""
        from pellucid.results.draw import img

        return img(self.plot())


def load(path: str | Path) -> Explanation:
    """Reads a result that `save` wrote, as the class that it had.

    Raises:
        SavedFileError: when the file is missing, damaged, not Pellucid's, of a newer format, or holds a result of a
            class that is not known here (its plugin must be imported first).
    """
    kind, parts = storage.read(path, _RECORDS)
    if kind not in KINDS:
        raise SavedFileError(
            f"'{path}' holds a '{kind}', which is not known; expected one of {', '.join(sorted(KINDS))}; import the "
            "plugin that defines it first"
        )
    known = {part.name for part in fields(KINDS[kind])}
    try:
        return KINDS[kind](**{name: part for name, part in parts.items() if name in known})
    except (TypeError, ValueError, AttributeError) as error:
        raise SavedFileError(f"'{path}' does not hold a whole {kind}: {error}") from error


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies a function to the tensors in a field; gives back the same object where nothing changes."""
    if isinstance(value, Tensor):
        return function(value)
    if value is None or isinstance(value, (str, float, int)):
        return value
    if isinstance(value, TargetRecord):
        classes = _map(function, value.classes)
        return value if classes is value.classes else replace(value, classes=classes)
    if isinstance(value, Mapping):
        changed = {name: _map(function, part) for name, part in value.items()}
        if all(changed[name] is part for name, part in value.items()):
            return value
        return Leaves(changed) if isinstance(value, Leaves) else changed
    if type(value) in (tuple, list):
        parts = [_map(function, part) for part in value]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else type(value)(parts)
    return value


def _sizes(value: Any, axis: int) -> set[int]:
    """The lengths that the tensors in a field have on the axis of the examples."""
    if isinstance(value, Tensor):
        if not -value.dim() <= axis < value.dim():
            raise InputError(f"a tensor of shape {tuple(value.shape)} has no axis {axis} for the examples")
        return {value.shape[axis]}
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return set().union(*(_sizes(part, axis) for part in value))
    return set()


def _pick(value: Any, places: Tensor, axis: int) -> Any:
    return _map(lambda tensor: tensor.index_select(axis, places.to(tensor.device)), value)


def _places(index: Any, count: int) -> Tensor:
    """The examples that an index means, as non-negative integers."""
    every = torch.arange(count)
    if isinstance(index, slice):
        return torch.tensor(range(count)[index], dtype=torch.long)  # a tensor's own slices have no negative steps
    if not hasattr(index, "shape") and hasattr(index, "__index__"):
        index = as_index(index)
    chosen = torch.as_tensor(index).detach().cpu()
    if chosen.numel() == 0:
        return every[:0]
    if chosen.dtype == torch.bool and chosen.shape != (count,):
        raise IndexError(f"the mask has shape {tuple(chosen.shape)}; expected ({count},), one for each example")
    if chosen.is_floating_point() or chosen.dim() > 1:
        raise IndexError(f"the index is {index!r}; expected an integer, a slice, a list of integers or a mask")
    if chosen.dtype != torch.bool and bool(((chosen < -count) | (chosen >= count)).any()):
        raise IndexError(f"example {index} is out of range; there are {count}")
    return every[chosen].reshape(-1)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return " x ".join(map(str, value.shape)) or "one number"
    if isinstance(value, Leaves):
        return " and ".join(f"{name} {_shape(leaf)}" for name, leaf in value.items())
    return ""
