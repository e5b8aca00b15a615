"""Concepts: which notions of people, or parts found in images, a network uses for a class."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The family of concepts."""
    yield Technique(
        "tcav",
        title="TCAV",
        kind="explainer",
        summary="How much concepts, given as sets of examples, count for a class, against random sets.",
        target="pellucid_concepts.tcav:TCAV",
        explains="model",
        output="concepts",
        uses={"activations", "gradients"},
        tags={"image", "across_examples"},
        reference="Kim et al., 2018",
    )
    yield Technique(
        "ace",
        title="ACE",
        kind="explainer",
        summary="Finds the parts that images of a class share, and how much each counts for the class.",
        target="pellucid_concepts.ace:ACE",
        explains="model",
        output="concepts",
        uses={"activations", "gradients"},
        tags={"image", "across_examples", "stochastic"},
        reference="Ghorbani et al., 2019",
    )
    yield Technique(
        "concept_control",
        kind="explainer",
        summary="A control for concepts: the same ones, with random scores.",
        target="pellucid_concepts.concept_control:ConceptControl",
        explains="nothing",
        output="concepts",
        tags={"image", "class_agnostic", "stochastic", "across_examples"},
    )
