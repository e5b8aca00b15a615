"""Planted truth: a glyph decides the class beside a distractor of equal energy, and the explanation must know which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.results import Attribution, Explanation
from pellucid.testing.case import Case
from pellucid.testing.laws import CONTROL, DECIDING, FAITHFUL, ON_IMAGES, Group, require

planted_check = Group("Planted truth")

CELL, GRID = 8, 4
FLOOR = 0.7
"""The least share of the relevance in both cells that must lie on the glyph; chance is 0.5."""
CEILING = 0.6
"""The most that a control may reach."""

GLYPHS = (
    (".#.#....", ".#....#.", "#......#", "##.#....", ".#..#...", "#.....#.", ".#......", ".#....#."),
    (".....#.#", "....#...", "...#....", "#.##...#", "#.....##", "#....#..", "........", ".#.#.#.."),
    ("..#.....", "........", "#.##....", "....#..#", "....#...", "##..####", "###.....", "........"),
    ("....##.#", "#.....#.", "..#..#..", ".#......", "#.......", "..#..##.", "##......", "...#..#."),
)
DISTRACTORS = (
    ("#..#.#..", ".#.#.#..", ".#......", ".#.....#", "..#....#", ".#...#..", ".....#.#", "......#."),
    ("..##....", "...#.#..", "..#..#..", ".#..##..", ".....#..", "..#...##", "#.......", ".##....."),
)
"""Sixteen pixels each. Random patterns, chosen so that none resembles another, or itself, at any shift: the greatest
correlation is a quarter of a pattern's with itself."""

PLACES = ((0, 2), (0, 3), (1, 3), (2, 0), (3, 0), (3, 1))
"""Cells off the diagonal; the distractor stands where a transposed map would show the glyph."""


def drawn(rows: tuple[str, ...]) -> Tensor:
    """A pattern of hash marks as zeros and ones."""
    return torch.tensor([[float(mark == "#") for mark in row] for row in rows])


@dataclass(frozen=True, eq=False)
class Planted:
    """Images (B, 3, 32, 32), their classes, and the cells (row, column) of glyph and distractor.

    Attributes:
        images: what the model sees.
        classes: (B,) which glyph is in each image.
        glyphs: (B, 32, 32) where it is.
        distractors: (B, 32, 32) where the distractor is.
    """

    images: Tensor
    classes: Tensor
    glyphs: Tensor
    distractors: Tensor

    def without(self, cells: Tensor) -> Tensor:
        """The images with some cells emptied."""
        return self.images * ~cells[:, None]


class GlyphNet(nn.Module):
    """A network that finds each glyph by its template: correlation, threshold, square, pooling and a linear head.

    It sees the distractors as well as the glyphs, in channels of their own, and gives them no weight.
    """

    def __init__(self) -> None:
        super().__init__()
        shapes = torch.stack([drawn(rows) for rows in (*GLYPHS, *DISTRACTORS)])
        templates = shapes - shapes.mean(dim=(1, 2), keepdim=True)
        templates = templates / templates.flatten(1).norm(dim=1)[:, None, None]
        peak = float((templates * shapes).sum(dim=(1, 2)).amin())
        self.find = nn.Conv2d(3, len(shapes), CELL, padding=CELL // 2)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(12, stride=4, padding=4)
        self.head = nn.Linear(len(shapes), len(GLYPHS))
        with torch.no_grad():
            self.find.weight.copy_(templates[:, None].expand(-1, 3, -1, -1) / 3)
            assert self.find.bias is not None
            self.find.bias.fill_(-0.5 * peak)
            self.head.weight.zero_()
            self.head.weight[:, : len(GLYPHS)] = 2500 * torch.eye(len(GLYPHS))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4) of images (B, 3, 32, 32)."""
        maps = self.pool(self.relu(self.find(images)) ** 2)
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


def planted(generator: torch.Generator, n: int = 4, rivals: bool = False) -> Planted:
    """Makes images with a glyph and a distractor of as many pixels, or, for `rivals`, another class's glyph."""
    classes = torch.arange(n) % len(GLYPHS)
    shapes, others = ([drawn(rows) for rows in kind] for kind in (GLYPHS, DISTRACTORS))
    side = GRID * CELL
    images = 0.05 * torch.randn(n, 1, side, side, generator=generator)
    cells = torch.zeros(2, n, side, side, dtype=torch.bool)
    for index in range(n):
        kind = int(classes[index])
        rival = (kind + 1 + int(torch.randint(len(shapes) - 1, (), generator=generator))) % len(shapes)
        other = shapes[rival] if rivals else others[int(torch.randint(len(others), (), generator=generator))]
        row, column = PLACES[int(torch.randint(len(PLACES), (), generator=generator))]
        for which, (shape, top, left) in enumerate(((shapes[kind], row, column), (other, column, row))):
            here = (slice(top * CELL, (top + 1) * CELL), slice(left * CELL, (left + 1) * CELL))
            images[index, 0][here] += shape
            cells[which, index][here] = True
    return Planted(images.expand(-1, 3, -1, -1).contiguous(), classes, cells[0], cells[1])


def verify(model: nn.Module, truth: Planted) -> None:
    """Fails unless the glyph is the cause of the decision and the distractor is not, by taking each away."""

    def accuracy(images: Tensor) -> float:
        with torch.no_grad():
            return float((model(images).argmax(dim=1) == truth.classes).double().mean())

    whole, no_distractor = accuracy(truth.images), accuracy(truth.without(truth.distractors))
    no_glyph = accuracy(truth.without(truth.glyphs))
    require(whole == no_distractor == 1, f"the kit's own model is right for {whole:.0%}, {no_distractor:.0%}")
    require(no_glyph <= 0.5, f"the kit's own model is right for {no_glyph:.0%} without the glyph")
    energy = [float((truth.images * cells[:, None]).square().sum()) for cells in (truth.glyphs, truth.distractors)]
    require(abs(energy[0] / energy[1] - 1) < 0.1, f"the kit's glyphs and distractors have the energies {energy}")


def share(result: Attribution, truth: Planted) -> float:
    """The mean share of the positive relevance in both cells that lies on the glyph; one half where there is none.

    Where the glyph's relevance is negative on balance, the surplus counts against it, so that a flipped sign is no
    truth. A plain gradient, which is a template of both signs, balances.
    """
    maps = result.heatmap((GRID * CELL, GRID * CELL)).double()
    ours, theirs = ((maps.relu() * cells).sum(dim=(1, 2)) for cells in (truth.glyphs, truth.distractors))
    surplus = -(maps * truth.glyphs).sum(dim=(1, 2)).clamp_max(0)
    total = ours + theirs + surplus
    return float(torch.where(total > 0, ours / total, 0.5).mean())


def _scored(case: Case, rivals: bool = False) -> float:
    truth = planted(case.generator("planted"), rivals=rivals)
    model = GlyphNet().eval()
    if not rivals:
        verify(model, truth)
    result = case.run(model, truth.images, truth.classes)
    if not isinstance(result, Attribution) or result.values.dim() < 3:
        case.skip("this instance's values have no place on the image")
    assert isinstance(result, Attribution)
    return share(result, truth)


@planted_check("finds the glyph that decides, not the distractor of equal energy", DECIDING, ON_IMAGES)
def finds_the_glyph(case: Case) -> None:
    """Verified first: without the glyph the class is lost, without the distractor it is not."""
    found = _scored(case)
    require(found >= FLOOR, f"{found:.2f} of the relevance lies on the glyph; expected {FLOOR} (chance: 0.5)")


@planted_check("finds the glyph of the class that is asked, not another class's", DECIDING, ON_IMAGES)
def finds_the_class(case: Case) -> None:
    """Two glyphs in one image: each is the truth for its own class."""
    found = _scored(case, rivals=True)
    require(found >= FLOOR, f"{found:.2f} of the relevance lies on the asked class; expected {FLOOR} (chance: 0.5)")


@planted_check("knows nothing of the planted glyph", CONTROL, ON_IMAGES)
def control(case: Case) -> None:
    """Or it were no control."""
    found = _scored(case)
    require(found <= CEILING, f"{found:.2f} of the control's relevance lies on the glyph; expected {CEILING} at most")


@planted_check("prefers the planted truth to chance and to its reverse", FAITHFUL, ON_IMAGES, kinds={"evaluator"})
def evaluators(case: Case) -> None:
    """In the direction that `better` says."""
    truth = planted(case.generator("planted"))
    model = GlyphNet().eval()
    verify(model, truth)
    noise = torch.rand(truth.images.shape, generator=case.generator("chance"))
    good = truth.glyphs[:, None] + 0.1 * noise
    given = {name: Attribution(values) for name, values in (("good", good), ("chance", noise), ("reverse", -good))}
    require_preferred(case, model, truth.images, truth.classes, given)


def require_preferred(
    case: Case,
    model: nn.Module,
    inputs: Tensor,
    target: Any,
    given: Mapping[str, Explanation],
    technique: Any = None,
) -> None:
    """Fails unless an evaluator gives the first of some explanations the best score."""
    from pellucid.api import evaluate

    technique = case.technique if technique is None else technique
    scores = evaluate(model, inputs, dict(given), technique, target, controls=False, seed=case.seed)
    mean = {row.explanation: float(values.mean()) for row, values in zip(scores.rows, scores.values, strict=True)}
    better = scores.rows[0].better
    good, *others = given
    for worse in others:
        require(
            mean[good] > mean[worse] if better == "higher" else mean[good] < mean[worse],
            f"better='{better}', but the truth scores {mean[good]:.3g}, {worse} {mean[worse]:.3g}",
        )
