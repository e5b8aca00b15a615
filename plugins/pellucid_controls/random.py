"""The random control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Attribution, Explainer, Leaves, Sample


@dataclass(frozen=True, eq=False)
class Random(Explainer):
    """Uniform noise in [0, 1), the same for every example.

    What a score gives to an explanation that knows nothing. The noise depends on the seed and the input's name
    alone, so that an example's result does not depend on its batch; take several seeds to average over draws.
    """

    def explain(self, sample: Sample) -> Attribution:
        """No look at the model."""

        def noise(leaf: Tensor, name: str = "") -> Tensor:
            drawn = torch.rand(leaf.shape[1:], generator=sample.generator("random", name))
            return drawn.to(leaf).expand_as(leaf).clone()

        inputs: Any = sample.inputs
        if isinstance(inputs, Leaves):
            inputs = Leaves({name: noise(leaf, name) for name, leaf in inputs.items()})
        else:
            inputs = noise(inputs)
        return Attribution(inputs, over="input")
