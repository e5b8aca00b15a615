"""ACE: the parts that images of a class share, found and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor

from pellucid import Blocks, Check, Concepts, Explainer, InputError, Look, Passes, Sample, Unsuitable
from pellucid_concepts.reading import FEWEST, FEWEST_SETS, Reading, random_sets, shown, slopes
from pellucid_concepts.scoring import Classes, answer, column
from pellucid_concepts.segments import Cutter, Segment
from pellucid_concepts.vectors import Activations, Classifier

SHOWN = 10
"""How many patches of each concept the result keeps."""


@dataclass(frozen=True, eq=False)
class ACE(Explainer):
    """Finds the parts that images of a class share, and how much each counts for the class.

    The sample holds images of the class, about 50. Each is cut into segments at several resolutions; each segment is
    shown to the model alone, surrounded by grey and as large as the image. The activations, averaged over positions,
    are put into clusters by k-means; a cluster is a concept when it is common: it has segments of more than half of the
    images, or of more than a quarter and more segments than there are images, or twice as many segments as images.
    The segments nearest to its centre then stand for it in TCAV (see `tcav`) with pooled activations.

    The concepts are named by the order of their scores for the first class; `.patches` show each by the segments
    nearest to its centre, `.masks` say where in each image it is, for `smallest_sufficient_concepts`.

    Ghorbani et al., 2019, "Towards automatic concept-based explanations". The random sets are patches too, one of each
    random image, where the paper takes whole images: else what tells a concept from them is first of all that it is a
    patch. The significance is that of `tcav`. The paper's code leaves out the last segment of each map.

    Attributes:
        random: images (m, C, H, W) of anything, dealt out to `n_random` sets, or a list of sets; better 50 in each.
        layer: whose activations are compared and scored.
        n_random: how many random sets are made of one tensor.
        segments: "slic", or a function of one image (C, H, W) that gives a map (H, W) of whole numbers, or several; a
            negative number belongs to no segment.
        resolutions: about how many segments SLIC makes.
        resized: whether a part is shown as large as the image, for models that know things of any size, rather than
            where and as large as it is.
        n_clusters: how many clusters are made, before those that are not common are left out.
        n_nearest: the most segments of a concept that TCAV is given.
        classifier: as for `tcav`.
        penalty: as for `tcav`.
        alpha: the level of `.significant`.
        folder: where the patches' activations are kept, as for `tcav`.
    """

    random: Any
    layer: str = "auto"
    n_random: Annotated[int, Ge(FEWEST_SETS)] = 20
    segments: Literal["slic"] | Callable[[Tensor], Any] = "slic"
    resolutions: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (15, 50, 80)
    resized: bool = True
    n_clusters: Annotated[int, Ge(1)] = 25
    n_nearest: Annotated[int, Ge(FEWEST)] = 40
    classifier: Classifier = "logistic"
    penalty: Annotated[float, Gt(0)] = 0.01
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.01
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        random_sets(self.random, self.n_random)

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Noise, cut by SLIC and into columns."""
        noise = torch.randn(42, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return [
            cls(random=noise, n_random=7, resolutions=(9, 20), n_clusters=3),
            cls(random=list(torch.split(noise, 7)), segments=_columns, resized=False, n_clusters=2, classifier="ridge"),
        ]

    def explain(self, sample: Sample) -> Passes[Concepts]:
        """A forward and a backward pass of the sample, one forward pass of each segment and each random image."""
        if not isinstance(sample.inputs, Tensor):
            raise Unsuitable("ace is for models of one input, a photo; these inputs have several")
        seen = yield Look(at=sample, activations=[self.layer], gradients=[self.layer], digest=self.folder is not None)
        reading = Reading(sample, [self.layer], True, Blocks(self.folder), seen.digest)
        cutter = self._cutter(sample.inputs, sample)
        segments = [segment for image in range(len(sample)) for segment in cutter.segments(image)]
        if len(segments) < self.n_clusters:
            raise InputError(
                f"{len(segments)} segments are fewer than the {self.n_clusters} clusters; give more images"
            )
        (features,) = yield from reading.of(len(segments), lambda a, b: cutter.patches(segments[a:b]))
        random = yield from self._random(sample, reading)
        clusters, members = self._clusters(features, segments, sample)
        steep, classes = slopes(seen, self.layer, True), Classes.of(seen)
        at = Activations([features[one] for one in clusters], random, steep, self.penalty, self.classifier)
        columns = [column("", at, place, classes) for place in range(len(clusters))]
        order = sorted(range(len(columns)), key=lambda place: -float(columns[place].statistics["values"][0]))
        shown = [cutter.patches([segments[one] for one in clusters[place][:SHOWN]]).cpu() for place in order]
        named = [replace(columns[place], name=f"concept {rank}") for rank, place in enumerate(order, start=1)]
        masks = torch.stack([cutter.covered([segments[one] for one in members[place]]) for place in order], dim=1)
        found = answer(named, classes, self.alpha, steep, over=self.layer, patches=tuple(shown), masks=masks)
        counts = f"{len(clusters)} of {self.n_clusters} clusters of {len(segments)} segments are common"
        return replace(found, checks=[*found.checks, Check.info("common clusters", len(clusters), counts)])

    def _cutter(self, photos: Tensor, sample: Sample) -> Cutter:
        return Cutter.of(photos, sample, self.segments, self.resolutions, self.resized)

    def _random(self, sample: Sample, reading: Reading) -> Passes[list[Tensor]]:
        """The features of the random sets: of one patch of each of their images."""
        sets = random_sets(self.random, self.n_random)
        named = {f"the examples of random set {place}": one for place, one in enumerate(sets)}
        counts = [one.count for one in sets]
        cutter = self._cutter(shown(sample, named)(0, sum(counts)), sample)
        generator = sample.generator("random patches")
        segments = [cutter.one_of(image, generator) for image in range(len(cutter.photos))]
        (features,) = yield from reading.of(len(segments), lambda a, b: cutter.patches(segments[a:b]))
        return list(torch.split(features, counts))

    def _clusters(
        self, features: Tensor, segments: Sequence[Segment], sample: Sample
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Of each common cluster the segments that are nearest to its centre, the nearest first; and all of them."""
        from sklearn.cluster import KMeans

        seed = int(torch.randint(2**31 - 1, (), generator=sample.generator("clusters")))
        points = features.double().cpu().numpy()
        found = KMeans(self.n_clusters, n_init=10, random_state=seed).fit(points)
        distances = torch.from_numpy(found.transform(points))
        labels, images = torch.from_numpy(found.labels_).long(), torch.tensor([one.image for one in segments])
        kept, every = [], []
        for cluster in range(self.n_clusters):
            members = (labels == cluster).nonzero().flatten()
            if len(members) >= FEWEST and common(images[members], len(sample)):
                nearest = distances[members, cluster].argsort(stable=True)
                kept.append(members[nearest][: self.n_nearest].tolist())
                every.append(members.tolist())
        if not kept:
            raise InputError(
                f"none of {self.n_clusters} clusters of {len(segments)} segments is common to {len(sample)} images; "
                "give more images of one class, or fewer clusters"
            )
        return kept, every


def common(images: Tensor, n: int) -> bool:
    """Whether a cluster with segments of these images, of n in all, is common by one of the paper's three rules."""
    frequency = len(torch.unique(images)) / n
    return frequency > 0.5 or (frequency > 0.25 and len(images) > n) or len(images) > 2 * n


def _columns(photo: Tensor) -> Tensor:
    """Stripes of three pixels."""
    return (torch.arange(photo.shape[2]) // 3).expand(photo.shape[1:])
