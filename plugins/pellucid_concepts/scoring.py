"""What concepts score for each class, and whether that is more than random sets do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Check, Concepts, Seen
from pellucid_concepts.reading import FEW
from pellucid_concepts.vectors import Activations, Runs, p_value

ERROR = 0.3
"""Above this share of held-out examples on the wrong side a vector hardly points to its concept."""


@dataclass(frozen=True, eq=False)
class Classes:
    """Which of the explained examples are of which class.

    Attributes:
        names: of the classes, in the order in which they come.
        members: the places of each class's examples.
    """

    names: tuple[str, ...]
    members: tuple[Tensor, ...]

    @classmethod
    def of(cls, seen: Seen) -> Classes:
        """The classes that a sample was looked at for; one for all where the target is no class."""
        if seen.classes is None:
            return cls(("the target",), (torch.arange(len(seen.scores)),))
        found = list(dict.fromkeys(seen.classes.tolist()))
        places = seen.classes.cpu()
        return cls(tuple(f"class {one}" for one in found), tuple((places == one).nonzero().flatten() for one in found))


@dataclass(frozen=True, eq=False)
class Column:
    """One concept at one layer; of each number one for each class.

    Attributes:
        name: the concept's.
        statistics: by the names that they have in `Concepts`; the p-values are for one test.
        vector: (d,) the mean of its vectors, or the direction that was given.
        accuracy: on held-out examples; not a number for a direction that was given.
        examples: how many the concept has; 0 for a direction.
    """

    name: str
    statistics: dict[str, Tensor]
    vector: Tensor
    accuracy: float = math.nan
    examples: int = 0


def column(name: str, at: Activations, concept: int | Tensor, classes: Classes) -> Column:
    """Scores one concept: the set of that place, or a direction (d,)."""
    if isinstance(concept, Tensor):
        cosines, null = at.direction(concept)
        effects = cosines * float(concept.norm())
        return Column(name, _statistics(cosines, effects, null, classes), concept)
    runs, null = at.concept(concept)
    statistics = _statistics(runs.cosines, runs.effects, null, classes)
    return Column(name, statistics, at.vector(runs), runs.accuracy, len(at.sets[concept]))


def _statistics(cosines: Tensor, effects: Tensor, null: Runs, classes: Classes) -> dict[str, Tensor]:
    """Of cosines and effects (R, B) of a concept's runs, held against those of the random sets."""
    rows: dict[str, list[float]] = {"values": [], "spread": [], "magnitudes": [], "control": [], "p_values": []}
    others, theirs = null.cosines, null.effects
    for members in classes.members:
        shares = (cosines[:, members] > 0).double().mean(dim=1)
        rows["values"].append(float(shares.mean()))
        rows["spread"].append(float(shares.std(correction=0)))
        rows["magnitudes"].append(float(cosines[:, members].mean()))
        rows["control"].append(float((others[:, :, members] > 0).double().mean()))
        rows["p_values"].append(p_value(float(effects[:, members].mean()), theirs[:, :, members].mean(dim=(1, 2))))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def answer(columns: Sequence[Column], classes: Classes, alpha: float, like: Tensor, **rest: Any) -> Concepts:
    """Puts columns together; p-values are corrected for the number of tests (Bonferroni).

    Args:
        columns: at least one.
        classes: the rows.
        alpha: the level of significance.
        like: a tensor of the type and at the place that the numbers get.
        rest: further parts of the result.
    """
    parts = {name: torch.stack([one.statistics[name] for one in columns], dim=1) for name in columns[0].statistics}
    p_values = (parts["p_values"] * parts["p_values"].numel()).clamp(max=1)
    return Concepts(
        parts["values"].to(like),
        tuple(one.name for one in columns),
        rows=classes.names,
        p_values=p_values.to(like),
        significant=(p_values < alpha).to(like.device),
        spread=parts["spread"].to(like),
        magnitudes=parts["magnitudes"].to(like),
        control=parts["control"].to(like),
        vectors=tuple(one.vector for one in columns),
        checks=[check for one in columns for check in _certificates(one)],
        **rest,
    )


def _certificates(one: Column) -> list[Check]:
    """How well a vector tells its concept from random examples, and whether it has enough of them."""
    if not one.examples:
        return []
    note = f"share of held-out examples on the wrong side; chance is 0.5, {ERROR} hardly points to anything"
    checks = [Check.bound(f"held-out error of '{one.name}'", 1 - one.accuracy, ERROR, note)]
    if one.examples < FEW:
        few = f"examples of the concept; from about {FEW} on the vector is reliable"
        checks.append(Check.info(f"examples of '{one.name}'", one.examples, few))
    return checks
