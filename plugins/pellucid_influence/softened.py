"""The training loss of a model that is surer of its training examples than it would be without them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pellucid import Loss, ParameterError, Score, Target


@dataclass(frozen=True, eq=False)
class Softened(Loss):
    """The cross-entropy of the outputs divided by a temperature.

    Attributes:
        temperature: above one, the probabilities are less sure.
    """

    temperature: float = 1.0

    def score(self, given: Score) -> Tensor:
        """The loss of each row.

        Raises:
            ParameterError: when the labels are no classes.
        """
        if self.labels.is_floating_point():
            raise ParameterError(
                f"temperature={self.temperature} is of a classifier's probabilities; the training labels are values of "
                "a regression. Expected class indices, or temperature=1"
            )
        return super().score(replace(given, logits=lambda: given.logits() / self.temperature))

    def repeated(self, n: int) -> Target:
        """The same labels once more for each copy."""
        return replace(self, labels=self.labels.repeat(n, *(1,) * (self.labels.dim() - 1)))

    def picked(self, examples: Tensor) -> Target:
        """The labels of some examples."""
        return replace(self, labels=self.labels[examples])

    def describe(self) -> Any:
        """The labels and the temperature."""
        return {"loss": self.labels.tolist(), "temperature": self.temperature}
