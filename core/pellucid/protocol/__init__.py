"""The protocol: what a technique is written in."""

from pellucid.protocol.derived import Derived, Make
from pellucid.protocol.explainer import Evaluator, Explainer, Passes, Projector, as_passes, together
from pellucid.protocol.fold import Fold, Folding, Mean, Moments, Part, Sum
from pellucid.protocol.leaves import Inputs, Leaves, each, per_example, tensors_of
from pellucid.protocol.look import Layer, Look, Looks, Seen, SeenTogether
from pellucid.protocol.sample import Frame, Sample
from pellucid.protocol.target import ClassLogit, Contrast, Loss, Score, Target
from pellucid.protocol.target_detected import Detected
from pellucid.protocol.target_given import Custom, make_target
from pellucid.protocol.target_places import Region, Similarity, Unit
from pellucid.protocol.target_regression import Regression

__all__ = [
    "ClassLogit",
    "Contrast",
    "Custom",
    "Derived",
    "Detected",
    "Evaluator",
    "Explainer",
    "Fold",
    "Folding",
    "Frame",
    "Inputs",
    "Layer",
    "Leaves",
    "Look",
    "Looks",
    "Loss",
    "Make",
    "Mean",
    "Moments",
    "Part",
    "Passes",
    "Projector",
    "Region",
    "Regression",
    "Sample",
    "Score",
    "Seen",
    "SeenTogether",
    "Similarity",
    "Sum",
    "Target",
    "Unit",
    "as_passes",
    "each",
    "make_target",
    "per_example",
    "tensors_of",
    "together",
]
