"""Controls: maps that know nothing of the model, for every score to be held against."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The family's table of contents."""
    yield Technique(
        "random",
        kind="explainer",
        summary="Uniform noise, the same for every example.",
        target="pellucid_controls.random:Random",
        explains="nothing",
        output="attribution",
        tags={"control", "class_agnostic", "stochastic"},
    )
    yield Technique(
        "constant",
        kind="explainer",
        summary="One everywhere.",
        target="pellucid_controls.constant:Constant",
        explains="nothing",
        output="attribution",
        tags={"control", "class_agnostic"},
    )
    yield Technique(
        "input_magnitude",
        kind="explainer",
        summary="How far each input is from a baseline.",
        target="pellucid_controls.input_magnitude:InputMagnitude",
        explains="data",
        output="attribution",
        tags={"control", "class_agnostic"},
    )
    yield Technique(
        "edge_filter",
        kind="explainer",
        summary="The image's edges: the size of its Sobel gradient.",
        target="pellucid_controls.edge_filter:EdgeFilter",
        explains="data",
        output="attribution",
        tags={"control", "class_agnostic", "image"},
        reference="Adebayo et al., 2018",
    )
