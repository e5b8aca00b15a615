"""How well the tangent kernel's surrogate stands for the network: MNIST's zeros against its ones.

`python -m benchmarks.surrogate PATH_TO_MNIST.npz`: 1500 training digits, all others (some 600) as queries, a network of
linear layers and one of convolutions from three seeds each. Kendall's tau between the surrogate's and the network's
probabilities of the right class, and the share of the same predictions, both at the queries, which neither has seen.

Engel et al. report a tau of .71 for linear layers and .86 for convolutions, on their own networks and the whole data
set. Theirs is fitted to the labels, ours to the network's logits at the training digits, which is easier: hence two
controls, fitted in the same way. In the last layer's parameters the logits are linear, so that their kernel can only
lose by its ridge; that of the inputs themselves knows nothing of the network but its logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

import pellucid
from benchmarks.influence_quality import digits
from benchmarks.measure import save
from pellucid import Trainer

TRAIN, SEEDS, RIDGE = 1500, 3, 1e-3


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 2),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {"MLP": (mlp, "5.*"), "CNN": (cnn, "7.*")}


def trained(x: Tensor, y: Tensor, make: Callable[[], nn.Module], seed: int) -> nn.Module:
    trainer = Trainer(make, x[:TRAIN], y[:TRAIN], learning_rate=0.02, momentum=0.9, epochs=5, batch_size=50)
    model = trainer.model(seed).eval()
    model.load_state_dict(trainer.weights(seed=seed))
    return model.requires_grad_(False)


def of_parameters(x: Tensor, y: Tensor, model: nn.Module, parameters: str) -> dict[str, float]:
    """What is certified of the surrogate."""
    technique = pellucid.create(
        "ntk_influence", train=(x[:TRAIN], y[:TRAIN]), surrogate=True, ridge=RIDGE, parameters=(parameters,)
    )
    found = pellucid.explain(model, x[TRAIN:], technique, target=y[TRAIN:])
    told = {check.name: float(check.value or 0.0) for check in found.checks}
    return {"Kendall tau": told["surrogate's Kendall tau"], "agreement": told["surrogate's agreement"]}


def of_inputs(x: Tensor, y: Tensor, model: nn.Module) -> dict[str, float]:
    """The same of the inputs' inner products: by the difference of the two logits, which orders as probabilities do."""
    flat, logits = x.flatten(1).double(), model(x).double()
    wanted, sign = logits[:, 1] - logits[:, 0], 2.0 * y - 1
    kernel = flat @ flat[:TRAIN].T
    own, bias = kernel[:TRAIN], wanted[:TRAIN].mean()
    added = RIDGE * own.diagonal().mean() * torch.eye(TRAIN, dtype=torch.float64)
    foretold = kernel[TRAIN:] @ torch.linalg.solve(own + added, wanted[:TRAIN] - bias) + bias
    wanted, sign = wanted[TRAIN:], sign[TRAIN:]
    agreed = float(((foretold > 0) == (wanted > 0)).double().mean())
    return {"Kendall tau": float(kendalltau(foretold * sign, wanted * sign).statistic), "agreement": agreed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    x, y = digits(parser.parse_args().path)
    x, y = x[y < 2], y[y < 2]
    rows = []
    for name, (make, last) in NETWORKS.items():
        models = [trained(x, y, make, seed) for seed in range(SEEDS)]
        accuracy = statistics.mean(
            float((model(x[TRAIN:]).argmax(dim=1) == y[TRAIN:]).double().mean()) for model in models
        )
        ways: dict[str, Callable[[nn.Module], dict[str, float]]] = {
            "all parameters": lambda model: of_parameters(x, y, model, "*"),
            "control: the last layer's": lambda model, last=last: of_parameters(x, y, model, last),  # type: ignore[misc]
            "control: the inputs": lambda model: of_inputs(x, y, model),
        }
        for kind, way in ways.items():
            started = time.perf_counter()
            found = [way(model) for model in models]
            row: dict[str, object] = {
                key: round(statistics.mean(one[key] for one in found), 4) for key in ("Kendall tau", "agreement")
            }
            row["Kendall tau by seed"] = [round(one["Kendall tau"], 4) for one in found]
            row |= {"accuracy": round(accuracy, 4), "seconds": round((time.perf_counter() - started) / SEEDS, 2)}
            rows.append({"name": f"{name}, {kind}", **row, "queries": len(x) - TRAIN})
            print(rows[-1], flush=True)
    save("surrogate", rows)


if __name__ == "__main__":
    main()
