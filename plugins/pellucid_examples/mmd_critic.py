"""MMD-critic: prototypes and criticisms of a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from pellucid import Check, Exemplars, Explainer, InputError, Look, ParameterError, Passes, Sample, Seen, Unsuitable
from pellucid_examples.greedy import Prototypes, criticisms, prototypes
from pellucid_examples.kernels import KernelMatrix, label_tensor, median_gamma, nearest
from pellucid_examples.streaming import BLOCK_BYTES, LARGEST, kept, pictures, room, streamed

FOLDS = 3
FACTORS = (0.25, 1.0, 4.0, 16.0, 64.0)
"""How many times the median's gamma is tried in cross-validation."""
TRIED = 3000
"""At most how many examples cross-validation takes, unless three for each prototype are more."""


@dataclass(frozen=True, eq=False)
class MMDCritic(Explainer):
    """Chooses prototypes that stand for a data set, and criticisms: the examples that they represent worst.

    The sample is the data set; one that does not fit in memory is given as a memory-mapped array, a Dataset or a
    DataLoader, and read some examples at a time. Prototypes are chosen one by one so that the maximum mean discrepancy
    between them and the data falls most; criticisms where the two densities differ most, kept apart by a determinant.
    With `labels` the kernel is zero between classes, and each class has a row of its own. The choice is the exact
    greedy one; the kernel matrix is computed in blocks and never held.

    The values are, for a prototype, by how much it lowered the squared MMD; for a criticism the witness, above zero
    where the data are denser than the prototypes. `pellucid.explain(None, data, "mmd_critic")` needs no model.

    Kim et al., 2016, "Examples are not enough, learn to criticize!". The paper's code inverts a matrix in each step
    where we update a Cholesky factor.

    Attributes:
        n_prototypes: how many, over all classes together; the classes share them as the data ask for.
        n_criticisms: how many, over all classes together; 0 is allowed.
        labels: (n,) the examples' classes, or None.
        per_class: whether, with labels, classes have prototypes of their own; else labels serve cross-validation only.
        layer: the layer in whose activations the examples are compared; None is the inputs themselves.
        pooled: whether a layer's maps are averaged over their positions.
        gamma: of the RBF kernel exp(-gamma |x - y|^2); "median" is one over the median squared distance of a thousand
            examples, "cv" that with the least nearest-prototype error in three folds (needs labels), as in the paper;
            "auto" is "cv" with labels and "median" without.
        kernel: "rbf", or a function of (a, d) and (b, d) that gives a symmetric positive definite kernel (a, b).
        folder: where a layer's activations are kept, so that an interrupted run goes on where it stood and others with
            the same model and data need no passes; None keeps nothing. What is compared and takes more than 256 MiB
            lies in a passing file there, or in the system's folder for such.
    """

    n_prototypes: Annotated[int, Ge(1)] = 10
    n_criticisms: Annotated[int, Ge(0)] = 10
    labels: Any = None
    per_class: bool = True
    layer: str | None = None
    pooled: bool = True
    gamma: Annotated[float, Gt(0)] | Literal["auto", "median", "cv"] = "auto"
    kernel: Literal["rbf"] | Callable[[Tensor, Tensor], Tensor] = "rbf"
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma == "cv" and (self.labels is None or callable(self.kernel)):
            raise ParameterError("gamma='cv' needs labels, and the RBF kernel whose gamma it is")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """One prototype and one criticism, of all and of two classes."""
        return [
            cls(n_prototypes=1, n_criticisms=1, layer="auto"),
            cls(n_prototypes=2, n_criticisms=1, layer="auto", pooled=False, labels=[0, 1, 0]),
        ]

    def explain(self, sample: Sample) -> Passes[Exemplars]:
        """One forward pass of each example, or none without a layer."""
        n, wanted = len(sample), self.n_prototypes + self.n_criticisms
        if wanted > n:
            raise InputError(
                f"{self.n_prototypes} prototypes and {self.n_criticisms} criticisms were asked of {n} examples; "
                f"expected at most {n} together"
            )
        labels = None if self.labels is None else label_tensor(self.labels, n)
        points = yield from self._points(sample)
        gamma, checks = self._gamma(points, labels)
        local = labels if self.per_class else None
        kernel = self.kernel if callable(self.kernel) else gamma
        matrix = KernelMatrix.of(points, kernel, None if local is None else local.to(points.device))
        found = prototypes(matrix, self.n_prototypes)
        critics = criticisms(matrix, found, self.n_criticisms)
        rows = _rows(matrix, found, critics)
        names = None if local is None else tuple(f"class {label}" for label in torch.unique(local).tolist())
        made = _exemplars(
            rows,
            names,
            points.dtype,
            over=self.layer or "input",
            examples=sample.held if isinstance(sample.held, Tensor) else None,
            checks=[*checks, *_certificates(found)],
        )
        return replace(made, crops=pictures(sample, made.indices))

    def _points(self, sample: Sample) -> Passes[Tensor]:
        """What is compared, (n, d)."""
        if self.layer is None and isinstance(sample.held, Tensor):
            held = sample.held.flatten(1) if sample.held.dim() > 1 else sample.held[:, None]
            return _single(held)
        layer, points, wrong = self.layer, list[Tensor](), list[int]()

        def take(start: int, found: dict[str, Tensor]) -> None:
            rows = _single(found["points"])
            if not points:
                points.append(room(len(sample), rows[0], self.folder))
            points[0][start : start + len(rows)] = rows
            bad = ~torch.isfinite(rows).all(dim=1)
            wrong.extend((start + bad.nonzero().flatten()).tolist() if bool(bad.any()) else [])

        if layer is None:
            one = sample.part(0, 1).inputs
            if not isinstance(one, Tensor):
                raise Unsuitable("mmd_critic compares inputs of one tensor; for several, name a layer")
            step = max(1, min(LARGEST, BLOCK_BYTES // one.nbytes))
            for start in range(0, len(sample), step):
                take(start, {"points": sample.part(start, start + step).inputs.flatten(1)})
            return points[0]

        def reduced(seen: Seen) -> dict[str, Tensor]:
            pooled = self.pooled and bool(seen.layers[layer].layout)
            return {"points": seen.maps(layer).mean(dim=(2, 3)) if pooled else seen.activations[layer].flatten(1)}

        look = functools.partial(Look, activations=[layer])
        store, model = yield from kept(self.folder, sample)
        yield from streamed(sample, look, reduced, take, store, ("points", model, layer, self.pooled))
        if wrong:
            raise InputError(f"layer '{layer}' is not finite for {len(wrong)} examples: {wrong[:10]}; remove them")
        return points[0]

    def _gamma(self, points: Tensor, labels: Tensor | None) -> tuple[float, list[Check]]:
        """The kernel's gamma, and how it was found."""
        if callable(self.kernel):
            return 0.0, []
        if isinstance(self.gamma, float):
            return self.gamma, []
        median = median_gamma(points)
        if self.gamma == "median" or labels is None or len(points) <= FOLDS:
            return median, [Check.info("gamma", median, "one over the median squared distance")]
        # Every so many of the examples in the order of their classes, so that each class keeps its share.
        count = min(len(points), max(TRIED, FOLDS * self.n_prototypes))
        spaced = torch.linspace(0, len(points) - 1, count, dtype=torch.float64).round().long()
        some = labels.argsort(stable=True)[spaced].to(points.device)
        tried, classes = points[some], labels.to(points.device)[some]
        errors = {median * factor: self._error(tried, classes, median * factor) for factor in FACTORS}
        best = min(errors, key=lambda gamma: errors[gamma])
        note = f"of {len(errors)} tried, the least nearest-prototype error in {FOLDS} folds: {errors[best]:.3f}"
        return best, [Check.info("gamma", best, note)]

    def _error(self, points: Tensor, labels: Tensor, gamma: float) -> float:
        """The nearest-prototype error of held-out examples in the order of their classes, the mean over folds."""
        fold = torch.arange(len(labels), device=labels.device) % FOLDS  # which take turns within each class
        wrong = 0
        for held in range(FOLDS):
            inside, outside = (fold != held).nonzero().flatten(), (fold == held).nonzero().flatten()
            train = points[inside]
            matrix = KernelMatrix.of(train, gamma, labels[inside] if self.per_class else None)
            chosen = inside[prototypes(matrix, min(self.n_prototypes, len(inside))).chosen]
            wrong += int((labels[chosen][nearest(points[outside], points[chosen])] != labels[outside]).sum())
        return wrong / len(points)


def _single(points: Tensor) -> Tensor:
    """Points in single precision at least."""
    return points.float() if points.dtype in (torch.float16, torch.bfloat16) else points


def _rows(matrix: KernelMatrix, found: Prototypes, critics: Tensor) -> list[list[tuple[str, int, float]]]:
    """For each group the kind, place and value of its exemplars, in the order of their choice."""
    kinds = [("prototype", *pair) for pair in zip(found.chosen.tolist(), found.gains.tolist(), strict=True)]
    kinds += [("criticism", *pair) for pair in zip(critics.tolist(), found.witness[critics].tolist(), strict=True)]
    rows: list[list[tuple[str, int, float]]] = [[] for _ in matrix.groups or (None,)]
    for one in kinds:
        rows[int(matrix.group_of[one[1]]) if matrix.groups else 0].append(one)
    return rows


def _exemplars(
    rows: list[list[tuple[str, int, float]]], names: tuple[str, ...] | None, dtype: torch.dtype, **rest: Any
) -> Exemplars:
    """The rows as a table, prototypes first, with empty places where a class has fewer."""
    columns = [
        (kind, rank)
        for kind in ("prototype", "criticism")
        for rank in range(max(sum(one[0] == kind for one in row) for row in rows))
    ]
    indices = torch.full((len(rows), len(columns)), -1)
    values = torch.zeros(len(rows), len(columns), dtype=dtype)
    for place, row in enumerate(rows):
        for column, (kind, rank) in enumerate(columns):
            own = [one for one in row if one[0] == kind]
            if rank < len(own):
                indices[place, column], values[place, column] = own[rank][1:]
    return Exemplars(values, indices, kind=tuple(kind for kind, _ in columns), names=names, **rest)


def _certificates(found: Prototypes) -> list[Check]:
    note = "the squared MMD of data and prototypes, as a share of what as many random examples have on average"
    # Where all examples are prototypes, or all are alike, nothing is left that chance could do worse.
    chance = max(found.chance, 1e-12 * float(found.diagonal.mean()))
    return [
        Check.info("squared MMD", found.mmd),
        Check.bound(
            "against random choice", max(found.mmd, 0.0) / chance if found.mmd > chance * 1e-9 else 0.0, 1.0, note
        ),
    ]
