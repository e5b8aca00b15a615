"""Projectors: maps of many dimensions in a few."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The projection family."""
    yield Technique(
        "pca",
        title="PCA",
        kind="projector",
        summary="Places states on the few orthogonal axes along which they vary most.",
        target="pellucid_projection.pca:PCA",
        explains="data",
        output="projection",
        tags={"linear", "deterministic"},
        reference="Pearson, 1901",
    )
    yield Technique(
        "in_pca",
        title="InPCA",
        kind="projector",
        summary="Places distributions, such as networks' predictions, by their Bhattacharyya distances.",
        target="pellucid_projection.in_pca:InPCA",
        explains="model",
        output="projection",
        tags={"deterministic", "function_space"},
        reference="Quinn et al., 2019",
    )
    yield Technique(
        "tsne",
        title="t-SNE",
        kind="projector",
        summary="Places states so that near ones stay near.",
        target="pellucid_projection.tsne:TSNE",
        explains="data",
        output="projection",
        tags={"deterministic"},
        reference="van der Maaten and Hinton, 2008",
    )
    yield Technique(
        "umap",
        title="UMAP",
        kind="projector",
        summary="Places states so that their graph of nearest neighbours is kept.",
        target="pellucid_projection.umap:UMAP",
        explains="data",
        output="projection",
        tags={"stochastic"},
        reference="McInnes et al., 2018",
    )
    yield Technique(
        "dynamic_tsne",
        title="dynamic t-SNE",
        kind="projector",
        summary="Places points through time so that neighbourhoods and each point's own trajectory are kept.",
        target="pellucid_projection.dynamic_tsne:DynamicTSNE",
        explains="data",
        output="projection",
        tags={"deterministic", "dynamics"},
        reference="Rauber et al., 2016, with a stress in place of their penalty",
    )
    yield Technique(
        "opentsne",
        title="openTSNE",
        kind="projector",
        summary="Places states so that near ones stay near, on a map that takes new states.",
        target="pellucid_projection.open_tsne:OpenTSNE",
        explains="data",
        output="projection",
        requires=("openTSNE",),
        extra="opentsne",
        tags={"deterministic"},
        reference="Poličar et al., 2019",
    )
    yield Technique(
        "pymde",
        title="PyMDE",
        kind="projector",
        summary="Places states so that neighbours are near and others are not, with the least average distortion.",
        target="pellucid_projection.mde:MDE",
        explains="data",
        output="projection",
        requires=("pymde",),
        extra="pymde",
        tags={"stochastic"},
        reference="Agrawal et al., 2021",
    )
    yield Technique(
        "m_phate",
        title="M-PHATE",
        kind="projector",
        summary="Places units through time by diffusion within each time and along each unit's own history.",
        target="pellucid_projection.m_phate:MPHATE",
        explains="data",
        output="projection",
        tags={"deterministic", "dynamics"},
        reference="Gigante et al., 2019",
    )
    yield Technique(
        "random_projection",
        kind="projector",
        summary="Places states on random directions, which a map must beat.",
        target="pellucid_projection.random_projection:RandomProjection",
        explains="data",
        output="projection",
        tags={"linear", "stochastic", "control"},
        reference="Johnson and Lindenstrauss, 1984",
    )
