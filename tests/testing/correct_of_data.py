"""Correct techniques that explain by training data, examples and concepts, which the kit must pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge

from pellucid import Concepts, Evaluator, Exemplars, Explainer, Influence, InputError, Look, Loss, Sample, Scores

from .correct import correct

COPIES = "counts a copy of the query as a help and its wrongly labelled twin as a harm"
LABELS = "gives wrong labels the greatest self-influence"
NEAREST = "finds the copies of an input, the exact one first"
PROTOTYPES = "gives each planted cluster a prototype, also where one is of duplicates"
UNITS = "finds the examples that excite a planted unit, and where in them it is"
CONCEPTS = "tells concepts that speak for and against the class from one that the network passes over"
CHANCE = "does not take random concepts for significant"
PARTS = "finds the part that images of a class share, whichever segment it is"

ACROSS = {"image", "class_agnostic", "across_examples"}


def noise(n=12):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def labelled():
    return noise(), torch.arange(12) % 4


def alike(inputs, sample, target=None):
    """Other examples as a sample for the same model."""
    target = sample.target.picked(torch.zeros(len(inputs), dtype=torch.long)) if target is None else target
    return Sample(inputs.to(sample.inputs), target, sample.seed, sample.mean, sample.std, sample.frame)


@correct
@dataclass(frozen=True, eq=False)
class Steps(Explainer):
    """What a step on each training example adds to the query's score."""

    train: Any = field(default_factory=labelled)

    record: ClassVar[Any] = {
        "output": "influence",
        "explains": "data",
        "uses": {"factors"},
        "tags": {"image", "training_data"},
    }

    def checked(self, sample):
        inputs, labels = self.train
        if inputs.shape[1:] != sample.inputs.shape[1:] or len(inputs) != len(labels):
            raise InputError("the training data do not fit the queries, or have not as many labels as inputs")
        if not bool(torch.isfinite(inputs).all()) or int(labels.min()) < 0:
            raise InputError("the training data are not finite, or a label is negative")
        return inputs, labels

    def explain(self, sample):
        inputs, labels = self.checked(sample)
        order = self.order(labels)
        here = yield Look(at=sample, factors=("*",))
        there = yield Look(at=alike(inputs[order], sample, Loss(labels[order])), factors=("*",))
        return self.answer(-here.factors.inner(there.factors), there.factors.squares())

    def order(self, labels):
        return torch.arange(len(labels))

    def answer(self, values, own):
        return Influence(values, self_influence=own)


@correct
@dataclass(frozen=True, eq=False)
class Nearest(Explainer):
    """The training examples whose activations are nearest."""

    train: Any = field(default_factory=labelled)
    k: Annotated[int, Ge(1)] = 3

    record: ClassVar[Any] = {
        "output": "exemplars",
        "explains": "representation",
        "uses": {"activations"},
        "tags": {"image", "class_agnostic", "training_data"},
    }

    def explain(self, sample):
        inputs, labels = self.train
        self.check(len(inputs))
        here = yield Look(at=sample, activations=["auto"])
        there = yield Look(at=alike(inputs, sample), activations=["auto"])
        one, other = (seen.activations["auto"].flatten(1) for seen in (here, there))
        distances = (one[:, None] - other).norm(dim=2)
        places = distances.argsort(dim=1, stable=True)
        return self.answer(distances.gather(1, places), places, labels)

    def check(self, count):
        if self.k > count:
            raise InputError(f"{self.k} of {count} training examples were asked")

    def answer(self, distances, places, labels):
        return Exemplars(distances[:, : self.k], places[:, : self.k])


@correct
@dataclass(frozen=True, eq=False)
class Stand(Explainer):
    """Prototypes that lower the discrepancy from all examples most, and the examples that they represent worst."""

    n_prototypes: Annotated[int, Ge(1)] = 1
    n_criticisms: Annotated[int, Ge(0)] = 1

    record: ClassVar[Any] = {"output": "exemplars", "explains": "data", "uses": (), "tags": ACROSS}

    def explain(self, sample):
        points = sample.inputs.double().flatten(1)
        if self.n_prototypes + self.n_criticisms > len(points):
            raise InputError(f"{self.n_prototypes} prototypes of {len(points)} examples were asked")
        squared = (points[:, None] - points).square().sum(dim=2)
        kernel = (-squared / squared[squared > 0].median()).exp()
        chosen = []
        for _ in range(self.n_prototypes):
            chosen.append(max(range(len(points)), key=lambda one: self.worth(kernel, [*chosen, one])))
        witness = kernel.mean(dim=1) - kernel[:, chosen].mean(dim=1)
        critics = self.strange(witness)[: self.n_criticisms].tolist()
        places = torch.tensor([[*chosen, *critics]])
        kinds = ("prototype",) * len(chosen) + ("criticism",) * len(critics)
        return Exemplars(witness[places].to(sample.inputs.dtype), self.named(places, len(points)), kind=kinds)

    def worth(self, kernel, chosen):
        if len(set(chosen)) < len(chosen):
            return -torch.inf
        return float(2 * kernel[chosen].mean() - kernel[chosen][:, chosen].mean())

    def strange(self, witness):
        return witness.argsort(descending=True, stable=True)

    def named(self, places, count):
        return places


@correct
@dataclass(frozen=True, eq=False)
class Excited(Explainer):
    """The examples that excite each channel most."""

    layer: str = "auto"
    k: Annotated[int, Ge(1)] = 2

    record: ClassVar[Any] = {"output": "exemplars", "explains": "representation", "uses": {"activations"},
                             "tags": ACROSS}  # fmt: skip

    def explain(self, sample):
        seen = yield Look(at=sample, activations=[self.layer])
        return self.answer(seen.maps(self.layer).amax(dim=(2, 3)).T)

    def answer(self, values):
        places = values.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        return Exemplars(values.gather(1, places), places, kind="maximal", over=self.layer)


@correct
@dataclass(frozen=True, eq=False)
class Directions(Explainer):
    """Whether scores rise along the line from random sets to concepts."""

    concepts: Any = field(default_factory=lambda: {"one": noise()[:6], "other": noise()[6:]})
    random: Any = field(default_factory=lambda: noise(40))
    n_random: Annotated[int, Ge(3)] = 5
    alpha: float = 0.05

    record: ClassVar[Any] = {
        "output": "concepts",
        "explains": "model",
        "uses": {"activations", "gradients"},
        "tags": {"image", "across_examples"},
    }

    def check(self, concepts, sample):
        for name, examples in concepts.items():
            if len(examples) < 6 or examples.shape[1:] != sample.inputs.shape[1:]:
                raise InputError(f"concept '{name}' has {len(examples)} examples, or not of the inputs' shape")
            if not bool(torch.isfinite(examples).all()):
                raise InputError(f"concept '{name}' has examples that are not finite")

    def explain(self, sample):
        self.check(self.concepts, sample)
        seen = yield Look(at=sample, activations=["auto"], gradients=["auto"])
        sets = [*self.concepts.values(), *(self.random[place :: self.n_random] for place in range(self.n_random))]
        every = yield Look(at=alike(torch.cat(sets), sample), activations=["auto"])
        means = [part.mean(dim=0) for part in every.activations["auto"].flatten(1).split([len(one) for one in sets])]
        slopes = seen.gradients["auto"].flatten(1).double()
        if not bool(torch.isfinite(slopes).all()):
            raise InputError("the scores' gradients are not finite")
        mine, theirs = (torch.stack(part).double() for part in (means[: -self.n_random], means[-self.n_random :]))
        vectors = mine[:, None] - theirs  # (concepts, sets, d)
        null = (theirs - theirs.mean(dim=0)) * self.n_random / (self.n_random - 1)
        columns = [[], [], []]
        classes = seen.classes if seen.classes is not None else torch.zeros(len(slopes))
        for one in dict.fromkeys(classes.tolist()):
            steep = slopes[(classes == one).to(slopes.device)]
            along = self.along(vectors) @ steep.T
            columns[0].append((along > 0).double().mean(dim=(1, 2)))
            columns[1].append(along.mean(dim=(1, 2)))
            columns[2].append(self.p_values(along.mean(dim=2), null @ steep.mean(dim=0)))
        return self.answer(*(torch.stack(column).to(sample.inputs.dtype) for column in columns))

    def along(self, vectors):
        return vectors

    def p_values(self, effects, null):
        from scipy.stats import t

        count = len(null)
        far = (effects.mean(dim=1) - null.mean()) / (null.std() * (1 + 1 / count) ** 0.5)
        return torch.from_numpy(2 * t.sf(far.abs().numpy(), count - 1)) * len(effects)

    def answer(self, values, magnitudes, p_values):
        p_values = p_values.clamp(max=1)
        return Concepts(
            values,
            tuple(self.concepts),
            over="auto",
            magnitudes=magnitudes,
            p_values=p_values,
            significant=p_values < self.alpha,
        )


def halves(image):
    """An image's columns, in two segments."""
    return (torch.arange(image.shape[-1]) >= image.shape[-1] // 2).long().expand(image.shape[-2:])


@correct
@dataclass(frozen=True, eq=False)
class Parts(Explainer):
    """Clusters of parts, each by whether scores rise towards it."""

    segments: Any = halves
    n_clusters: Annotated[int, Ge(1)] = 2

    record: ClassVar[Any] = Directions.record

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["auto"])
        if self.segments(sample.inputs[0]).shape != sample.inputs.shape[2:]:
            raise InputError("the segments do not fit the image")
        patches = torch.stack([image * mask for image in sample.inputs for mask in self.masks(self.segments(image))])
        there = yield Look(at=alike(patches, sample), activations=["auto"])
        points = there.maps("auto").double().mean(dim=(2, 3))
        which = self.clustered(points)
        slopes = seen.map_gradients("auto").double().sum(dim=(2, 3))
        classes = seen.classes if seen.classes is not None else torch.zeros(len(slopes))
        towards = torch.stack([points[which == one].mean(dim=0) for one in range(self.n_clusters)]) - points.mean(dim=0)
        rows = [(slopes[(classes == one).to(slopes.device)] @ towards.T).mean(dim=0)
                for one in dict.fromkeys(classes.tolist())]  # fmt: skip
        shown = tuple(patches[which == one][:10] for one in range(self.n_clusters))
        return self.answer(torch.stack(rows).to(sample.inputs.dtype), shown)

    def masks(self, labels):
        names = labels.unique()
        if not bool((names >= 0).any()):
            raise InputError("the segments cover nothing")
        return labels == names[names >= 0][:, None, None]

    def clustered(self, points):
        from sklearn.cluster import KMeans

        made = KMeans(self.n_clusters, n_init=4, random_state=0).fit(points.cpu().numpy())
        return torch.from_numpy(made.labels_).long()

    def answer(self, values, shown):
        names = tuple(f"part {place}" for place in range(len(shown)))
        return Concepts(values, names, over="auto", patches=shown)


@correct
@dataclass(frozen=True, eq=False)
class WrongLabels(Evaluator):
    """By how much the self-influence of wrong labels is the greater one."""

    wrong: Any = field(default_factory=lambda: torch.arange(10) > 6)

    record: ClassVar[Any] = {
        "explains": "explanation",
        "uses": (),
        "tags": {"image", "training_data", "across_examples"},
    }
    better: ClassVar[str] = "higher"

    def evaluate(self, sample, explanation):
        own = explanation.self_influence.double()
        return Scores.single(
            metric="wrong", values=own[self.wrong].mean() - own[~self.wrong].mean(), better=self.better
        )


@correct
@dataclass(frozen=True, eq=False)
class NearestLabels(Evaluator):
    """Whether the nearest prototype has another label."""

    data: Any = field(default_factory=noise)
    data_labels: Any = field(default_factory=lambda: torch.arange(12) % 4)
    labels: Any = field(default_factory=lambda: torch.tensor([1, 3, 0]))

    record: ClassVar[Any] = {
        "explains": "explanation",
        "uses": (),
        "tags": {"image", "exemplars", "across_examples", "class_agnostic"},
        "better": "lower",
    }
    better: ClassVar[str] = "lower"

    def evaluate(self, sample, explanation):
        chosen = explanation.of("prototype")[0]
        points, prototypes = sample.inputs.flatten(1), self.data[chosen].flatten(1).to(sample.inputs)
        near = (points[:, None] - prototypes).norm(dim=2).argmin(dim=1).cpu()
        wrong = (self.data_labels[chosen][near] != self.labels).double()
        return Scores.single(metric="nearest", values=wrong, better=self.better)
