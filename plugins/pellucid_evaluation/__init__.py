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
    yield Technique(
        "linear_datamodeling_score",
        kind="evaluator",
        summary="Whether sums of influences foretell what models trained on parts of the data answer (LDS).",
        target="pellucid_evaluation.linear_datamodeling_score:LinearDatamodelingScore",
        explains="explanation",
        output="scores",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data", "retrains"},
        reference="Park et al., 2023",
        better="higher",
    )
    yield Technique(
        "leave_one_out_correlation",
        kind="evaluator",
        summary="The correlation of influences with what training without each example changes.",
        target="pellucid_evaluation.leave_one_out_correlation:LeaveOneOutCorrelation",
        explains="explanation",
        output="scores",
        uses={"factors"},
        tags={"image", "table", "signal", "training_data", "retrains"},
        reference="Koh and Liang, 2017",
        better="higher",
    )
    yield Technique(
        "mislabel_detection",
        kind="evaluator",
        summary="How well the self-influence tells wrong labels from right ones (area under the ROC curve).",
        target="pellucid_evaluation.mislabel_detection:MislabelDetection",
        explains="explanation",
        output="scores",
        tags={"image", "table", "signal", "training_data", "across_examples"},
        reference="Pruthi et al., 2020",
        better="higher",
    )
    yield Technique(
        "nearest_prototype_error",
        kind="evaluator",
        summary="How often the nearest prototype of an input is of another class.",
        target="pellucid_evaluation.nearest_prototype_error:NearestPrototypeError",
        explains="explanation",
        output="scores",
        uses={"activations"},
        tags={"image", "exemplars", "across_examples", "class_agnostic"},
        reference="Kim et al., 2016",
        better="lower",
    )
    yield Technique(
        "smallest_sufficient_concepts",
        kind="evaluator",
        summary="How many concepts, the most important first, are enough for the class to be predicted.",
        target="pellucid_evaluation.smallest_concepts:SmallestSufficientConcepts",
        explains="explanation",
        output="scores",
        uses={"outputs"},
        tags={"image", "concepts"},
        reference="Ghorbani et al., 2019",
        better="lower",
    )
    yield Technique(
        "smallest_destroying_concepts",
        kind="evaluator",
        summary="How many concepts, the most important first, must be hidden until the class is not predicted.",
        target="pellucid_evaluation.smallest_concepts:SmallestDestroyingConcepts",
        explains="explanation",
        output="scores",
        uses={"outputs"},
        tags={"image", "concepts"},
        reference="Ghorbani et al., 2019",
        better="lower",
    )
    yield Technique(
        "trustworthiness",
        kind="evaluator",
        summary="How far points that are near on a map are near as states.",
        target="pellucid_evaluation.neighbourhoods:Trustworthiness",
        explains="projection",
        output="scores",
        tags={"map", "across_examples"},
        reference="Venna and Kaski, 2001",
        better="higher",
    )
    yield Technique(
        "continuity",
        kind="evaluator",
        summary="How far points that are near as states are near on the map.",
        target="pellucid_evaluation.neighbourhoods:Continuity",
        explains="projection",
        output="scores",
        tags={"map", "across_examples"},
        reference="Venna and Kaski, 2001",
        better="higher",
    )
    yield Technique(
        "neighbourhood_preservation",
        kind="evaluator",
        summary="The share of each point's nearest neighbours that it keeps on the map.",
        target="pellucid_evaluation.neighbourhoods:NeighbourhoodPreservation",
        explains="projection",
        output="scores",
        tags={"map", "across_examples"},
        better="higher",
    )
    yield Technique(
        "boundary_preservation",
        kind="evaluator",
        summary="How far neighbourhoods are as mixed in their labels on the map as they are as states.",
        target="pellucid_evaluation.neighbourhoods:BoundaryPreservation",
        explains="projection",
        output="scores",
        tags={"map", "across_examples"},
        reference="after Yang et al., 2022",
        better="higher",
    )
    yield Technique(
        "trajectory_preservation",
        kind="evaluator",
        summary="The share of the nearest times of each point's own trajectory that it keeps on the map.",
        target="pellucid_evaluation.trajectories:TrajectoryPreservation",
        explains="projection",
        output="scores",
        tags={"map", "across_examples", "dynamics"},
        better="higher",
    )
    yield Technique(
        "movement_correlation",
        kind="evaluator",
        summary="The rank correlation of how far points move on the map with how far their states move.",
        target="pellucid_evaluation.trajectories:MovementCorrelation",
        explains="projection",
        output="scores",
        tags={"map", "across_examples", "dynamics"},
        better="higher",
    )
    yield Technique(
        "temporal_stability",
        kind="evaluator",
        summary="How still points stand on the map while their states stand still.",
        target="pellucid_evaluation.trajectories:TemporalStability",
        explains="projection",
        output="scores",
        tags={"map", "across_examples", "dynamics"},
        better="higher",
    )
    yield Technique(
        "explained_stress",
        kind="evaluator",
        summary="How much of all distances between states the map explains.",
        target="pellucid_evaluation.trajectories:ExplainedStress",
        explains="projection",
        output="scores",
        tags={"map", "across_examples"},
        reference="Mao et al., 2024",
        better="higher",
    )
