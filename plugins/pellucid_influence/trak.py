"""TRAK: influence by a kernel machine in the place of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, MinLen
from torch import Tensor
from torch.nn import functional as F

from pellucid import (
    Blocks,
    Check,
    Explainer,
    Factor,
    Factors,
    Influence,
    Look,
    ParameterError,
    Passes,
    Sample,
    Score,
    Target,
    TargetError,
    Training,
    digest,
)
from pellucid_influence.certificates import certificates, shown
from pellucid_influence.data import source, training
from pellucid_influence.ntk_influence import noise
from pellucid_influence.training import (
    LOOK,
    Kernel,
    block_rows,
    check_covered,
    classes_of,
    inverse,
    kernel,
    precision,
    some,
    told,
)

SHARE = 0.3
"""The ridge "auto", as a share of the kernel's mean eigenvalue."""


@dataclass(frozen=True, eq=False)
class Margin(Target):
    """The log odds of the right class, log p / (1 - p).

    Attributes:
        labels: (B,).
    """

    labels: Tensor

    def score(self, given: Score) -> Tensor:
        """The label's logit less the log-sum-exp of the others."""
        logits = given.logits()
        labels = self.labels[given.examples].to(logits.device)[:, None]
        if int(labels.max()) >= logits.shape[1]:
            raise TargetError(
                f"a training label is {int(labels.max())}; the model has {logits.shape[1]} classes, 0 to "
                f"{logits.shape[1] - 1}"
            )
        others = logits.scatter(1, labels, -torch.inf).logsumexp(dim=1)
        return logits.gather(1, labels)[:, 0] - others

    def picked(self, examples: Tensor) -> Target:
        """The labels of some of the examples."""
        return replace(self, labels=self.labels[examples])


@dataclass(frozen=True, eq=False)
class TRAK(Explainer):
    """Attributes each query's score to training examples by a kernel machine on the model's gradients.

    The model is replaced by a logistic regression on the features g(x), the gradient of the margin log p / (1 - p) by
    all parameters. A query's value for example i is k(x)^T (K + ridge)^-1, at i, times 1 - p_i, the share that is not
    learnt yet: above zero where the example raises the target's score. Kernel parts and shares are averaged over
    several models apart. The self-influence is that of an example's own margin.

    Park et al., 2023, "TRAK: attributing model behavior at scale". The paper projects the gradients to some thousand
    numbers and takes no ridge; with `projection=None` the kernel is exact.

    Attributes:
        train: `(inputs, labels)`, tensors or arrays, or a Dataset of such pairs, or a DataLoader of one; labels are
            class indices.
        models: `state_dict`s of several models, as trained on the same data from other seeds or on parts of them, whose
            answers are averaged; None is the model as it is.
        projection: to how many numbers each gradient is projected; None takes the exact kernel, with training examples
            squared in memory.
        ridge: what is added to the kernel's eigenvalues; `"auto"` takes 0.3 of their mean.
        parameters: by which parameters, as names with wildcards.
        draw: which of the random projections is taken; it does not depend on the seed.
        folder: where finished blocks are kept, so that a run that was interrupted goes on where it stood; None keeps
            none. A block is taken from there only where the models' structure and weights, the queries, their target,
            the block's examples, the parameters and the projection are the same to the last bit. Of the exact kernel,
            what a half-finished part is held against is made anew: as many training examples as fit in memory.
    """

    train: Any
    models: Sequence[Mapping[str, torch.Tensor]] | None = None
    projection: Annotated[int, Ge(1)] | None = None
    ridge: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    parameters: Annotated[tuple[str, ...], MinLen(1)] = ("*",)
    draw: Annotated[int, Ge(0)] = 0
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = source(self.train).labels
        if labels is not None and (labels.is_floating_point() or labels.dim() != 1):
            raise ParameterError(
                f"trak needs class indices (N,) as labels; they are {labels.dtype}, {tuple(labels.shape)}"
            )
        if self.models is not None and not self.models:
            raise ParameterError("models is empty; expected at least one, or None for the model as it is")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """The exact kernel, and a projection."""
        return [cls(train=noise()), cls(train=noise(), projection=64, ridge=0.5)]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward and a backward pass for each query, training example and model."""
        margins = replace(training(self.train, sample), target=Margin)
        passes = self._exact if self.projection is None else self._projected
        states: Sequence[Any] = self.models or [None]
        values, own, shares = torch.zeros(()), torch.zeros(()), torch.zeros(())
        checks: list[Check] = []
        for place, state in enumerate(states):
            part, selves, found = yield from passes(sample, margins, state)
            share = torch.sigmoid(-found.losses)
            values, own, shares = values + part, own + selves, shares + share
            found = replace(found, losses=F.softplus(-found.losses), squares=share.square() * found.squares)
            one = certificates(found, margins)
            checks += one if len(states) == 1 else [replace(c, name=f"{c.name}, model {place}") for c in one]
        shares = shares.double() / len(states) ** 2
        kind = precision(sample)
        return Influence(
            (values * shares).to(kind), self_influence=(own * shares).to(kind), checks=checks, **shown(margins)
        )

    def _ridge(self, trace: float, size: int) -> float:
        return SHARE * trace / size if self.ridge == "auto" else float(self.ridge)

    def _exact(self, sample: Sample, train: Training, state: Any) -> Passes[tuple[Tensor, Tensor, Kernel]]:
        found = yield from kernel(sample, train, self.parameters, state, own=True, blocks=Blocks(self.folder))
        ridge = self._ridge(float(found.squares.double().sum()), len(train))
        inner = inverse(found.own, ridge, "ridge")
        return found.values.double() @ inner, 1 - ridge * inner.diagonal(), found

    def _projected(self, sample: Sample, train: Training, state: Any) -> Passes[tuple[Tensor, Tensor, Kernel]]:
        assert self.projection is not None
        sketch = Sketch(self.projection, self.draw, self.parameters, state, Blocks(self.folder))
        queries = yield from sketch.of(sample)
        seen = yield from sketch.of(train, queries)
        features = seen.features
        covariance = features.T @ features
        ridge = self._ridge(float(covariance.trace()), min(len(train), self.projection))
        moved = features @ inverse(covariance, ridge, "ridge")
        found = Kernel(
            queries.features @ features.T, seen.squares, seen.scores, None, seen.covered, classes=queries.classes
        )
        return queries.features @ moved.T, (features * moved).sum(dim=1), found


class Sketched(NamedTuple):
    """What a sketch keeps of examples.

    Attributes:
        features: (n, size) the projected gradients of the scores, in double precision.
        scores: (n,).
        squares: (n,) the squared norms of the gradients.
        covered: the certificate of the parameters that are left out.
        step: how many examples are looked at together.
        digest: of the model, where blocks are kept.
        classes: how many classes the model tells apart; 0 where it is no classifier.
    """

    features: Tensor
    scores: Tensor
    squares: Tensor
    covered: Check
    step: int
    digest: str
    classes: int


@dataclass(eq=False)
class Sketch:
    """A projection that keeps inner products: each number goes, with a random sign, to one of `size` sums.

    Attributes:
        size: how many sums.
        draw: which of the random projections.
        parameters: of which parameters' gradients, as names with wildcards.
        weights: those of another model in place of the model's own.
        blocks: where finished blocks are kept, and taken from.
    """

    size: int
    draw: int
    parameters: Sequence[str]
    weights: Mapping[str, Tensor] | None
    blocks: Blocks
    _drawn: dict[tuple[str, ...], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def of(self, examples: Sample | Training, queries: Sketched | None = None) -> Passes[Sketched]:
        """The sketch of the queries, or, once theirs is known, that of training examples, in blocks that are kept."""
        parts: list[Mapping[str, Tensor]] = []
        step, model, start, classes = (queries.step, queries.digest, 0, 0) if queries else (LOOK, "", 0, 0)
        covered = queries.covered if queries else Check.info("")
        blocks = self.blocks if queries else Blocks(None)
        device = examples.device if isinstance(examples, Sample) else examples.queries.device
        while start < len(examples):
            sample = some(examples, start, min(len(examples), start + step))
            key = digest(model, self.size, self.draw, list(self.parameters), told(sample)) if blocks else ""
            if (part := blocks.found(key)) is None:
                asked: dict[str, Any] = {"factors": self.parameters, "weights": self.weights}
                if queries is None:
                    asked |= {"outputs": True, "digest": bool(self.blocks)}
                seen = yield Look(at=sample, **asked)
                check_covered(seen.factors)
                part = {
                    "features": self.projected(seen.factors),
                    "scores": seen.scores,
                    "squares": seen.factors.squares(),
                }
                blocks.keep(key, part)
                if queries is None:
                    covered, classes = seen.factors.check(), classes_of(seen.outputs)
                    step, model = min(LOOK, block_rows(seen.factors)), model or seen.digest
            parts.append(part)
            start += len(sample)
        features, scores, squares = (
            torch.cat([part[name].to(device) for part in parts]) for name in ("features", "scores", "squares")
        )
        return Sketched(features, scores, squares, covered, step, model, classes)

    def projected(self, factors: Factors) -> Tensor:
        """(n, size) of factors, layer by layer, in double precision."""
        total: Tensor | None = None
        for layer in factors:
            for part, (place, sign) in zip(layer.written.parts, self._of(layer), strict=True):
                total = part.new_zeros(len(part), self.size) if total is None else total
                total.index_add_(1, place.to(part.device), part * sign.to(part))
        assert total is not None
        return total.double()

    def _of(self, layer: Factor) -> list[tuple[Tensor, Tensor]]:
        if layer.names not in self._drawn:
            label = repr((self.draw, self.size, layer.names)).encode()
            seed = int.from_bytes(hashlib.blake2b(label, digest_size=7).digest(), "big")
            generator = torch.Generator().manual_seed(seed)
            counts = [torch.Size(shape).numel() for shape in layer.shapes]
            self._drawn[layer.names] = [
                (
                    torch.randperm(count, generator=generator) % self.size
                    if count > self.size
                    else torch.randperm(self.size, generator=generator)[:count],
                    2.0 * torch.randint(2, (count,), generator=generator) - 1,
                )
                for count in counts
            ]
        return self._drawn[layer.names]
