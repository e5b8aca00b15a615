"""Pixel flipping: does the score fall where the explanation says?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from pellucid import (
    Attribution,
    ClassLogit,
    Evaluator,
    InputError,
    Look,
    ParameterError,
    Passes,
    Sample,
    Scores,
    TargetError,
    Unsuitable,
)
from pellucid_evaluation.inpainting import inpaint

Measure = Literal["aopc", "morf_lerf_gap", "deletion_auc", "insertion_auc"]


@dataclass(frozen=True, eq=False)
class PixelFlipping(Evaluator):
    """Hides regions in the order of the explanation and measures how fast the score falls.

    With f_k the score after k of L steps, most relevant regions first ("morf"), the measures are

    * "aopc": the mean over k = 0 ... L of f_0 - f_k (Samek et al., "Evaluating the visualization of what a deep neural
      network has learned", 2017): higher is better, or lower with the least relevant first ("lerf");
    * "morf_lerf_gap": the mean over k of f_k least relevant first, less f_k most relevant first: higher is better. What
      hiding alone does to the model, whatever the order, cancels;
    * "deletion_auc": the area under f_k over the share hidden, from 0 to `fraction`, divided by `fraction` (Petsiuk et
      al., 2018): lower is better;
    * "insertion_auc": the same over the share *shown*, from an input that is hidden everywhere: higher is better.

    The sign counts: regions with negative relevance come last. Regions with equal relevance, as in a constant
    explanation, come in a random order that depends on the seed alone, so that no place is favoured.

    What stands in place of the hidden regions decides the ranking of explanations as much as they do (with "zero",
    regions that are zero already are hidden for nothing), so it is recorded and worth varying.

    Attributes:
        measure: see above.
        order: which regions come first, the most ("morf") or the least relevant ("lerf"); "morf_lerf_gap" takes both.
        substitution: what is shown in place of a hidden region: a baseline ("zero", "black", "mean", "blur", a number,
            a tensor, see `Sample.baseline`); "noise", uniform between the least and the largest value of each channel
            of the example (of the whole row in a table), the same draw for all examples; or "inpaint", the weighted
            mean of the neighbouring pixels with a little noise (Rong et al., 2022, ROAD), for images and signals.
        regions: the side of the square cells that are hidden together, or a map of whole numbers (H, W), (L,) or (d,)
            that names the region of each position. None is a 28th of the shorter side, and single features in a table.
        n_steps: how many steps are taken, each of about as many regions; no more than there are regions.
        fraction: the share of the regions that is hidden, or shown, in the end.
        probability: whether f is the softmax probability of the class in place of the target's own score, the logit.

    Raises:
        Unsuitable: for an explanation that is no attribution of the inputs or of a map, or a model of several inputs.
        InputError: when the explanation is not finite, or is of other examples than the sample.
        ParameterError: when the regions or the substitution do not fit the inputs.
        TargetError: when probabilities are asked of a target that is no class.
    """

    measure: Measure = "aopc"
    order: Literal["morf", "lerf"] = "morf"
    substitution: Any = "zero"
    regions: Any = None
    n_steps: Annotated[int, Ge(1)] = 20
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    probability: bool = False

    label: ClassVar[str] = "pixel_flipping"

    @classmethod
    def test_instances(cls) -> list[PixelFlipping]:
        """Few steps, every measure's arithmetic and every kind of substitution."""
        return [
            cls(n_steps=4),
            cls(measure="morf_lerf_gap", substitution="noise", regions=4, n_steps=3, fraction=0.5),
            cls(measure="insertion_auc", substitution="inpaint", regions=8, n_steps=3),
        ]

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which score is the good one."""
        if self.measure == "morf_lerf_gap":
            return "higher"
        return "higher" if (self.measure != "deletion_auc") == (self.order == "morf") else "lower"

    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores]:
        """Looks at the sample once and at every partly hidden one, of which there are `n_steps` (twice for the gap)."""
        relevance = _relevance(sample, explanation)
        ranks, count = self._ranks(sample, relevance)
        steps = min(self.n_steps, max(1, round(self.fraction * count)))
        taken = torch.linspace(0, self.fraction * count, steps + 1, dtype=torch.float64).round().long().tolist()
        curves = [self._points(order, taken, count) for order in self._orders]

        whole = yield Look(at=sample)
        known = {} if self.probability else {(False, 0): whole.scores}
        points = [point for point in dict.fromkeys(point for curve in curves for point in curve) if point not in known]
        backwards = torch.tensor([point[0] for point in points])
        hidden = torch.tensor([point[1] for point in points])

        def shown(draws: Tensor, examples: Tensor) -> Tensor:
            def rows(values: Tensor) -> Tensor:
                return values[draws].reshape(-1, *(1,) * (ranks.dim() - 1))

            rank = ranks[examples]
            return torch.where(rows(backwards), count - 1 - rank, rank) >= rows(hidden)

        targets = [_probability(whole.classes)] if self.probability else None
        seen = yield Look(at=self._substituted(sample, len(points), shown), targets=targets)
        scores = seen.scores[0] if targets else seen.scores
        known |= dict(zip(points, scores, strict=True))
        first, last = (torch.stack([known[point] for point in curve], dim=1) for curve in (curves[0], curves[-1]))
        places = torch.tensor(taken).to(first) / count
        if self.measure == "morf_lerf_gap":
            curve = last - first
            values = curve.mean(dim=1)
        else:
            curve = first
            drop = (first[:, :1] - first).mean(dim=1)
            values = drop if self.measure == "aopc" else torch.trapezoid(first, places, dim=1) / places[-1]
        return Scores.single(
            metric=self.technique.name if self.technique else self.label,
            explanation=explanation.meta.technique,
            values=values,
            better=self.better,
            curve=(places, curve),
        )

    @property
    def _orders(self) -> tuple[str, ...]:
        return ("morf", "lerf") if self.measure == "morf_lerf_gap" else (self.order,)

    def _points(self, order: str, taken: list[int], count: int) -> list[tuple[bool, int]]:
        """A curve's points: whether regions are hidden from the least relevant on, and how many."""
        backwards = (order == "lerf") != (self.measure == "insertion_auc")
        hidden = [count - number for number in taken] if self.measure == "insertion_auc" else taken
        # Nothing hidden, and everything hidden, are the same whatever the order.
        return [(backwards and 0 < number < count, number) for number in hidden]

    def _ranks(self, sample: Sample, relevance: Tensor) -> tuple[Tensor, int]:
        """The rank of each position's region, 0 for the most relevant, and how many regions there are.

        Args:
            sample: gives the seed by which ties are broken.
            relevance: (B, *positions).

        Returns:
            (B, d) in a table and (B, 1, *positions) else.
        """
        names, numbers = torch.unique(self._region_map(tuple(relevance.shape[1:])), return_inverse=True)
        count, places = len(names), numbers.flatten()
        total = torch.zeros(len(relevance), count, dtype=torch.float64)
        mean = total.index_add_(1, places, relevance.flatten(1)) / places.bincount()
        shuffled = torch.randperm(count, generator=sample.generator("pixel_flipping", "ties"))
        order = shuffled[mean[:, shuffled].argsort(dim=1, descending=True, stable=True)]
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(count).expand_as(order))
        ranks = rank[:, places].reshape(relevance.shape)
        return (ranks.unsqueeze(1) if sample.inputs.dim() > 2 else ranks), count

    def _region_map(self, positions: tuple[int, ...]) -> Tensor:
        if self.regions is not None and not isinstance(self.regions, int):
            given = torch.as_tensor(self.regions).cpu()
            if given.shape != positions or given.is_floating_point() or given.dtype == torch.bool:
                raise ParameterError(
                    f"the regions are {given.dtype} of shape {tuple(given.shape)}; expected whole numbers {positions}"
                )
            return given
        default = max(1, min(positions) // 28) if len(positions) > 1 or self.regions else 1
        side = default if self.regions is None else self.regions
        if side < 1 or side > max(positions):
            raise ParameterError(f"regions={side}; expected a cell's side between 1 and the input's {max(positions)}")
        number = torch.zeros(positions, dtype=torch.long)
        for axis, size in enumerate(positions):
            cell = torch.arange(size) // side
            number = number * (-(-size // side)) + cell.reshape(-1, *(1,) * (len(positions) - axis - 1))
        return number

    def _substituted(self, sample: Sample, n: int, shown: Any) -> Any:
        """The sample with what is hidden replaced."""
        if not isinstance(self.substitution, str) or self.substitution not in ("noise", "inpaint"):
            return sample.masked(n, shown, self.substitution)
        inputs = sample.inputs
        generator = sample.generator("pixel_flipping", self.substitution)
        uniform = torch.rand(inputs.shape[1:], generator=generator, dtype=torch.float64).to(inputs)
        dims = tuple(range(2 if inputs.dim() > 2 else 1, inputs.dim()))
        low, width = inputs.amin(dims, keepdim=True), inputs.amax(dims, keepdim=True) - inputs.amin(dims, keepdim=True)
        if self.substitution == "noise":
            return sample.masked(n, shown, low + width * uniform)
        if inputs.dim() not in (3, 4):
            raise ParameterError(
                f"substitution 'inpaint' is for images and signals; the inputs are {tuple(inputs.shape)}"
            )
        # The noise keeps smooth patches from telling the model where the mask was: 1 % of each channel's range.
        ripple = 0.01 * width * (uniform - 0.5)

        def make(rows: Tensor, draws: Tensor, examples: Tensor) -> Tensor:
            mask = shown(draws, examples).to(rows.device)
            return torch.where(mask, rows, inpaint(rows, mask) + ripple[examples.to(rows.device)])

        return sample.derived(n, make)


def _probability(classes: Tensor | None) -> ClassLogit:
    if classes is None:
        raise TargetError("probability=True needs a class as the target; expected an index, or probability=False")
    return ClassLogit(classes.cpu(), probability=True)


def _relevance(sample: Sample, explanation: Any) -> Tensor:
    """The relevance of each position, (B, d) in a table, (B, L) in a signal, (B, H, W) in an image."""
    inputs = sample.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        raise Unsuitable("pixel flipping hides regions of one input tensor; this model has several inputs or none")
    if not isinstance(explanation, Attribution):
        raise Unsuitable(f"pixel flipping needs an attribution; this explanation is a {type(explanation).__name__}")
    if len(explanation) != len(sample):
        raise InputError(f"the explanation is of {len(explanation)} examples; the sample has {len(sample)}")
    relevance: Tensor
    if inputs.dim() == 4:
        relevance = explanation.heatmap((inputs.shape[2], inputs.shape[3]))
    elif explanation.values.shape == inputs.shape:
        relevance = explanation.values.sum(dim=1) if inputs.dim() == 3 else explanation.values
    elif explanation.tokens is not None and explanation.values.shape == (len(inputs), *inputs.shape[2:]):
        relevance = explanation.values  # of the tokens of texts, which are to the model a signal of embeddings
    else:
        raise Unsuitable(
            f"the explanation's values are {tuple(explanation.values.shape)}, the inputs {tuple(inputs.shape)}; "
            "expected one value for each feature"
        )
    relevance = relevance.detach().cpu().double()
    if not bool(torch.isfinite(relevance).all()):
        raise InputError("the explanation has values that are not finite (NaN or infinity); they have no order")
    return relevance
