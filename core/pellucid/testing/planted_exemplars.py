"""Planted truth for chosen examples: copies of the query, clusters with an outlier, and a unit's own glyph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.results import Exemplars
from pellucid.testing.case import TARGETS, Case
from pellucid.testing.laws import LAYERED, Condition, Group, require, require_refused
from pellucid.testing.planted import CELL, DISTRACTORS, GLYPHS, GRID, PLACES, GlyphNet, drawn, require_preferred

planted_check = Group("Planted truth")
bad_input_check = Group("Bad input")

OF_QUERIES = Condition(
    "that answer with exemplars of a training set `train` for each example",
    lambda s: s.output == "exemplars" and "across_examples" not in s.tags and "train" in s.parameters,
)
OF_DATA = Condition(
    "that answer with as many prototypes of the examples as `n_prototypes` says",
    lambda s: s.output == "exemplars" and "across_examples" in s.tags and "n_prototypes" in s.parameters,
)
OF_UNITS = Condition(
    "that answer with exemplars of a layer's units",
    lambda s: s.output == "exemplars" and "across_examples" in s.tags and "n_prototypes" not in s.parameters,
)
JUDGING = Condition(
    "tagged 'exemplars', with the data as `data`, their classes as `data_labels` and the inputs' as `labels`",
    lambda s: "exemplars" in s.tags and {"data", "data_labels", "labels"} <= set(s.parameters),
)
CHOOSING = Condition(
    "that answer with as many exemplars as `n_prototypes` says, or as `k` says of a training set `train`",
    lambda s: OF_DATA.holds(s) or (OF_QUERIES.holds(s) and "k" in s.parameters),
)

NOISES = (0.0, 0.01, 0.1)
"""How far the copies of a query are from it; others are ten times further and more."""
MEMBERS = 6
"""How many examples each cluster has."""
COVERED = 0.8
"""The least overlap, of intersection to union, of a crop with the glyph's cell."""


@planted_check("finds the copies of an input, the exact one first", OF_QUERIES)
def copies(case: Case) -> None:
    """Three copies, two of them with noise, among others; the nearest first and in the caller's order."""
    queries = case.inputs()
    count = len(NOISES) * len(TARGETS)
    noise = case.inputs(count, "noise").reshape(len(NOISES), *queries.shape)
    near = [queries + scale * one for scale, one in zip(NOISES, noise, strict=True)]
    train = torch.cat([case.inputs(12, "others"), *near])
    order = torch.randperm(len(train), generator=case.generator("order"))
    where = order.argsort()[-count:].reshape(len(NOISES), len(TARGETS))
    labels = torch.arange(len(train)) % 4
    result = case.run(inputs=queries, technique=case.given(train=(train[order], labels)))
    assert isinstance(result, Exemplars)
    for query in range(len(TARGETS)):
        expected = where[: result.indices.shape[1], query].tolist()
        found = result.indices[query, : len(expected)].tolist()
        require(
            found == expected,
            f"query {query}: the most similar training examples are {found}; expected {expected}: the query itself, "
            f"then its copies with noise of {NOISES[1]} and {NOISES[2]}, by their places in `train`",
        )


@dataclass(frozen=True, eq=False)
class Clusters:
    """Images (n, 3, 32, 32) of one glyph each, in a cell of its own, and one that is like no other.

    Attributes:
        images: in a random order.
        members: (n,) the cluster of each; the outlier has a number of its own, the greatest.
    """

    images: Tensor
    members: Tensor

    @property
    def outlier(self) -> int:
        """Its place."""
        return int(self.members.argmax())


def clusters(generator: torch.Generator) -> Clusters:
    """Four clusters of six images, those of the last all the same, and one image of a distractor in another cell."""
    kinds = len(GLYPHS)
    cells = [PLACES[place] for place in torch.randperm(len(PLACES), generator=generator).tolist()]
    members = torch.cat([torch.arange(kinds).repeat_interleave(MEMBERS), torch.tensor([kinds])])
    shapes = [drawn(rows) for rows in (*GLYPHS, DISTRACTORS[0])]
    images = 0.01 * torch.randn(len(members), 1, GRID * CELL, GRID * CELL, generator=generator)
    for image, member in zip(images, members.tolist(), strict=True):
        top, left = CELL * cells[member][0], CELL * cells[member][1]
        image[0, top : top + CELL, left : left + CELL] += shapes[member]
    images[members == kinds - 1] = images[members == kinds - 1][:1].clone()
    order = torch.randperm(len(members), generator=generator)
    return Clusters(images[order].expand(-1, 3, -1, -1).contiguous(), members[order])


@planted_check("gives each planted cluster a prototype, also where one is of duplicates", OF_DATA)
def prototypes(case: Case) -> None:
    """Four prototypes of four clusters, each of its own; and the outlier is the criticism, where it gives any."""
    given = clusters(case.generator("clusters"))
    kinds = len(GLYPHS)
    technique = case.given(n_prototypes=kinds, n_criticisms=1, labels=None, per_class=False)
    result = case.run(GlyphNet().eval(), given.images, 0, technique)
    assert isinstance(result, Exemplars)
    chosen = result.of("prototype")
    chosen = chosen[chosen >= 0]
    found = sorted(given.members[chosen].tolist())
    require(
        found == list(range(kinds)),
        f"the prototypes are of the clusters {found} (cluster {kinds} is a single outlier); expected one of each of "
        f"the {kinds} clusters, by their places in the sample",
    )
    if "criticism" in result.kinds:
        critic = [int(one) for one in result.of("criticism").flatten() if one >= 0]
        require(
            critic == [given.outlier],
            f"example {critic} is the criticism; expected {given.outlier}, which is like no prototype",
        )


@bad_input_check("refuses to choose more examples than there are", CHOOSING, once=True)
def too_many(case: Case) -> None:
    """Prototypes, or similar examples of a training set."""
    inputs = case.inputs()
    train = case.inputs(4, "others"), torch.arange(4)
    technique = case.given(n_prototypes=len(inputs) + 1, n_criticisms=0, labels=None)
    if not OF_DATA.holds(case.subject):
        require_refused("5 of 4 training examples", lambda: case.run(technique=case.given(train=train, k=5)))
        return
    require_refused("4 prototypes of 3 examples", lambda: case.run(inputs=inputs, technique=technique))


@planted_check("finds the examples that excite a planted unit, and where in them it is", OF_UNITS, LAYERED, once=True)
def units(case: Case) -> None:
    """Each unit is a glyph's template; its examples are those with the glyph, and its crops show the glyph's cell."""
    given = clusters(case.generator("clusters"))
    kinds = len(GLYPHS)
    noisy = given.images + 0.02 * torch.rand(given.images.shape, generator=case.generator("unequal"))
    technique = case.given(layer="relu", k=MEMBERS, channels=tuple(range(kinds)), directions=None)
    result = case.run(GlyphNet().eval(), noisy, 0, technique)
    assert isinstance(result, Exemplars)
    for unit in range(kinds):
        expected = (given.members == unit).nonzero().flatten().tolist()
        found = result.indices[unit, :MEMBERS].tolist()
        require(
            set(found) <= set(expected) and len(found) > 0,
            f"unit {unit} is excited most by the examples {sorted(found)}; expected some of {expected}, by their "
            "places in the sample",
        )
        if result.boxes is not None:
            require_boxes(result.boxes[unit, :MEMBERS], noisy[found[0]], unit)


def require_boxes(boxes: Tensor, image: Tensor, unit: int) -> None:
    """Fails unless the boxes (k, 4) are the cell of the image in which its glyph is."""
    cells = image[0].unfold(0, CELL, CELL).unfold(1, CELL, CELL)
    place = int(cells.square().sum(dim=(2, 3)).argmax())
    top, left = CELL * (place // GRID), CELL * (place % GRID)
    for box in boxes.tolist():
        height = max(0, min(box[2], top + CELL) - max(box[0], top))
        width = max(0, min(box[3], left + CELL) - max(box[1], left))
        union = CELL**2 + (box[2] - box[0]) * (box[3] - box[1]) - height * width
        require(
            height * width >= COVERED * union,
            f"unit {unit}: the box {box} (top, left, bottom, right) overlaps the glyph's cell "
            f"{[top, left, top + CELL, left + CELL]} by {height * width / union:.0%}; expected {COVERED:.0%} at least",
        )


@planted_check("prefers prototypes of every cluster to those of one", JUDGING, kinds={"evaluator"})
def evaluators(case: Case) -> None:
    """Of four clusters that are classes, one prototype each, or all of one class."""
    given = clusters(case.generator("clusters"))
    usual = given.members < len(GLYPHS)
    images, members = given.images[usual], given.members[usual]
    each = torch.stack([(members == kind).nonzero()[:, 0] for kind in range(len(GLYPHS))])
    weights = torch.ones(1, len(GLYPHS))
    explanations = {
        "good": Exemplars(weights, each[None, :, 0], kind="prototype"),
        "those of one cluster": Exemplars(weights, each[0, : len(GLYPHS)][None], kind="prototype"),
    }
    technique = case.given(data=images, data_labels=members, labels=members)
    require_preferred(case, GlyphNet().eval(), images, 0, explanations, technique)
