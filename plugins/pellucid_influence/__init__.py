"""Influence: which training examples made the model decide so."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The influence family."""
    yield Technique(
        "ntk_influence",
        title="NTK influence",
        kind="explainer",
        summary="The change of a query's score by one training step on each training example (tangent kernel).",
        target="pellucid_influence.ntk_influence:NTKInfluence",
        explains="data",
        output="influence",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data"},
        reference="Jacot et al., 2018; Engel et al., 2024",
    )
    yield Technique(
        "influence_functions",
        kind="explainer",
        summary="The change of a query's score when a training example is left out, by the damped curvature's inverse.",
        target="pellucid_influence.influence_functions:InfluenceFunctions",
        explains="data",
        output="influence",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data"},
        reference="Koh and Liang, 2017",
    )
    yield Technique(
        "trak",
        title="TRAK",
        kind="explainer",
        summary="Influence by a kernel machine of the margins' gradients, exact or projected, of one model or several.",
        target="pellucid_influence.trak:TRAK",
        explains="data",
        output="influence",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data"},
        reference="Park et al., 2023",
    )
    yield Technique(
        "tracin",
        title="TracIn",
        kind="explainer",
        summary="Sums the changes of a query's score by steps on each training example over checkpoints.",
        target="pellucid_influence.tracin:TracIn",
        explains="data",
        output="influence",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data"},
        reference="Pruthi et al., 2020",
    )
    yield Technique(
        "leave_one_out",
        kind="explainer",
        summary="The change of a query's score when the model is trained anew without each training example.",
        target="pellucid_influence.leave_one_out:LeaveOneOut",
        explains="data",
        output="influence",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data", "retrains", "stochastic"},
        reference="Cook, 1977",
    )
    yield Technique(
        "unrolled",
        kind="explainer",
        summary="The derivative of a query's score by each training example's weight, back through the training run.",
        target="pellucid_influence.unrolled:Unrolled",
        explains="data",
        output="influence",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data", "retrains"},
        reference="Ilyas and Engstrom, 2025",
    )
    yield Technique(
        "influence_control",
        kind="explainer",
        summary="A control for influences: likeness within the predicted class, loss alone, or noise.",
        target="pellucid_influence.influence_control:InfluenceControl",
        explains="data",
        output="influence",
        uses={"outputs"},
        tags={"image", "table", "signal", "training_data", "class_agnostic"},
    )
