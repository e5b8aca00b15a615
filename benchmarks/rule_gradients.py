"""The gradient by rules against autograd's, on many architectures, in float64: `python benchmarks/rule_gradients.py`.

Prints, for a rule set that is one vector-Jacobian product for everything and for one before which everything is written
out, the greatest deviation as a share of the greatest gradient, the nodes and the seconds of the capture.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

import pellucid
from pellucid import Attribution, Explainer, Gradient, Ledger, Look, RuleSet

WRITTEN = {"clamp_min", "relu", "erf", "sigmoid", "hardsigmoid", "tanh", "softplus", "pow", "sqrt", "log", "hardtanh"}
SETS = (
    RuleSet("one rule", {"*": Gradient()}),
    RuleSet(
        "written out",
        {key: Gradient() for key in (*WRITTEN, "exp", "reciprocal", "rsqrt", "product")},
        canonizers=("batch_norm",),
    ),
)
ARCHITECTURES = (
    "alexnet",
    "vgg11",
    "vgg11_bn",
    "resnet18",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "squeezenet1_0",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "regnet_y_400mf",
    "regnet_x_400mf",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "vit_b_32",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
)
SIZES = {"inception_v3": 96, "maxvit_t": 224}
LEDGERS: list[Ledger] = []
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_b_32": {"image_size": 64},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


@dataclass(frozen=True, eq=False)
class Carried(Explainer):
    """What rules carry to the input."""

    rules: RuleSet

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"], rules=self.rules)
        LEDGERS.append(seen.ledger)
        return Attribution(seen.gradients["input"], over="input")


def compared(name: str) -> str:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10, **OPTIONS.get(name, {})).double().eval()
    for part in model.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight)  # a head that starts at zero has no gradient
    size = SIZES.get(name, 64)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    score, target = model(leaf).max(dim=1)  # SqueezeNet ends in a ReLU: a class that it kills has no gradient
    expected = torch.autograd.grad(score.sum(), leaf)[0]
    told = []
    for rules in SETS:
        found = pellucid.explain(model, x, Carried(rules), target=target).values
        share = float((found - expected).abs().max() / expected.abs().max())
        ledger = LEDGERS.pop()
        told.append(f"{rules.name} {share:.1e}, {ledger.nodes} nodes, {ledger.capture_seconds:.2f} s {ledger.unruled}")
    return f"{name}: " + "; ".join(told)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ARCHITECTURES:
        print(compared(name), flush=True)
