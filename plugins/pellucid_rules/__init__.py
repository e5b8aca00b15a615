"""Techniques that go back through the model's graph by rules of their own in place of the gradient's."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The family's table of contents."""
    yield Technique(
        "lrp",
        title="LRP",
        kind="explainer",
        summary="Shares the score out from op to op, back to the input, each op by a rule.",
        target="pellucid_rules.lrp:LRP",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "relevance"},
        reference="Bach et al., 2015",
    )
    yield Technique(
        "deep_taylor",
        title="deep Taylor decomposition",
        kind="explainer",
        summary="Shares the score out by Taylor expansions of each neuron's relevance.",
        target="pellucid_rules.deep_taylor:DeepTaylor",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "relevance"},
        reference="Montavon et al., 2017",
    )
    yield Technique(
        "guided_backprop",
        kind="explainer",
        summary="The gradient with its negative part cut off at every activation.",
        target="pellucid_rules.guided_backprop:GuidedBackprop",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "gradient"},
        reference="Springenberg et al., 2015",
    )
    yield Technique(
        "deconvolution",
        title="DeconvNet",
        kind="explainer",
        summary="Projects a class or any unit back to the input: un-ReLU, switches, transposed filters.",
        target="pellucid_rules.deconvolution:Deconvolution",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "gradient"},
        reference="Zeiler and Fergus, 2014",
    )
    yield Technique(
        "deeplift",
        title="DeepLIFT",
        kind="explainer",
        summary="Shares out f(x) - f(baseline) by carrying differences from the baseline through every op.",
        target="pellucid_rules.deeplift:DeepLIFT",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "baseline"},
        reference="Shrikumar et al., 2017",
    )
    yield Technique(
        "deep_shap",
        title="Deep SHAP",
        kind="explainer",
        summary="DeepLIFT, averaged over the rows of a distribution of baselines.",
        target="pellucid_rules.deeplift:DeepSHAP",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "baseline"},
        reference="Lundberg and Lee, 2017",
    )
    yield Technique(
        "pattern_net",
        title="PatternNet",
        kind="explainer",
        summary="Projects the signal behind the score to the input, along patterns fitted on data.",
        target="pellucid_rules.pattern_net:PatternNet",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "data"},
        reference="Kindermans et al., 2018",
    )
    yield Technique(
        "pattern_attribution",
        title="PatternAttribution",
        kind="explainer",
        summary="Shares out the score over the signal that patterns fitted on data find.",
        target="pellucid_rules.pattern_attribution:PatternAttribution",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients", "rules"},
        tags={"rules", "data"},
        reference="Kindermans et al., 2018",
    )
