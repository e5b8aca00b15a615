"""What a network has inside: its features, looked at as they are."""

from __future__ import annotations

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The techniques of this family."""
    yield Technique(
        "activations",
        kind="explainer",
        summary="Gives a layer's activations as they are, for maps, clusters and pipelines.",
        target="pellucid_features.activations:Activations",
        explains="representation",
        output="attribution",
        uses={"activations"},
        tags={"class_agnostic", "features"},
    )
