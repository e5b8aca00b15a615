"""Any attribution over noisy copies of the input: its mean and its variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pellucid import (
    Attribution,
    Explainer,
    Look,
    Moments,
    ParameterError,
    Part,
    Passes,
    Sample,
    Sum,
    create,
    technique,
    together,
)


@dataclass(frozen=True, eq=False)
class Noisy:
    """What became of an attribution under noise.

    Attributes:
        mean: the mean over the draws, (B, ...).
        variance: the variance over the draws, dividing by their number.
        over: what the attribution is over.
        reduce: how its channels become one value.
    """

    mean: Any
    variance: Any
    over: Any = "input"
    reduce: Literal["sum", "once", "norm"] = "sum"


def made(of: Explainer | str | None) -> Explainer | None:
    """The explainer that a name means, with its default parameters; an explainer or None as it is.

    Raises:
        UnknownTechnique: if there is no such technique.
        ParameterError: if it is of another kind.
    """
    if not isinstance(of, str):
        return of
    explainer = create(of)
    if not isinstance(explainer, Explainer):
        raise ParameterError(f"of='{of}' is of kind {technique(of).kind}; give an explainer, or the name of one")
    return explainer


def under_noise(
    sample: Sample, n: int, noise: float, explainer: Explainer | None = None, *, squared: bool = False
) -> Passes[Noisy]:
    """Runs an explainer, or takes the plain gradient, at `n` noisy copies of every example.

    The plain gradients are folded as they stream by; another explainer runs on all copies as on one large batch.

    Raises:
        ParameterError: if the explainer's answer is no attribution.
    """
    if explainer is None:
        noisy = sample.jittered(n, noise)
        if not squared:
            seen = yield Look(at=noisy, gradients=["input"], fold=Moments())
            return Noisy(seen.gradients["input"], seen.spread["gradients"]["input"], reduce="norm")

        def powers(part: Part) -> tuple[Any, Any]:
            square = part.gradients["input"] ** 2
            return square, square**2

        seen = yield Look(at=noisy, gradients=["input"], fold=Sum(powers))
        mean, square = (sums / n for sums in seen.folded)
        return Noisy(mean, (square - mean**2).clamp_min(0))

    # Labelled by what is inside: a technique that jitters too must not meet its own noise again.
    noisy = sample.jittered(n, noise, label=f"jitter of {type(explainer).__name__}")
    (inner,) = yield from together(explainer.explain(noisy.flattened()))
    if not isinstance(inner, Attribution):
        raise ParameterError(
            f"of={type(explainer).__name__} answers with {type(inner).__name__}; expected an explainer that gives an "
            "Attribution, which can be averaged"
        )
    draws = inner.values.unflatten(0, (n, len(sample)))
    draws = draws**2 if squared else draws
    return Noisy(draws.mean(dim=0), draws.var(dim=0, correction=0), inner.over, inner.reduce)
