"""Evaluators: how far an explanation can be believed."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The evaluation family."""
    yield Technique(
        "pixel_flipping",
        kind="evaluator",
        summary="Hides regions in the order of the explanation and measures how fast the score falls (AOPC).",
        target="pellucid_evaluation.pixel_flipping:PixelFlipping",
        explains="explanation",
        output="scores",
        uses={"outputs"},
        tags={"image", "table", "signal", "faithfulness"},
        reference="Samek et al., 2017",
        better="higher",
    )
    yield Technique(
        "deletion",
        kind="evaluator",
        summary="The area under the probability while the most relevant regions are hidden one after the other.",
        target="pellucid_evaluation.presets:Deletion",
        explains="explanation",
        output="scores",
        uses={"outputs"},
        tags={"image", "table", "signal", "faithfulness"},
        reference="Petsiuk et al., 2018",
        better="lower",
    )
    yield Technique(
        "insertion",
        kind="evaluator",
        summary="The area under the probability while the most relevant regions are shown one after the other.",
        target="pellucid_evaluation.presets:Insertion",
        explains="explanation",
        output="scores",
        uses={"outputs"},
        tags={"image", "table", "signal", "faithfulness"},
        reference="Petsiuk et al., 2018",
        better="higher",
    )
