"""Expected gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from pellucid import (
    Attribution,
    Check,
    Explainer,
    InputError,
    Leaves,
    Look,
    Part,
    Passes,
    Sample,
    Sum,
    each,
)
from pellucid_gradients.arithmetic import NOISE_TOLERANCE, noise_share


@dataclass(frozen=True, eq=False)
class ExpectedGradients(Explainer):
    """Integrated gradients, averaged over baselines drawn from reference data.

    The mean of (x - r) df/dx at r + a (x - r) over references r and places a in [0, 1]: in expectation the values
    sum to f(x) less the mean of f over the references. No single baseline has to stand for "nothing".

    Erion et al., 2021, "Improving performance of deep learning models with axiomatic attribution priors and expected
    gradients". The paper draws r and a independently; here the references are dealt out so that each is used equally
    often, and the places are stratified, which lessens the variance. The standard error in the checks is the one of
    independent draws, and so errs on the safe side. All examples share their draws.

    Attributes:
        baselines: the reference data, (R, ...) with rows that broadcast to an input's; None takes, for each example,
            the other examples of its batch; a word or a number is a single baseline, as for `Sample.baseline`.
        n_samples: draws for each example: the number of forward and backward passes.

    Raises:
        InputError: if there is no other example in the batch and no reference data.
        ParameterError: if the reference data do not fit the inputs.
    """

    baselines: str | float | Tensor | Leaves | None = None
    n_samples: Annotated[int, Ge(2)] = 64

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """With a baseline, since the batch's other examples are another question for every batch."""
        return [cls(baselines="zero")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """`n_samples` forward and backward passes."""
        n = self.n_samples
        generator = sample.generator("expected_gradients")
        references, rows = self._references(sample, generator)
        places = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n

        def step(inputs: Any, draws: Tensor, examples: Tensor) -> Any:
            def move(leaf: Tensor, origin: Tensor) -> Tensor:
                return torch.lerp(origin, leaf, places[draws].to(leaf).reshape(-1, *(1,) * (leaf.dim() - 1)))

            return each(move, inputs, references[rows[draws, examples]])

        def contribution(part: Part) -> tuple[Any, Any]:
            origin = references[rows[part.draws, part.examples]]
            value = (sample.inputs[part.examples] - origin) * part.gradients["input"]
            return value, value**2

        seen = yield Look(at=sample.derived(n, step), gradients=["input"], fold=Sum(contribution))
        sums, squares = seen.folded
        values = sums / n
        error = noise_share(values, (squares / n - values**2).clamp_min(0), n)
        note = f"standard error over {n} draws, as a share of the values' norm"
        return Attribution(
            values, over="input", checks=(Check.bound("monte_carlo_error", error, NOISE_TOLERANCE, note),)
        )

    def _references(self, sample: Sample, generator: torch.Generator) -> tuple[Any, Tensor]:
        """The reference data, and (n_samples, B) which of their rows each draw of each example starts from."""
        count = len(sample)
        own = torch.arange(count)
        if self.baselines is None:
            if count < 2:
                raise InputError(
                    "expected_gradients has one example and no reference data; give baselines=(a tensor of typical "
                    "inputs), or more examples, which then serve each other as references"
                )
            shifts = 1 + self._dealt(count - 1, generator)
            return sample.inputs, (own + shifts[:, None]) % count
        if isinstance(self.baselines, (str, float)):
            return sample.baseline(self.baselines), own.expand(self.n_samples, count)
        references, size = sample.references(self.baselines)
        return references, self._dealt(size, generator)[:, None].expand(self.n_samples, count)

    def _dealt(self, size: int, generator: torch.Generator) -> Tensor:
        """`n_samples` indices below `size`, in random order, each as often as any other."""
        rounds = -(-self.n_samples // size)
        return torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[: self.n_samples]
