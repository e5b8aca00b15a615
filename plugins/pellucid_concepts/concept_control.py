"""A control: concepts in random order, for every score of concepts to be held against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pellucid import Concepts, Explainer, InputError, Meta, Sample


@dataclass(frozen=True, eq=False)
class ConceptControl(Explainer):
    """The concepts of an explanation with scores that are drawn anew, uniform from 0 to 1.

    The rows stay what they are, and so do the pictures and masks; what says how much a concept counts is left out.

    Attributes:
        of: the concepts, of the images that are explained.
    """

    of: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.of, Concepts):
            raise InputError(f"of is a {type(self.of).__name__}; expected the Concepts whose order is drawn anew")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Three concepts of one class."""
        return [cls(Concepts(torch.ones(1, 3, dtype=torch.float64), ("a", "b", "c"), rows=("class 0",)))]

    def explain(self, sample: Sample) -> Concepts:
        """No pass at all."""
        drawn = torch.rand(self.of.values.shape, generator=sample.generator("concepts"), dtype=torch.float64)
        known, like = self.of, sample.inputs if isinstance(sample.inputs, Tensor) else self.of.values
        made: Concepts = replace(
            known,
            values=drawn.to(like),
            p_values=None,
            significant=None,
            spread=None,
            magnitudes=None,
            control=None,
            checks=(),
            meta=Meta(),
        )
        return made
