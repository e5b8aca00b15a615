"""Feature ablation: one feature or group hidden at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import Attribution, Explainer, Look, ParameterError, Passes, Sample
from pellucid_perturbation.leafwise import by_name, formed_like


@dataclass(frozen=True, eq=False)
class FeatureAblation(Explainer):
    """Hides one feature, or one group of features, at a time and measures how much the score drops.

    Every feature of group g gets f(x) - f(x with g replaced by the baseline), undivided, so that a group's value can be
    read anywhere in it. Li et al., "Understanding neural networks through representation erasure", 2016.

    Attributes:
        groups: whole numbers that name the group of each feature, of a shape that broadcasts to one example, such as
            (H, W) or (d,), or to the batch (B, 1, H, W) where examples have their own segments. With several inputs a
            mapping from names to such maps; a group may then span inputs. None makes each feature of a table a group,
            and cuts images and signals into a grid.
        cells: the grid's cells along each axis, where there are no groups.
        baseline: what is shown in place of the hidden features, see `Sample.baseline`.

    Raises:
        ParameterError: when the groups do not fit the inputs or are not whole numbers.
    """

    groups: Any = None
    cells: Annotated[int, Ge(1)] = 14
    baseline: Any = "zero"

    axioms: ClassVar[frozenset[str]] = frozenset({"linearity", "implementation_invariance"})

    @classmethod
    def test_instances(cls) -> list[FeatureAblation]:
        """A coarse grid."""
        return [cls(cells=4)]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Looks at the sample once, and once more for every group."""
        leaves = by_name(sample.inputs)
        groups, count = self._numbered(leaves)

        def masks(draws: Tensor, examples: Tensor) -> Any:
            shown = {}
            for name, group in groups.items():
                rows = group if len(group) == 1 else group[examples]
                shown[name] = rows != draws.reshape(-1, *(1,) * (group.dim() - 1))
            return formed_like(sample.inputs, shown)

        whole = yield Look(at=sample)
        hidden = yield Look(at=sample.masked(count, masks, self.baseline))
        drops = (whole.scores - hidden.scores).movedim(0, -1)
        values = {}
        for name, group in groups.items():
            places = group.to(drops.device).expand(len(drops), *group.shape[1:])
            values[name] = drops.gather(1, places.flatten(1)).reshape(places.shape).expand(leaves[name].shape).clone()
        return Attribution(formed_like(sample.inputs, values), over="input")

    def _numbered(self, leaves: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Each leaf's groups, (1 or B, ...), numbered from 0 over all leaves, and how many there are."""
        given: dict[str, Any] = dict.fromkeys(leaves)
        if isinstance(self.groups, Mapping):
            if unknown := set(self.groups) - set(leaves):
                raise ParameterError(f"groups for {sorted(unknown)}, but the inputs are {sorted(leaves)}")
            given |= self.groups
        elif self.groups is not None:
            if len(leaves) > 1:
                raise ParameterError(f"one map of groups, but several inputs; expected a mapping from {sorted(leaves)}")
            given = dict.fromkeys(leaves, self.groups)
        named = {name: _fitted(given[name], leaf) for name, leaf in leaves.items() if given[name] is not None}
        flat = torch.cat([group.flatten() for group in named.values()]) if named else torch.zeros(0, dtype=torch.long)
        names, numbers = torch.unique(flat, return_inverse=True)
        sizes = [group.numel() for group in named.values()]
        parts = zip(named.items(), numbers.split(sizes), strict=True) if named else ()
        groups = {name: part.reshape(group.shape) for (name, group), part in parts}
        count = len(names)
        for name, leaf in leaves.items():
            if name not in groups:
                groups[name] = count + self._grid(tuple(leaf.shape[1:]))
                count = int(groups[name].max()) + 1
        return {name: groups[name] for name in leaves}, count

    def _grid(self, shape: tuple[int, ...]) -> Tensor:
        """The number of the cell that each feature lies in, (1, ...)."""
        if len(shape) < 2:
            return torch.arange(shape[0]).unsqueeze(0) if shape else torch.zeros(1, dtype=torch.long)
        number = torch.zeros((1, *(1,) * len(shape)), dtype=torch.long)
        for axis, size in enumerate(shape[1:], start=1):
            cells = min(self.cells, size)
            place = torch.arange(size) * cells // size
            number = number * cells + place.reshape(-1, *(1,) * (len(shape) - axis - 1))
        return number


def _fitted(groups: Any, leaf: Tensor) -> Tensor:
    """Given groups as (1 or B, ...) whole numbers with as many axes as the leaf."""
    given = torch.as_tensor(groups).cpu()
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ParameterError(f"the groups have type {given.dtype}; expected whole numbers, one for each feature")
    if given.dim() < leaf.dim():
        given = given.reshape(*(1,) * (leaf.dim() - given.dim()), *given.shape)
    try:
        given.expand(leaf.shape)
    except RuntimeError:
        raise ParameterError(
            f"the groups have shape {tuple(torch.as_tensor(groups).shape)}, which does not broadcast to the inputs' "
            f"{tuple(leaf.shape)}"
        ) from None
    return given.long()
