"""Feature ablation: one feature or group hidden at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor

from pellucid import Attribution, Explainer, Look, Passes, Sample
from pellucid_perturbation.leafwise import formed_like
from pellucid_perturbation.segments import Players


@dataclass(frozen=True, eq=False)
class FeatureAblation(Explainer):
    """Hides one feature, or one group of features, at a time and measures how much the score drops.

    Every feature of group g gets f(x) - f(x with g replaced by the baseline), undivided, so that a group's value can be
    read anywhere in it. Li et al., "Understanding neural networks through representation erasure", 2016.

    Attributes:
        groups: whole numbers that name the group of each feature, of a shape that broadcasts to one example, such as
            (H, W) or (d,), or to the batch (B, 1, H, W) where examples have their own groups. With several inputs a
            mapping from names to such maps; a group may then span inputs. None makes each feature of a table and each
            token of a text a group, and cuts images and signals into a grid. `"slic"` and what else `exact_shapley`
            takes for its segments goes as well.
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
        players = Players.of(sample, self.groups, self.cells)

        def masks(draws: Tensor, examples: Tensor) -> Any:
            shown = {}
            for name, group in players.groups.items():
                rows = group if len(group) == 1 else group[examples]
                shown[name] = rows != draws.reshape(-1, *(1,) * (group.dim() - 1))
            return formed_like(sample.inputs, shown)

        whole = yield Look(at=sample)
        hidden = yield Look(at=sample.masked(int(players.counts.max()), masks, self.baseline))
        drops = (whole.scores - hidden.scores).movedim(0, -1)
        return Attribution(
            players.painted(drops, sample.inputs), over="input", reduce="once" if players.together else "sum"
        )
