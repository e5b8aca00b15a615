"""Similar examples: the training examples that a network sees as most like an input."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from pellucid import (
    Blocks,
    Check,
    Exemplars,
    Explainer,
    InputError,
    Look,
    ParameterError,
    Passes,
    Sample,
    Seen,
    Source,
    Training,
    digest,
)
from pellucid_examples.nearest import Index, Nearest, sketched
from pellucid_examples.streaming import LARGEST, pictures, streamed
from pellucid_examples.tangent import by_kernel

CANDIDATES = 4
"""How many times as many examples an index proposes as are wanted."""


@dataclass(frozen=True, eq=False)
class SimilarExamples(Explainer):
    """Finds the training examples that are nearest to each input in a network's activations, or in its tangent kernel.

    Every training example is compared, in blocks, so that the memory does not grow with their number; the inputs'
    activations are held. The values are distances, the nearest first, and of equals the first. But for "ntk" each is a
    distance between long vectors, so that one product gives those of a block; in double precision, so that an example's
    distance to itself is zero to 1e-7 of its length.

    * "perceptual": at each position of each layer the channels are scaled to length one; the squared differences are
      averaged over the positions and summed over the layers. From 0 to 4 for each layer; to 2 behind a ReLU.
    * "cosine": one less the cosine of the activations, which is 0 where one side is zero, summed over the layers.
    * "euclidean": the length of the difference of all activations.
    * "ntk": one less the cosine of the gradients of the input's target by all parameters, at the input and at the
      training example: how much a step on the one moves the other's score. From 0 to 2. Layers do not count.

    With a `folder` what was computed of the training examples is kept there: an interrupted run goes on where it stood,
    and later ones with the same model need no passes of them. Of more than `exact_up_to` examples, an approximate index
    (HNSW of faiss, on random projections) is kept. It proposes four times as many examples as are wanted, which are
    shown to the model again, so that the values are exact, though some neighbours may be missed; the share that is
    found is measured as the index is made, and told by a check.

    Zhang et al., 2018, "The unreasonable effectiveness of deep features as a perceptual metric", whose distance we take
    without the weights that they learn for each channel. Jacot et al., 2018, "Neural tangent kernel".

    Attributes:
        train: the training inputs (N, ...) as a tensor or an array, such as a memory-mapped one; `(inputs, labels)`; or
            a Dataset of inputs or of such pairs, or a DataLoader of one.
        k: how many for each input.
        layers: the layers whose activations are compared.
        metric: "perceptual", "cosine", "euclidean" or "ntk".
        folder: where the training examples' vectors are kept; None keeps nothing. Not for "ntk".
        exact_up_to: of how many training examples all are compared also where a folder would serve an index.
    """

    train: Any
    k: Annotated[int, Ge(1)] = 5
    layers: Annotated[tuple[str, ...], MinLen(1)] = ("auto",)
    metric: Literal["perceptual", "cosine", "euclidean", "ntk"] = "perceptual"
    folder: str | Path | None = None
    exact_up_to: Annotated[int, Ge(0)] = 20_000

    known_failures: ClassVar[dict[str, str]] = {
        "gives the same for every target": "metric='ntk' compares the gradients of the target's score; the others do",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if (count := Source.of(self.train).count) < self.k:
            raise ParameterError(f"k={self.k} of {count} training examples; expected at most {count}")
        if self.metric == "ntk" and self.folder is not None:
            raise ParameterError("metric='ntk' compares no vectors that a folder could keep; expected folder=None")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Each metric."""
        train = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return [
            cls(train=train, k=3),
            cls(train=(train, torch.arange(9)), k=9, metric="cosine"),
            cls(train=train, k=1, metric="euclidean"),
            cls(train=train, k=2, metric="ntk"),
        ]

    def explain(self, sample: Sample) -> Passes[Exemplars]:
        """One forward pass of each input and training example; for "ntk" also a backward pass, for each class."""
        train = Training(Source.of(self.train), sample)
        found = yield from (self._by_kernel if self.metric == "ntk" else self._by_vectors)(sample, train)
        shown = train.held if train.held is not None and train.held.dim() == 4 else None
        return replace(found, examples=shown, crops=pictures(train, found.indices))

    def _by_vectors(self, sample: Sample, train: Training) -> Passes[Exemplars]:
        blocks = Blocks(self.folder)
        seen = yield Look(at=sample, activations=self.layers, digest=bool(blocks))
        queries, kind = self._vectors(seen), seen.activations[self.layers[0]].dtype
        nearest, told = Nearest(len(queries), self.k, queries), (seen.digest, self.layers, self.metric)
        if blocks and len(train) > self.exact_up_to:
            checks = yield from self._by_index(queries, train, nearest, blocks, told)
        else:
            yield from self._streamed(queries, train, nearest, blocks, told)
            checks = []
        return self._answer(nearest, kind, " + ".join(self.layers), checks)

    def _streamed(
        self, queries: Tensor, train: Training, nearest: Nearest, blocks: Blocks, told: Sequence[Any]
    ) -> Passes[list[Tensor]]:
        """Compares all training examples; of those that are more than an index is made for, the sketches are kept."""
        sketches: list[Tensor] = []

        def take(start: int, found: dict[str, Tensor]) -> None:
            block = found["vectors"].to(queries)
            nearest.add(torch.arange(start, start + len(block)), _distances(queries, block))
            if len(train) > self.exact_up_to:
                sketches.append(sketched(block))

        def reduced(seen: Seen) -> dict[str, Tensor]:
            made = self._vectors(seen)
            return {"vectors": made.float() if blocks and seen.scores.dtype != torch.float64 else made}

        yield from streamed(train, functools.partial(Look, activations=self.layers), reduced, take, blocks, told)
        return sketches

    def _by_index(
        self, queries: Tensor, train: Training, nearest: Nearest, blocks: Blocks, told: Sequence[Any]
    ) -> Passes[list[Check]]:
        """Looks at what the index proposes; where there is none yet, at all examples, and makes one."""
        key, count = digest("index", told, train.source.digest()), min(len(train), CANDIDATES * self.k)
        if (known := Index.kept(blocks, key)) is not None:
            some = torch.unique(known.candidates(sketched(queries), count))
            for places in torch.split(some[some >= 0], LARGEST):
                seen = yield Look(at=train[places], activations=self.layers)
                nearest.add(places, _distances(queries, self._vectors(seen)))
            recall = known.recall
        else:
            sketches = yield from self._streamed(queries, train, nearest, blocks, told)
            made = Index.of(torch.cat(sketches))
            proposed = made.candidates(sketched(queries), count)
            recall = float((nearest.indices.cpu()[:, :, None] == proposed[:, None]).any(dim=2).double().mean())
            replace(made, recall=recall).keep(blocks, key)
        note = "the share of the nearest that the index proposed for the inputs with which it was made"
        return [Check.info("recall of the index", recall, note)]

    def _by_kernel(self, sample: Sample, train: Training) -> Passes[Exemplars]:
        nearest, covered = yield from by_kernel(sample, train, self.k)
        return self._answer(nearest, nearest.distances.dtype, "the tangent kernel", [covered])

    def _answer(self, nearest: Nearest, kind: torch.dtype, over: str, checks: list[Check]) -> Exemplars:
        distances = nearest.distances.clamp_min(0)
        distances = distances.sqrt() if self.metric == "euclidean" else distances
        kind = torch.float32 if kind in (torch.float16, torch.bfloat16) else kind
        return Exemplars(distances.to(kind), nearest.indices, kind="similar", over=over, checks=checks)

    def _vectors(self, seen: Seen) -> Tensor:
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
                values = _unit(values.flatten(1))
                # Where all is zero, an axis of its own: of no likeness to others, rather than half as far from each.
                none = (values == 0).all(dim=1, keepdim=True).to(values)
                values = torch.cat([values, none], dim=1) / 2**0.5
            parts.append(values.flatten(1))
        return torch.cat(parts, dim=1)


def _unit(values: Tensor) -> Tensor:
    """Values (rows, C, ...) scaled to length one over the channels; zeros stay zeros."""
    scaled: Tensor = values / values.norm(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return scaled


def _distances(queries: Tensor, others: Tensor) -> Tensor:
    """The squared distances (q, n) of vectors."""
    lengths = queries.square().sum(dim=1, keepdim=True)
    return lengths + others.square().sum(dim=1) - 2 * queries @ others.T
