"""States: what a layer gave for each example, through training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.api import project
from pellucid.errors import InputError
from pellucid.results import Check, Projection
from pellucid.results.projection import path_lengths, whole


@dataclass(frozen=True, eq=False)
class States:
    """What a layer gave for each example, through training; or what whole networks compute.

    Attributes:
        values: (T, n, d).
        steps: (T,) the training steps.
        over: the layer.
        labels: (n,) the examples' classes, or None.
        names: what each example, or network, is called; or None.
        outputs: (T, n, classes) the model's outputs, or None.
        classes: the names of the classes, or None.
        pictures: (n, H, W, 3) the examples as photos of bytes, or None.

    Raises:
        InputError: when the shapes do not fit together.
    """

    values: Tensor
    steps: Tensor
    over: str = ""
    labels: Tensor | None = None
    names: tuple[str, ...] | None = None
    outputs: Tensor | None = None
    classes: tuple[str, ...] | None = None
    pictures: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.dim() != 3 or len(self.values) == 0 or len(self.steps) != len(self.values):
            raise InputError(
                f"the states have shape {tuple(self.values.shape)} at {len(self.steps)} steps; expected (T, n, d) at T"
            )
        n = self.values.shape[1]
        for name in ("labels", "names", "pictures"):
            part = getattr(self, name)
            if part is not None and len(part) != n:
                raise InputError(f"there are {len(part)} {name} of {n} points; expected one for each")

    def __len__(self) -> int:
        return self.values.shape[1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The values, so that `pellucid.project` and numpy take states as they are; numpy knows no bfloat16."""
        values = (self.values.float() if self.values.dtype == torch.bfloat16 else self.values).numpy()
        return values if dtype is None else values.astype(dtype)

    @property
    def finite(self) -> Tensor:
        """(T,) whether all states of a step are finite; those of a run that diverged are not."""
        return torch.stack([frame.isfinite().all() for frame in self.values])

    @property
    def predictions(self) -> Tensor:
        """(T, n) the predicted classes; -1 where an output is not finite.

        Raises:
            InputError: without outputs (T, n, classes).
        """
        outputs = self._outputs()
        return torch.where(outputs.isfinite().all(dim=-1), outputs.argmax(dim=-1), -1)

    @property
    def losses(self) -> Tensor:
        """(T, n) each example's cross-entropy; NaN where its label is none of the model's classes.

        Raises:
            InputError: without outputs and labels.
        """
        scores, labels = log_scores(self._outputs()), self._labels()
        known = (labels >= 0) & (labels < scores.shape[-1])
        losses = scores.new_full(scores.shape[:2], torch.nan)
        losses[:, known] = F.cross_entropy(
            scores[:, known].flatten(0, 1), labels[known].repeat(len(scores)), reduction="none"
        ).view(len(scores), -1)
        return losses

    @property
    def correct(self) -> Tensor:
        """(T, n) whether each example is predicted rightly.

        Raises:
            InputError: without outputs and labels.
        """
        return self.predictions == self._labels()

    @property
    def learned(self) -> Tensor:
        """(n,) the first step from which on an example is predicted rightly to the end; -1 where there is none."""
        wrong = (~self.correct).long()
        later = wrong.flip(0).cumsum(dim=0).flip(0)  # how often it is wrong from here on
        first = (later > 0).sum(dim=0)
        return torch.where(first < len(self.steps), self.steps[first.clamp_max(len(self.steps) - 1)], -1)

    @property
    def forgotten(self) -> Tensor:
        """(n,) how often an example was predicted rightly and at the next capture wrongly (Toneva et al., 2019)."""
        right = self.correct
        return (right[:-1] & ~right[1:]).sum(dim=0)

    @property
    def moved(self) -> Tensor:
        """(n,) how far each example's states go through training, all steps between captures together.

        Steps to and from captures that are not finite, as of a run that diverged, do not count.
        """
        return path_lengths(self.values)

    def at(self, frames: Tensor) -> States:
        """The states of some of the captures, by index or mask."""
        outputs = None if self.outputs is None else self.outputs[frames]
        return replace(self, values=self.values[frames], steps=self.steps[frames], outputs=outputs)

    def project(self, technique: Any = "dynamic_tsne", *, seed: int = 0, **parameters: Any) -> Projection:
        """Maps the states; the map knows their layer, steps, labels, classes and names.

        Captures with states that are not finite, as of a run that diverged, have no place: theirs are NaN, which plots
        leave out, and a check names the first of them. Where fewer places are lost so, the points with such states have
        none at any time instead, as one network of several that diverged.

        Args:
            technique: a projector's name or instance.
            seed: as for `pellucid.project`.
            **parameters: as for `pellucid.project`.

        Raises:
            InputError: when no capture is finite; and as `pellucid.project`.
        """
        times, points = whole(torch.stack([frame.isfinite().all(dim=-1) for frame in self.values]))
        if not bool(times.any()):
            raise InputError("no capture has only finite states (no NaN or infinity), so that there is nothing to map")
        lost = bool((~times).any()), bool((~points).any())
        # Indexing copies, and states may be larger than the memory.
        given = self.values[times] if lost[0] else self.values[:, points] if lost[1] else self.values
        made = project(given, technique, seed=seed, **parameters)
        values = made.values
        checks = tuple(made.checks)
        if any(lost):
            values = values.new_full((*self.values.shape[:2], values.shape[-1]), torch.nan)
            values[times.unsqueeze(1) & points] = made.values.flatten(0, 1)
            checks += (self._diverged(times, points),)
        meta = replace(made.meta, layer=self.over or None, categories=self.classes)
        return replace(
            made, values=values, times=self.steps, labels=self.labels, names=self.names, checks=checks, meta=meta
        )

    def units(self) -> States:
        """The units as points, (T, d, n): what each gives for all examples. `m_phate` is a map for them."""
        names = tuple(f"{self.over or 'unit'}[{unit}]" for unit in range(self.values.shape[2]))
        return States(self.values.transpose(1, 2).contiguous(), self.steps, over=f"units of {self.over}", names=names)

    def random_walk(self, seed: int = 0) -> States:
        """A control: every point walks at random from where it starts, with steps as long as its own.

        Few axes of a random walk explain much of it as well (the first explains 6 / pi^2, or .61, of a long one in many
        dimensions), so that explained variance alone says nothing of a trajectory.
        """
        generator = torch.Generator().manual_seed(seed)
        moves = self.values.double().diff(dim=0)
        drawn = torch.randn(moves.shape, generator=generator, dtype=torch.float64)
        lengths = moves.norm(dim=-1, keepdim=True)
        walked = drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(1e-30) * lengths
        start = self.values[:1].double()
        values = torch.cat([start, start + walked.cumsum(dim=0)]).to(self.values.dtype)
        return replace(self, values=values, over=f"random walk like {self.over}", outputs=None)

    def _diverged(self, times: Tensor, points: Tensor) -> Check:
        """Says which captures or points have no place."""
        if bool(points.all()):
            step = int(self.steps[~times][0])
            note = f"captures have NaN or infinite states, the first at step {step}; they have no place"
            return Check.info("diverged", float((~times).sum()), note)
        place = int((~points).long().argmax())
        first = self.names[place] if self.names is not None else f"point {place}"
        note = f"points have NaN or infinite states at some step, the first of them {first}; they have no place"
        return Check.info("diverged", float((~points).sum()), note)

    def _outputs(self) -> Tensor:
        if self.outputs is None:
            raise InputError("these states have no outputs (T, n, classes), which predictions and losses are made of")
        return self.outputs

    def _labels(self) -> Tensor:
        if self.labels is None:
            raise InputError("these states have no labels; give Recorder(labels=...)")
        return self.labels


def log_scores(outputs: Tensor) -> Tensor:
    """Outputs (..., classes) in double precision, whose softmax are the probabilities that the model gives.

    Those of a model that ends in a softmax are probabilities already, and their logarithms are taken.
    """
    scores = outputs.double()
    known = scores[scores.isfinite().all(dim=-1)]
    already = bool((known >= 0).all()) and bool(((known.sum(dim=-1) - 1).abs() < 1e-2).all()) and len(known) > 0
    return scores.clamp_min(torch.finfo(torch.float32).tiny).log() if already else scores
