"""The control that looks at the input's size only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pellucid import Attribution, Explainer, Leaves, Sample


@dataclass(frozen=True, eq=False)
class InputMagnitude(Explainer):
    """How far each input is from a baseline: |x - b|.

    With the baseline that an evaluator replaces inputs by, this control tells how much of a score is owed to the size
    of the change alone; it beats published methods in some settings. For a photo that was normalised, zero is the
    mean colour of the training data, so that the default shows what is darker or brighter than that.

    Attributes:
        baselines: what the distance is taken from, as for `Sample.baseline`.
    """

    baselines: str | float | Tensor | Leaves = "zero"

    def explain(self, sample: Sample) -> Attribution:
        """No look at the model."""
        return Attribution((sample.inputs - sample.baseline(self.baselines)).abs(), over="input")
