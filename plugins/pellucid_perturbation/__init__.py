"""Explainers that change the input and watch the score: they need nothing of a model but its output."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The perturbation family."""
    yield Technique(
        "occlusion",
        kind="explainer",
        summary="Slides a window over the input and measures how much the score drops where it hides.",
        target="pellucid_perturbation.occlusion:Occlusion",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box"},
        reference="Zeiler & Fergus, 2014",
    )
    yield Technique(
        "feature_ablation",
        kind="explainer",
        summary="Hides one feature, or one group of features, at a time and measures how much the score drops.",
        target="pellucid_perturbation.feature_ablation:FeatureAblation",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box"},
        reference="Li et al., 2016",
    )
    yield Technique(
        "rise",
        title="RISE",
        kind="explainer",
        summary="Averages the score over random masks: how much it rises when a pixel is known to be shown.",
        target="pellucid_perturbation.rise:RISE",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box", "stochastic"},
        reference="Petsiuk et al., 2018",
    )
    yield Technique(
        "lime",
        title="LIME",
        kind="explainer",
        summary="Fits a linear model to the score of random coalitions of segments, those near the whole first.",
        target="pellucid_perturbation.lime:LIME",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box", "stochastic"},
        reference="Ribeiro et al., 2016",
    )
    yield Technique(
        "kernel_shap",
        title="Kernel SHAP",
        kind="explainer",
        summary="Shares out the score's rise by a linear model of random coalitions: Shapley values from few passes.",
        target="pellucid_perturbation.kernel_shap:KernelSHAP",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box", "stochastic"},
        reference="Lundberg & Lee, 2017",
    )
    yield Technique(
        "shapley_sampling",
        title="Shapley sampling",
        kind="explainer",
        summary="Shares out the score's rise by what each segment adds in random orders: Shapley values by sampling.",
        target="pellucid_perturbation.shapley_sampling:ShapleySampling",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box", "stochastic"},
        reference="Castro et al., 2009",
    )
    yield Technique(
        "exact_shapley",
        title="exact Shapley values",
        kind="explainer",
        summary="Shares out the score's rise by what each segment adds to every coalition: for at most 16 segments.",
        target="pellucid_perturbation.exact_shapley:ExactShapley",
        explains="decision",
        output="attribution",
        uses={"outputs"},
        tags={"image", "table", "signal", "black_box"},
        reference="Shapley, 1953",
    )
