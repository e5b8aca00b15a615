"""`pellucid demo`: photos explained by a real network, offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TECHNIQUES: dict[str, dict[str, Any]] = {
    "saliency": {"use": "saliency"},
    "input_x_gradient": {"use": "input_x_gradient"},
    "integrated_gradients": {"use": "integrated_gradients", "n_steps": 50},
    "smoothgrad": {"use": "smoothgrad"},
    "occlusion": {"use": "occlusion"},
    "kernel_shap": {"use": "kernel_shap", "n_samples": 200},
    "guided_backprop": {"use": "guided_backprop"},
    "lrp": {"use": "lrp", "composite": "epsilon_gamma_box"},
    "deeplift": {"use": "deeplift"},
    "grad_cam": {"use": "grad_cam"},
    "guided_grad_cam": {"use": "guided_grad_cam"},
    # At the last layer, layer_cam would see what grad_cam sees; here its map is finer.
    "layer_cam": {"use": "layer_cam", "layer": "_blocks.10"},
    "eigen_cam": {"use": "eigen_cam"},
}
CURVES = {"of": list(TECHNIQUES), "regions": 16, "n_steps": 8}

DEMO: dict[str, Any] = {
    "title": "What an ImageNet network looks at",
    "model": "demo:efficientnet_lite0",
    "data": {"images": ["demo:cat", "demo:coffee", "demo:rocket"]},
    "steps": {
        **TECHNIQUES,
        "pixel_flipping": {"use": "pixel_flipping", "substitution": "blur", **CURVES},
        # Hiding anything at all harms a network, whatever the order; between two orders that cancels.
        "flipping_both_ways": {"use": "pixel_flipping", "measure": "morf_lerf_gap", "substitution": "blur", **CURVES},
        "insertion": {"use": "insertion", **CURVES},
        "deletion": {"use": "deletion", **CURVES},
    },
}
"""What the demonstration runs: a pipeline as anyone may write it."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("pellucid-demo"), metavar="DIR", help="where results go (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Explain three photos on a real ImageNet network, score the explanations, and write a report. Offline."""
    from pellucid.cli.run import execute
    from pellucid.pipeline import Pipeline

    return execute(Pipeline(DEMO), options.out, as_json=options.json)
