"""Influence through the empirical neural tangent kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, MinLen

from pellucid import Blocks, Explainer, Influence, Passes, Sample
from pellucid_influence.certificates import certificates, shown
from pellucid_influence.data import source, training
from pellucid_influence.surrogate import contributions
from pellucid_influence.training import kernel, precision


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

    With `surrogate=True` the values are those of Engel et al. instead: a kernel machine on the tangent kernel, summed
    over the outputs, stands for the model, and an example's value is what it adds to the machine's logit of the
    target's class; with a bias, the sum over the examples is that logit. How far the surrogate may be believed is
    certified: Kendall's tau of the class's probabilities, and the share of the same predictions. It is fitted to the
    model's centred logits by least squares, and gradients keep their norms, where the authors fit a softmax regression
    to the labels on gradients of norm one: it thereby follows the model more closely, and does not see the labels.

    Attributes:
        train: `(inputs, labels)`, tensors or arrays, or a Dataset of such pairs, or a DataLoader of one; labels are
            class indices (cross-entropy) or, of a floating type, values (squared error). It is read in blocks, so that
            memory-mapped arrays and data sets that do not fit in memory will do.
        learning_rate: eta.
        surrogate: whether the values are those of a kernel machine; a backward pass for each output, and examples
            squared in memory.
        ridge: the surrogate's, as a share of the kernel's mean eigenvalue.
        parameters: by which parameters, as names with wildcards.
        folder: where finished blocks are kept, so that a run that was interrupted goes on where it stood; None keeps
            none. A block is taken from there only where the model's structure and weights, the queries, their target,
            the block's examples and the parameters are the same to the last bit. Of the surrogate's kernels between
            training examples, what a half-finished part is held against is made anew.
    """

    train: Any
    learning_rate: Annotated[float, Gt(0)] = 1.0
    surrogate: bool = False
    ridge: Annotated[float, Gt(0)] = 1e-3
    parameters: Annotated[tuple[str, ...], MinLen(1)] = ("*",)
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        source(self.train)

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Eleven images of noise, and some parameters only."""
        return [cls(train=noise()), cls(train=noise(), learning_rate=0.1, parameters=("*conv*", "*bias"))]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward and a backward pass for each query and each training example."""
        train, blocks = training(self.train, sample), Blocks(self.folder)
        if self.surrogate:
            values, found, fidelity = yield from contributions(sample, train, self.parameters, self.ridge, blocks)
            checks = [*certificates(found, train), *fidelity]
            return Influence(values.to(precision(sample)), checks=checks, **shown(train))
        found = yield from kernel(sample, train, self.parameters, blocks=blocks)
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
