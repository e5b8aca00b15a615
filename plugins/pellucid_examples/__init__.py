"""Examples of a data set that stand for it, that it misses, that resemble an input, or that excite a unit."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The family of examples."""
    yield Technique(
        "mmd_critic",
        title="MMD-critic",
        kind="explainer",
        summary="Prototypes that stand for a data set, and criticisms: the examples that they represent worst.",
        target="pellucid_examples.mmd_critic:MMDCritic",
        explains="data",
        output="exemplars",
        uses={"activations"},
        tags={"image", "class_agnostic", "across_examples", "training_data"},
        reference="Kim et al., 2016",
    )
    yield Technique(
        "similar_examples",
        kind="explainer",
        summary="The training examples that a network sees as most like each input.",
        target="pellucid_examples.similar_examples:SimilarExamples",
        explains="representation",
        output="exemplars",
        uses={"activations", "factors"},
        tags={"image", "class_agnostic", "training_data"},
        reference="Zhang et al., 2018",
    )
    yield Technique(
        "maximal_examples",
        kind="explainer",
        summary="The examples of a data set that excite a unit most, cut to what the unit can see.",
        target="pellucid_examples.maximal_examples:MaximalExamples",
        explains="representation",
        output="exemplars",
        uses={"activations"},
        tags={"image", "class_agnostic", "across_examples"},
        reference="Zeiler and Fergus, 2014",
    )
