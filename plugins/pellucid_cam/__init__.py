"""Class activation maps: which positions of a layer's maps speak for the target."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """The family's table of contents."""
    yield Technique(
        "cam",
        title="CAM",
        kind="explainer",
        summary="The head's own weights on the last maps: exact where pooling and one linear layer follow.",
        target="pellucid_cam.cam:CAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "layer"},
        reference="Zhou et al., 2016",
    )
    yield Technique(
        "grad_cam",
        title="Grad-CAM",
        kind="explainer",
        summary="Weights a layer's maps by the target's mean gradient.",
        target="pellucid_cam.grad_cam:GradCAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "layer"},
        reference="Selvaraju et al., 2017",
    )
    yield Technique(
        "grad_cam_pp",
        title="Grad-CAM++",
        kind="explainer",
        summary="Weights a layer's maps by their positive gradients, so that several objects count alike.",
        target="pellucid_cam.grad_cam_pp:GradCAMPlusPlus",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "layer"},
        reference="Chattopadhay et al., 2018",
    )
    yield Technique(
        "hires_cam",
        title="HiResCAM",
        kind="explainer",
        summary="Multiplies a layer's maps by the target's gradient, position by position.",
        target="pellucid_cam.hires_cam:HiResCAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "layer"},
        reference="Draelos and Carin, 2020",
    )
    yield Technique(
        "layer_cam",
        title="LayerCAM",
        kind="explainer",
        summary="Multiplies a layer's maps by the target's positive gradient, position by position.",
        target="pellucid_cam.layer_cam:LayerCAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "layer"},
        reference="Jiang et al., 2021",
    )
    yield Technique(
        "xgrad_cam",
        title="XGrad-CAM",
        kind="explainer",
        summary="Weights a layer's maps by the mean gradient where each map is active.",
        target="pellucid_cam.xgrad_cam:XGradCAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "layer"},
        reference="Fu et al., 2020",
    )
    yield Technique(
        "eigen_cam",
        title="Eigen-CAM",
        kind="explainer",
        summary="The first principal component of a layer's maps, whatever the class.",
        target="pellucid_cam.eigen_cam:EigenCAM",
        explains="representation",
        output="attribution",
        uses={"outputs", "activations"},
        tags={"image", "layer", "class_agnostic"},
        reference="Muhammad and Yeasin, 2020",
    )
    yield Technique(
        "score_cam",
        title="Score-CAM",
        kind="explainer",
        summary="Weights a layer's maps by the score of the input seen through each of them.",
        target="pellucid_cam.score_cam:ScoreCAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations"},
        tags={"image", "layer", "perturbation"},
        reference="Wang et al., 2020",
    )
    yield Technique(
        "guided_grad_cam",
        title="guided Grad-CAM",
        kind="explainer",
        summary="Grad-CAM's map, upsampled to the image, times guided backpropagation.",
        target="pellucid_cam.guided_grad_cam:GuidedGradCAM",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients", "rules"},
        tags={"image", "layer", "rules"},
        reference="Selvaraju et al., 2017",
    )
