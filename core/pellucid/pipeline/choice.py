"""Choices: some of a pipeline's inputs, picked by a step's result or by a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from pellucid.errors import InputError
from pellucid.results import Exemplars, Influence, Projection
from pellucid.results.projection import path_lengths

if TYPE_CHECKING:
    from pellucid.recorder import States

RECORDING = "recording"
"""What a pipeline's recorded states are called where a step's name is expected."""

QUALITIES = {
    RECORDING: ("moved", "forgotten", "loss"),
    "projection": ("moved",),
    "influence": ("self_influence",),
    "exemplars": (),
}
"""By what inputs can be chosen: from a recording, and from a step whose technique gives that."""


class Choice(BaseModel):
    """Some of the inputs: exemplars, or those that have most of a quality.

    Attributes:
        of: the step that says which; or "recording".
        most: the quality: "moved" (the way that a point goes through time, in the states or on the map), "forgotten"
            (how often), "loss" (after the last capture) or "self_influence". None is for exemplars.
        count: at most how many; inputs that have none of the quality are not chosen.
        kind: of exemplars, which kind, such as "criticism"; None is all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str
    most: str | None = None
    count: Annotated[int, Field(strict=True, ge=1)] | None = None
    kind: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Choice:
        if (self.most is None) != (self.count is None):
            raise ValueError("expected 'most' and 'count' together, such as {of: recording, most: moved, count: 8}")
        if self.most is not None and self.kind is not None:
            raise ValueError("expected either 'most' and 'count', or 'kind'")
        return self

    def among(self, source: Any, count: int) -> dict[str, Tensor]:
        """The chosen inputs' places, the first choice first, by what they are called: the quality, or the kind.

        Args:
            source: the result, or the recorded states.
            count: how many inputs there are.

        Raises:
            InputError: when nothing is chosen, or the source is of other examples.
        """
        if self.most is None:
            found = self._exemplars(source)
        else:
            values = quality(source, self.most)
            if len(values) != count:
                raise InputError(
                    f"'{self.of}' knows the {self.most} of {len(values)} examples; there are {count} inputs"
                )
            order = values.argsort(descending=True, stable=True)[: self.count]
            found = {self.most: order[values[order] > 0]}
        if not any(map(len, found.values())):
            raise InputError(
                f"'{self.of}' chooses none of the inputs: none has any {self.most or self.kind or 'place'}"
            )
        if (most := max(int(places.max()) for places in found.values() if len(places))) >= count:
            raise InputError(f"'{self.of}' chooses example {most} of another data set; there are {count} inputs")
        return found

    def _exemplars(self, source: Any) -> dict[str, Tensor]:
        if not isinstance(source, Exemplars):
            raise InputError(f"'{self.of}' gives no exemplars; say which inputs with 'most' and 'count'")
        kinds = dict.fromkeys(source.kinds) if self.kind is None else [self.kind]
        places = {kind: source.of(kind).flatten().cpu() for kind in kinds}
        return {kind: _distinct(found[found >= 0]) for kind, found in places.items()}


def quality(source: Any, name: str) -> Tensor:
    """(n,) how much every input has of a quality; zero where that is not finite.

    Raises:
        InputError: when the source does not know it.
    """
    from pellucid.recorder import States

    values: Tensor | None = None
    if isinstance(source, Influence):
        values = source.self_influence
    elif isinstance(source, Projection):
        values = path_lengths(source.values)
    elif isinstance(source, States):
        values = _of_states(source, name)
    if values is None:
        raise InputError(f"this {type(source).__name__} has no {name.replace('_', '-')} to choose by")
    return values.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0)


def _of_states(states: States, name: str) -> Tensor | None:
    if name == "moved":
        return states.moved
    if name == "forgotten":
        return states.forgotten
    losses = states.losses
    known = losses.isfinite().any(dim=1)
    return losses[known][-1] if bool(known.any()) else None


def _distinct(places: Tensor) -> Tensor:
    """Places without repetitions, in their order."""
    return torch.tensor(list(dict.fromkeys(places.tolist())), dtype=torch.long)
