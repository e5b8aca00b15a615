"""Influence through the empirical neural tangent kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt, MinLen

from pellucid import Explainer, Influence, Passes, Sample
from pellucid_influence.training import certificates, data, kernel, shown, training_sample


@dataclass(frozen=True, eq=False)
class NTKInfluence(Explainer):
    """How much one training step on each training example changes each query's score.

    A step on example i moves the parameters by -eta times the gradient of its loss, and so the score f(x) of a query,
    to first order, by -eta <df(x)/dtheta, dL_i/dtheta>: the gradient of the output at x, the tangent kernel between x
    and x_i, and the gradient of the loss at x_i. All parameters count, no projection is taken; the inner products come
    from layer inputs and output gradients, so that the memory does not grow with the training set.

    Above zero the example raises the target's score. The self-influence is what the step takes off the example's own
    loss: its squared gradient.

    Jacot et al., 2018, "Neural tangent kernel"; Engel et al., 2024, "Faithful and efficient explanations for neural
    networks via neural tangent kernel surrogate models". We take the kernel of the target's score and the loss, not
    of all pairs of outputs.

    Attributes:
        train: `(inputs, labels)` or a TensorDataset; labels are class indices (cross-entropy) or, of a floating type,
            values (squared error).
        learning_rate: eta.
        parameters: by which parameters, as names with wildcards.
    """

    train: Any
    learning_rate: Annotated[float, Gt(0)] = 1.0
    parameters: Annotated[tuple[str, ...], MinLen(1)] = ("*",)

    def __post_init__(self) -> None:
        super().__post_init__()
        data(self.train)

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Eleven images of noise, and some parameters only."""
        return [cls(train=noise()), cls(train=noise(), learning_rate=0.1, parameters=("*conv*", "*bias"))]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward and a backward pass for each query and each training example."""
        train = training_sample(self.train, sample)
        found = yield from kernel(sample, train, self.parameters)
        return Influence(
            -self.learning_rate * found.values,
            self_influence=self.learning_rate * found.squares,
            checks=certificates(found, train),
            **shown(train),
        )


def noise() -> tuple[torch.Tensor, torch.Tensor]:
    """Training data for the conformance kit's models."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(11, 3, 16, 16, generator=generator, dtype=torch.float64), torch.arange(11) % 4
