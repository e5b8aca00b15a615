"""Projectors: maps of many dimensions in a few."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The projection family."""
    yield Technique(
        "pca",
        kind="projector",
        summary="Places states on the few orthogonal axes along which they vary most.",
        target="pellucid_projection.pca:PCA",
        explains="data",
        output="projection",
        tags={"linear", "deterministic"},
        reference="Pearson, 1901",
    )
