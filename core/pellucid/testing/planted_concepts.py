"""Planted truth for concepts: those that a network uses, those that it sees and passes over, and chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pellucid.results import Concepts
from pellucid.testing.case import Case
from pellucid.testing.laws import Condition, Group, require, require_refused
from pellucid.testing.planted import CELL, DISTRACTORS, GLYPHS, GRID, PLACES, GlyphNet, drawn

planted_check = Group("Planted truth")
bad_input_check = Group("Bad input")

GIVEN = Condition(
    "that answer with how much the concepts count that they are given as `concepts`, beside sets `random`",
    lambda s: s.output == "concepts" and {"concepts", "random"} <= set(s.parameters),
)
FOUND = Condition(
    "that answer with concepts which they find themselves in parts of images, as a function `segments` cuts them",
    lambda s: s.output == "concepts" and "concepts" not in s.parameters and "segments" in s.parameters,
)

MEMBERS, SETS = 40, 12
ALPHA = 0.01
CHANCE = 6
"""How many random concepts are asked about at once; of them at most one may be significant."""
PHOTOS = 12
"""How many images the parts are found in."""


def scenes(n: int, generator: torch.Generator, certain: int | None = None) -> Tensor:
    """Images (n, 3, 32, 32) that show each glyph and distractor, in a cell of its own, or not: each in one of five.

    Args:
        n: how many.
        generator: what they depend on.
        certain: the shape that all of them show, if any.
    """
    shapes = [drawn(rows) for rows in (*GLYPHS, *DISTRACTORS)]
    images = 0.05 * torch.randn(n, 1, GRID * CELL, GRID * CELL, generator=generator)
    shown = torch.rand(n, len(shapes), generator=generator) < 0.2
    if certain is not None:
        shown[:, certain] = True
    for image, here in zip(images, shown, strict=True):
        for kind in here.nonzero().flatten().tolist():
            top, left = CELL * PLACES[kind][0], CELL * PLACES[kind][1]
            image[0, top : top + CELL, left : left + CELL] += shapes[kind]
    return images.expand(-1, 3, -1, -1).contiguous()


def rivalling() -> GlyphNet:
    """A network in which the glyph of class 0 speaks against class 1, and the other way round."""
    model = GlyphNet().eval()
    with torch.no_grad():
        model.head.weight[0, 1] = model.head.weight[1, 0] = -model.head.weight[0, 0]
    return model


def verify(model: nn.Module, images: list[Tensor], target: int) -> None:
    """Fails unless the target's score is greater with the first set's glyph, less with the second's, else the same."""
    with torch.no_grad():
        helped, opposed, unused, any_ = (float(model(one)[:, target].mean()) for one in images)
    told = f"the kit's own model gives {helped:.2f}, {opposed:.2f}, {unused:.2f} for the concepts, {any_:.2f} for any"
    require(helped > max(unused, any_) and opposed < min(unused, any_), told)


@planted_check("tells concepts that speak for and against the class from one that the network passes over", GIVEN)
def planted(case: Case) -> None:
    """A glyph of the class, one of another class, and a distractor, verified by the scores of images that show them."""
    generator = case.generator("concepts")
    model = rivalling()
    # Not in the order of the alphabet, nor of their scores.
    kinds = {"passed over": len(GLYPHS), "own": 0, "another's": 1}
    concepts = {name: scenes(MEMBERS, generator, kind) for name, kind in kinds.items()}
    pool = scenes(MEMBERS * SETS, generator)
    for target, own, other in ((0, "own", "another's"), (1, "another's", "own")):
        verify(model, [scenes(200, generator, one) for one in (kinds[own], kinds[other], len(GLYPHS), None)], target)
        result = _scored(case, model, concepts, pool, target)
        place = {name: result.names.index(name) for name in concepts}
        for what, part, strict in (("score", result.values, False), ("magnitude", result.magnitudes, True)):
            if part is None:
                continue
            ours, theirs, unused = (float(part[0, place[name]]) for name in (own, other, "passed over"))
            ordered = ours > unused > theirs if strict else ours >= unused >= theirs and ours > theirs
            require(
                ordered,
                f"class {target}: the {what} of the concept that raises it is {ours:.3g}, of the one that lowers it "
                f"{theirs:.3g}, of one that it passes over {unused:.3g}; expected them to be above, below and between. "
                "A concept's vector leads from other examples to its own",
            )
        if result.significant is not None:
            found = {name: bool(result.significant[0, place[name]]) for name in concepts}
            expected = {own: True, other: True, "passed over": False}
            require(
                found == expected,
                f"class {target}: significant are {sorted(n for n in found if found[n])}; expected "
                f"{sorted(n for n in expected if expected[n])}, at the level {ALPHA}",
            )


@planted_check("does not take random concepts for significant", GIVEN)
def chance(case: Case) -> None:
    """Of six concepts that are random sets themselves, at most one."""
    generator = case.generator("chance")
    concepts = {f"chance {place}": scenes(MEMBERS, generator) for place in range(CHANCE)}
    result = _scored(case, rivalling(), concepts, scenes(MEMBERS * SETS, generator), 0)
    if result.significant is None:
        case.skip("this instance says nothing of significance")
    assert result.significant is not None
    count = int(result.significant.sum())
    require(
        count <= 1,
        f"{count} of {CHANCE} random concepts are significant; expected one at most, at the level {ALPHA} of each "
        "result. Runs that share a concept's examples are no independent draws",
    )


def _scored(case: Case, model: nn.Module, concepts: dict[str, Tensor], pool: Tensor, target: int) -> Concepts:
    technique = case.given(concepts=concepts, random=pool, n_random=SETS, layers=("auto",), layer="auto", alpha=ALPHA)
    images = scenes(PHOTOS, case.generator("examples"))
    result = case.run(model, images, target, technique)
    assert isinstance(result, Concepts)
    require(
        set(result.names) == set(concepts) and len(result) == 1,
        f"the result has {len(result)} rows and the concepts {list(result.names)}; expected one row, for the one class "
        f"that was asked, and {list(concepts)}",
    )
    return result


@bad_input_check("refuses concepts of a few examples or of another shape", GIVEN, once=True)
def bad_concepts(case: Case) -> None:
    """No line is worth anything that two examples decide."""
    images = scenes(MEMBERS, case.generator("few"))
    for what, concept in (
        ("a concept of two examples", images[:2]),
        ("a concept of images of another size", images[..., :-1]),
        ("a concept with values that are not finite", torch.where(images == images.max(), torch.nan, images)),
    ):
        _require_refused(case, what, concept, images)


@bad_input_check("refuses segments that cover nothing or do not fit the image", FOUND, once=True)
def bad_segments(case: Case) -> None:
    """A negative label is no segment."""
    images = scenes(PHOTOS, case.generator("uncut"))
    for what, labels in (
        ("segments that cover nothing", cells(images[0]) * 0 - 1),
        ("a map of another size", cells(images[0])[1:]),
    ):
        technique = case.given(random=images.repeat(SETS, 1, 1, 1), n_random=SETS, segments=lambda _, made=labels: made)
        _require_uncut(case, what, images, technique)


def _require_refused(case: Case, what: str, concept: Tensor, images: Tensor) -> None:
    pool = images.repeat(SETS, 1, 1, 1)
    require_refused(what, lambda: _scored(case, rivalling(), {"one": concept}, pool, 0))


def _require_uncut(case: Case, what: str, images: Tensor, technique: Any) -> None:
    require_refused(what, lambda: case.run(rivalling(), images, 0, technique))


@planted_check("finds the part that images of a class share, whichever segment it is", FOUND)
def parts(case: Case) -> None:
    """The glyph, cut out as the first and as the last of sixteen segments, scores best and is shown."""
    shape = drawn(GLYPHS[0])
    model = rivalling()
    for cell, which in ((0, "first"), (GRID**2 - 1, "last")):
        generator = case.generator(f"parts {cell}")
        images = 0.05 * torch.randn(PHOTOS, 1, GRID * CELL, GRID * CELL, generator=generator)
        top, left = CELL * (cell // GRID), CELL * (cell % GRID)
        images[:, 0, top : top + CELL, left : left + CELL] += shape
        images = images.expand(-1, 3, -1, -1).contiguous()
        pool = scenes(PHOTOS * SETS, generator)
        technique = case.given(random=pool, n_random=SETS, segments=cells, resized=False, n_clusters=2, alpha=ALPHA)
        result = case.run(model, images, 0, technique)
        assert isinstance(result, Concepts)
        if result.patches is None:
            case.skip("this instance does not show its concepts")
        assert result.patches is not None
        with torch.no_grad():
            whole = float(model(images)[:, 0].mean())
            shown = [float(model(patches.to(images))[:, 0].mean()) / whole for patches in result.patches]
        places = [place for place, share in enumerate(shown) if share > 0.5]
        require(
            places,
            f"no concept shows the glyph that all images have in the {which} segment: their patches have "
            f"{[round(share, 2) for share in shown]} of the images' score; expected one of more than .5. Every label "
            "of 0 or more is a segment",
        )
        scores = result.values[0].tolist()
        require(
            max(scores[place] for place in places) >= max(scores) and max(scores) > min(0.5, *scores),
            f"the concepts that show the glyph score {[scores[place] for place in places]} of "
            f"{[round(score, 3) for score in scores]}; expected the greatest score of all",
        )
        if result.significant is not None:
            told = f"no concept that shows the glyph is significant at the level {ALPHA}; expected one"
            require(any(bool(result.significant[0, place]) for place in places), told)


def cells(image: Tensor) -> Tensor:
    """Sixteen square segments of an image (C, 32, 32), from 0 to 15, as a map (32, 32)."""
    rows = torch.arange(image.shape[-2]) // CELL
    columns = torch.arange(image.shape[-1]) // CELL
    return rows[:, None] * GRID + columns
