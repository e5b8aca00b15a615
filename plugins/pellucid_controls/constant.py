"""The constant control."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pellucid import Attribution, Explainer, Sample


@dataclass(frozen=True, eq=False)
class Constant(Explainer):
    """One everywhere: what a score gives to an explanation without any order.

    An evaluator that ranks the inputs must then break ties, and this control shows what its way of doing so is worth.
    """

    def explain(self, sample: Sample) -> Attribution:
        """No look at the model."""
        return Attribution(torch.ones_like(sample.inputs), over="input")
