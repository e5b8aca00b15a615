"""Techniques that need nothing but the gradient of the target by the inputs."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The family's table of contents."""
    yield Technique(
        "saliency",
        kind="explainer",
        summary="The size of the target's gradient by each input.",
        target="pellucid_gradients.saliency:Saliency",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient"},
        reference="Simonyan et al., 2013",
    )
    yield Technique(
        "input_x_gradient",
        title="input × gradient",
        kind="explainer",
        summary="Each input times the target's gradient by it.",
        target="pellucid_gradients.input_x_gradient:InputXGradient",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient"},
        reference="Shrikumar et al., 2016",
    )
    yield Technique(
        "integrated_gradients",
        kind="explainer",
        summary="Shares out f(x) - f(baseline) by the gradients on the straight path between the two.",
        target="pellucid_gradients.integrated_gradients:IntegratedGradients",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient", "path"},
        reference="Sundararajan et al., 2017",
    )
    yield Technique(
        "interior_gradients",
        kind="explainer",
        summary="The mean gradient, by the inputs or a layer, on the straight path from a baseline.",
        target="pellucid_gradients.interior_gradients:InteriorGradients",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient", "path"},
        reference="Sundararajan et al., 2016",
    )
    yield Technique(
        "expected_gradients",
        kind="explainer",
        summary="Integrated gradients, averaged over baselines drawn from reference data.",
        target="pellucid_gradients.expected_gradients:ExpectedGradients",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient", "path", "stochastic"},
        reference="Erion et al., 2021",
    )
    yield Technique(
        "smoothgrad",
        title="SmoothGrad",
        kind="explainer",
        summary="The mean of the gradient, or of any attribution, over noisy copies of the input.",
        target="pellucid_gradients.smoothgrad:SmoothGrad",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient", "noise", "stochastic"},
        reference="Smilkov et al., 2017",
    )
    yield Technique(
        "vargrad",
        title="VarGrad",
        kind="explainer",
        summary="The variance of the gradient, or of any attribution, over noisy copies of the input.",
        target="pellucid_gradients.vargrad:VarGrad",
        explains="decision",
        output="attribution",
        uses={"outputs", "gradients"},
        tags={"gradient", "noise", "stochastic"},
        reference="Adebayo et al., 2018",
    )
