"""Smooth Grad-CAM++ as a plugin. Imported whenever techniques are listed, so nothing heavy is imported here."""

from collections.abc import Iterator

from pellucid import Technique, hookimpl


@hookimpl
def pellucid_techniques() -> Iterator[Technique]:
    """Yields the one technique of this package."""
    yield Technique(
        "smooth_grad_cam_pp",
        title="Smooth Grad-CAM++",
        kind="explainer",
        summary="Grad-CAM++ with its gradients averaged over noisy copies of the image.",
        target="pellucid_smooth_grad_cam.smooth_grad_cam_pp:SmoothGradCAMPP",
        explains="decision",
        output="attribution",
        uses={"outputs", "activations", "gradients"},
        tags={"image", "cam", "stochastic"},
        reference="Omeiza et al., 2019",
    )
