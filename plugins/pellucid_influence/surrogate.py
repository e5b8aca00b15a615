"""A kernel machine on the tangent kernel in the place of the model, and how well it stands for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pellucid import Blocks, Check, Look, ModelError, Passes, Sample, Target, TargetError, Training
from pellucid_influence.curvature import Output
from pellucid_influence.training import LARGEST, Kernel, inverse, kernel

ENOUGH = 30
"""How many queries show the fidelity; with fewer, the training examples do, each left out in turn."""


def contributions(
    sample: Sample, train: Training, parameters: Sequence[str], ridge: float, blocks: Blocks
) -> Passes[tuple[Tensor, Kernel, list[Check]]]:
    """What each training example adds to the surrogate's logit of the target's class, (Q, N), and its fidelity.

    The surrogate is the linear model of the kernels with the training examples that is nearest, by least squares with a
    ridge, to the model's logits less their mean over the classes: its weights are (K + ridge)^-1 times what these
    differ from their mean over the examples, which is its bias.

    Raises:
        TargetError: when the target is no class.
        ModelError: when the model gives no (B, classes).
    """
    seen = yield Look(at=sample, outputs=True)
    if seen.classes is None:
        raise TargetError("the surrogate explains classes; expected a class as the target, or None for the predicted")
    if not isinstance(seen.outputs, Tensor) or seen.outputs.dim() != 2:
        raise ModelError("the surrogate needs a model that returns a tensor (B, classes)")
    wanted, classes = _centred(seen.outputs), seen.classes.to(seen.outputs.device)
    found = yield from kernel(sample, train, parameters, blocks=blocks)
    trained = []
    for start in range(0, len(train), LARGEST):
        trained.append(_centred((yield Look(at=train[start : start + LARGEST], outputs=True)).outputs))
    learnt = torch.cat(trained)
    features, own = yield from _traces(sample, train, parameters, wanted.shape[1], blocks)
    inner = inverse(own, ridge * float(own.diagonal().mean()), "ridge")
    bias = learnt.mean(dim=0)
    weights = inner @ (learnt - bias)
    if len(sample) >= ENOUGH:
        checks = _fidelity(features @ weights + bias, wanted, classes, f"the {len(sample)} queries")
    else:
        # Without an example the machine errs at it by its weight over its place on the inverse's diagonal.
        without = learnt - weights / inner.diagonal()[:, None]
        where = f"the {len(learnt)} training examples, each left out in turn"
        checks = _fidelity(without, learnt, learnt.argmax(dim=1), where)
    return features * weights.T[classes], found, checks


def _centred(outputs: Tensor) -> Tensor:
    return outputs.double() - outputs.double().mean(dim=1, keepdim=True)


def _traces(
    sample: Sample, train: Training, parameters: Sequence[str], classes: int, blocks: Blocks
) -> Passes[tuple[Tensor, Tensor]]:
    """The tangent kernel's trace over the outputs, (Q, N) and (N, N)."""
    between, own = torch.zeros(()), torch.zeros(())
    for index in range(classes):
        target: Target = Output(index)
        found = yield from kernel(
            replace(sample, target=target),
            replace(train, target=partial(_same, target)),
            parameters,
            own=True,
            blocks=blocks,
        )
        between, own = between + found.values.double(), own + found.own.double()
    return between, own


def _same(target: Target, labels: Tensor) -> Target:
    return target


def _fidelity(surrogate: Tensor, model: Tensor, classes: Tensor, where: str) -> list[Check]:
    """How alike the probabilities of a class are ordered, and how often both predict the same one."""
    from scipy.stats import kendalltau

    odds = []
    for logits in (surrogate, model):  # they order as probabilities do, and do not round to one
        chosen = logits.gather(1, classes[:, None])[:, 0]
        odds.append((chosen - logits.scatter(1, classes[:, None], -torch.inf).logsumexp(dim=1)).cpu().numpy())
    agreed = float((surrogate.argmax(dim=1) == model.argmax(dim=1)).double().mean())
    note = f"of the surrogate's and the model's probabilities of the class, over {where}"
    return [
        Check.info("surrogate's Kendall tau", float(kendalltau(*odds).statistic), note),
        Check.info("surrogate's agreement", agreed, f"the share of the same predicted classes, over {where}"),
    ]
