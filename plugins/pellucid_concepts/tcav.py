"""TCAV: how much concepts count for a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor

from pellucid import Blocks, Concepts, Explainer, Look, ParameterError, Passes, Sample
from pellucid_concepts.reading import FEWEST_SETS, Reading, examples, random_sets, shown, slopes
from pellucid_concepts.scoring import Classes, answer, column
from pellucid_concepts.vectors import Activations, Classifier


@dataclass(frozen=True, eq=False)
class TCAV(Explainer):
    """How much concepts count for a class: whether its score rises where a layer's activations move towards them.

    The sample holds examples of the class, or of several: each class among the targets has a row. A concept is a set of
    examples. A linear classifier between its activations and those of a random set points to it, the concept
    activation vector, once for each random set. `.values` are the shares of the examples whose score rises along it,
    the mean over the random sets, and `.spread` their standard deviation; `.magnitudes` the mean cosine between
    gradient and vector, which does not saturate as shares do.

    `.p_values` hold the concept against the random sets, which each are taken for a concept against the others, by
    Student's t for one more draw, times the number of tests in the result (Bonferroni). What is compared is the cosine
    times how far the vector reaches, from the random set's mean to the concept's: between two random sets a vector
    has a length and a score like any other, but it leads nowhere. The p-value says whether the class depends on the
    concept at all, which with more examples shows for smaller effects; how much, the magnitude says. A score of .5
    means nothing by itself: random vectors have scores far from it, for one class above and for another below;
    `.control` is the mean of both ways, near .5.

    `.vectors` are the mean vectors, each as long as it reaches. Kept with `save`, they can be given as concepts again,
    which takes no examples and no fits of the concept.

    Kim et al., 2018, "Interpretability beyond feature attribution: quantitative testing with concept activation vectors
    (TCAV)". The paper takes a concept's runs for independent draws in its t-test of the scores, although all of them
    share the concept's examples, and so finds many random concepts significant.

    Attributes:
        concepts: by name, examples (n, ...) of the inputs' shape, at least 6 and better 50, also as a memory-mapped
            array, a Dataset or a DataLoader; or a direction, as a vector (d,), or a mapping from the layers to one for
            each. A direction's length counts for its p-value, as reach.
        random: examples (m, ...) that are dealt out to `n_random` sets, or a list of sets. Sets as large as the
            concepts serve best.
        layers: where. With several, a concept has a column for each, named "concept, layer".
        n_random: how many random sets are made of one tensor.
        pooled: whether the maps of a layer are averaged over their positions, which makes a concept one that may be
            anywhere; otherwise a vector has a number for each position of each channel.
        classifier: "logistic" or "ridge".
        penalty: what the squared length of the vector costs beside the mean loss, for activations whose mean squared
            distance from their mean is one.
        alpha: the level of `.significant`.
        folder: where the sets' activations are kept, so that an interrupted run goes on where it stood and others with
            the same model and sets need no passes of them; None keeps nothing.
    """

    concepts: Annotated[Mapping[str, Any], MinLen(1)]
    random: Any
    layers: Annotated[tuple[str, ...], MinLen(1)] = ("auto",)
    n_random: Annotated[int, Ge(FEWEST_SETS)] = 10
    pooled: bool = False
    classifier: Classifier = "logistic"
    penalty: Annotated[float, Gt(0)] = 0.01
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.05
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        random_sets(self.random, self.n_random)
        for name, given in self.concepts.items():
            if not _directed(given):
                examples(given, f"concept '{name}'")
        if len(set(self.layers)) < len(self.layers):
            raise ParameterError(f"layers={self.layers} names a layer twice")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """All positions and pooled maps; a direction beside sets of examples."""
        noise = torch.randn(62, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sets = {"one": noise[:6], "other": noise[6:14]}
        direction = torch.linspace(-1, 1, 8, dtype=torch.float64)
        return [
            cls(concepts=sets, random=noise[14:], n_random=5),
            cls(
                concepts={"line": direction, **sets},
                random=list(torch.split(noise[14:], 8)),
                pooled=True,
                classifier="ridge",
            ),
        ]

    def explain(self, sample: Sample) -> Passes[Concepts]:
        """A forward and a backward pass of the sample; one forward pass of each example of the sets."""
        seen = yield Look(at=sample, activations=self.layers, gradients=self.layers, digest=self.folder is not None)
        sets = {name: given for name, given in self.concepts.items() if not _directed(given)}
        given = {f"the examples of concept '{name}'": examples(one, f"concept '{name}'") for name, one in sets.items()}
        for place, dealt in enumerate(random_sets(self.random, self.n_random)):
            given[f"the examples of random set {place}"] = dealt
        counts = [one.count for one in given.values()]
        reading = Reading(sample, self.layers, self.pooled, Blocks(self.folder), seen.digest)
        found = yield from reading.of(sum(counts), shown(sample, given))
        classes, columns = Classes.of(seen), []
        for layer, one in zip(self.layers, found, strict=True):
            parts, steep = torch.split(one, counts), slopes(seen, layer, self.pooled)
            at = Activations(parts[: len(sets)], parts[len(sets) :], steep, self.penalty, self.classifier)
            where = seen.layers[layer].name
            for name, one in self.concepts.items():
                label = f"{name}, {where}" if len(self.layers) > 1 else name
                concept = list(sets).index(name) if name in sets else _direction(name, one, layer, where, steep)
                columns.append(column(label, at, concept, classes))
        over = " + ".join(seen.layers[layer].name for layer in self.layers)
        return answer(columns, classes, self.alpha, steep, over=over)


def _directed(given: Any) -> bool:
    """Whether a concept is given as directions rather than examples."""
    return isinstance(given, Mapping) or (hasattr(given, "__array__") and len(given.shape) == 1)


def _direction(name: str, given: Any, layer: str, where: str, steep: Tensor) -> Tensor:
    """The direction (d,) of a concept at a layer.

    Raises:
        ParameterError: when there is none for the layer, it has another length, or no direction.
    """
    if isinstance(given, Mapping):
        if layer not in given and where not in given:
            raise ParameterError(f"concept '{name}' has directions for {sorted(given)}; expected one for '{where}'")
        given = given[layer] if layer in given else given[where]
    found = torch.as_tensor(given).detach().to(steep)
    if found.shape != steep.shape[1:]:
        raise ParameterError(
            f"the direction of concept '{name}' has shape {tuple(found.shape)}; layer '{where}' has "
            f"{tuple(steep.shape[1:])} (with pooled, a number for each channel)"
        )
    if not bool(torch.isfinite(found).all()) or not bool(found.any()):
        raise ParameterError(f"the direction of concept '{name}' is zero or not finite; expected a direction")
    return found
