"""Similar examples: the training examples that a network sees as most like an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from pellucid import Exemplars, Explainer, InputError, Look, ParameterError, Passes, Sample, Seen
from pellucid_examples.streaming import streamed


@dataclass(frozen=True, eq=False)
class SimilarExamples(Explainer):
    """Finds the training examples that are nearest to each input in a network's activations.

    Every training example is compared, in blocks, so that the memory does not grow with their number; the inputs'
    activations are held. The values are distances, the nearest first, and of equals the first. Each is a distance
    between long vectors, so that one product gives those of a block; in double precision, so that an example's distance
    to itself is zero to 1e-7 of its length.

    * "perceptual": at each position of each layer the channels are scaled to length one; the squared differences are
      averaged over the positions and summed over the layers. From 0 to 4 for each layer; to 2 behind a ReLU.
    * "cosine": one less the cosine of the activations, summed over the layers.
    * "euclidean": the length of the difference of all activations.

    Zhang et al., 2018, "The unreasonable effectiveness of deep features as a perceptual metric", whose distance we take
    without the weights that they learn for each channel.

    Attributes:
        train: the training inputs (N, ...), `(inputs, labels)`, or a TensorDataset.
        k: how many for each input.
        layers: the layers whose activations are compared.
        metric: "perceptual", "cosine" or "euclidean".
    """

    train: Any
    k: Annotated[int, Ge(1)] = 5
    layers: Annotated[tuple[str, ...], MinLen(1)] = ("auto",)
    metric: Literal["perceptual", "cosine", "euclidean"] = "perceptual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(inputs := training_inputs(self.train)) < self.k:
            raise ParameterError(f"k={self.k} of {len(inputs)} training examples; expected at most {len(inputs)}")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Each metric."""
        train = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return [
            cls(train=train, k=3),
            cls(train=(train, torch.arange(9)), k=9, metric="cosine"),
            cls(train=train, k=1, metric="euclidean"),
        ]

    def explain(self, sample: Sample) -> Passes[Exemplars]:
        """One forward pass of each input and of each training example."""
        train = _training_sample(self.train, sample)
        seen = yield Look(at=sample, activations=self.layers)
        queries = self._embedded(seen)
        lengths = queries.square().sum(dim=1, keepdim=True)
        distances = queries.new_empty(len(sample), 0)
        indices = torch.empty(len(sample), 0, dtype=torch.long, device=queries.device)

        def take(start: int, seen: Seen) -> None:
            nonlocal distances, indices
            block = self._embedded(seen)
            found = lengths + block.square().sum(dim=1) - 2 * queries @ block.T
            places = torch.arange(start, start + len(block), device=indices.device).expand(len(queries), -1)
            # Sorting is stable, and what came first stands first.
            order = torch.cat([distances, found], dim=1).sort(dim=1, stable=True)
            distances = order.values[:, : self.k]
            indices = torch.cat([indices, places], dim=1).gather(1, order.indices[:, : self.k])

        yield from streamed(train, self.layers, take)
        distances = distances.clamp_min(0)
        distances = distances.sqrt() if self.metric == "euclidean" else distances
        kind = seen.activations[self.layers[0]].dtype
        return Exemplars(
            distances.to(torch.float32 if kind in (torch.float16, torch.bfloat16) else kind),
            indices,
            kind="similar",
            over=" + ".join(self.layers),
            examples=train.inputs if train.inputs.dim() == 4 else None,
        )

    def _embedded(self, seen: Seen) -> Tensor:
        """Vectors (rows, d) in double precision whose squared distances are the metric's, or its square."""
        parts = []
        for layer in self.layers:
            values = seen.activations[layer].double()
            if not bool(torch.isfinite(values).all()):
                raise InputError(f"layer '{layer}' gives values that are not finite for some of the examples")
            if self.metric == "perceptual":
                maps = seen.layers[layer].maps(values) if seen.layers[layer].layout else values.flatten(1)
                positions = max(1, maps[0, 0].numel())
                values = _unit(maps) / positions**0.5
            elif self.metric == "cosine":
                values = _unit(values.flatten(1)) / 2**0.5
            parts.append(values.flatten(1))
        return torch.cat(parts, dim=1)


def _unit(values: Tensor) -> Tensor:
    """Values (rows, C, ...) scaled to length one over the channels; zeros stay zeros."""
    scaled: Tensor = values / values.norm(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return scaled


def training_inputs(train: Any) -> Tensor:
    """The training inputs (N, ...) of what a technique is given as `train`.

    Raises:
        InputError: when there are none.
    """
    given = getattr(train, "tensors", train)
    given = given[0] if isinstance(given, (tuple, list)) and given else given
    inputs = torch.as_tensor(given).detach() if hasattr(given, "__array__") else None
    if inputs is None or inputs.dim() < 2 or inputs.numel() == 0:
        shape = type(given).__name__ if inputs is None else tuple(inputs.shape)
        raise InputError(f"train holds {shape}; expected inputs (N, ...), (inputs, labels), or a TensorDataset of them")
    return inputs


def _training_sample(train: Any, queries: Sample) -> Sample:
    inputs = training_inputs(train)
    if not isinstance(queries.inputs, Tensor) or queries.frame.extras:
        raise InputError("similar_examples is for models of one input; these inputs have several")
    if inputs.shape[1:] != queries.inputs.shape[1:]:
        raise InputError(
            f"the training inputs have shape {tuple(inputs.shape)}, the inputs {tuple(queries.inputs.shape)}; expected "
            "the same shape of each example"
        )
    if not inputs.is_floating_point() or not bool(torch.isfinite(inputs).all()):
        raise InputError(f"the training inputs are of type {inputs.dtype} or not finite; expected finite numbers")
    # No score is asked of the training examples, so that any target of one example's form will do.
    target = queries.target.picked(torch.zeros(len(inputs), dtype=torch.long))
    return Sample(inputs.to(queries.inputs), target, queries.seed, queries.mean, queries.std, queries.frame)
