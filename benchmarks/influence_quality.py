"""How well influences foretell retraining: the linear datamodelling score on digits, beside controls.

`python -m benchmarks.influence_quality PATH_TO_MNIST.npz [--recipe adam]`: 2000 training digits, 200 queries, 32 halves
of the data trained twice each, for one model and for the mean over three. What is added to the curvature is chosen on
200 other queries. `--unrolled` measures exact differentiation through the training of a small MLP instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import pellucid
from benchmarks.measure import merged, save
from pellucid import Influence, Trainer

TRAIN, QUERIES, MODELS = 2000, 200, 3
SHARES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Of the curvature's mean eigenvalue: what is added to it, of which one is chosen."""


@dataclass(frozen=True, eq=False)
class Remembering(Trainer):
    """A trainer that trains each part of the data once, for all the explanations that are scored."""

    known: dict[Any, dict[str, Tensor]] = field(default_factory=dict)

    def weights(self, kept: Tensor | None = None, seed: int = 0) -> dict[str, Tensor]:
        """What was trained before, or is trained now."""
        key = (None if kept is None else kept.numpy().tobytes(), seed)
        if key not in self.known:
            self.known[key] = super().weights(kept, seed)
        return self.known[key]


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


def digits(path: str) -> tuple[Tensor, Tensor]:
    data = np.load(path)
    images = torch.tensor(data["images"]).float().reshape(-1, 1, 28, 28) / 255
    return images, torch.tensor(data["labels"]).long()


def averaged(found: list[Influence]) -> Influence:
    return dataclasses.replace(found[0], values=torch.stack([one.values for one in found]).mean(dim=0))


class Setting:
    """Models, queries to choose on and to score on, and the trainings that they are scored by."""

    def __init__(self, path: str, recipe: dict[str, Any]) -> None:
        self.x, self.y = digits(path)
        self.trainer = Remembering(cnn, self.x[:TRAIN], self.y[:TRAIN], batch_size=50, **recipe)
        self.models = [self.trainer.model(seed).eval() for seed in range(MODELS)]
        for seed, model in enumerate(self.models):
            model.load_state_dict(self.trainer.weights(seed=seed))

    def queries(self, scored: bool) -> tuple[Tensor, pellucid.Target]:
        start = TRAIN + (QUERIES if scored else 0)
        return self.x[start : start + QUERIES], pellucid.Loss(self.y[start : start + QUERIES])

    def explained(self, name: str, models: Iterable[nn.Module], scored: bool, **options: Any) -> Influence:
        """The mean over models."""
        q, target = self.queries(scored)
        technique = pellucid.create(name, train=self.trainer.train, **options)
        found: list[Influence] = [pellucid.explain(model, q, technique, target=target) for model in models]
        return averaged(found)

    def scores(self, explanations: dict[str, Influence], scored: bool) -> dict[str, float]:
        q, target = self.queries(scored)
        metric = pellucid.create("linear_datamodeling_score", trainer=self.trainer, n_subsets=32, n_seeds=2)
        table = pellucid.evaluate(self.models[0], q, explanations, metric, target=target, controls=False)
        return {row.explanation: float(values.nanmean()) for row, values in zip(table.rows, table.values, strict=True)}


def ceiling(setting: Setting) -> float:
    """What the mean of two trainings of each part can at most be foretold to, from how well one foretells the other."""
    (q, _), model = setting.queries(True), cnn().eval()
    labels = setting.y[TRAIN + QUERIES : TRAIN + 2 * QUERIES]
    losses: dict[bytes, list[Tensor]] = {}
    for (kept, _), weights in setting.trainer.known.items():
        if kept is not None:
            model.load_state_dict(weights)
            with torch.no_grad():
                losses.setdefault(kept, []).append(nn.functional.cross_entropy(model(q), labels, reduction="none"))
    one, other = (torch.stack([pair[place] for pair in losses.values()]).numpy() for place in (0, 1))
    agreed = float(np.nanmean([spearmanr(one[:, i], other[:, i]).statistic for i in range(QUERIES)]))
    return float(np.sqrt(2 * agreed / (1 + agreed)))


def chosen(setting: Setting, **options: Any) -> tuple[float, dict[str, float]]:
    """The damping of influence functions as a share of the mean eigenvalue, by the score on what is not scored."""
    first = setting.models[:1]
    tried = {str(share): damped(setting, first, share, False, **options) for share in SHARES}
    scores = setting.scores(tried, scored=False)
    return float(max(scores, key=lambda share: scores[share])), scores


def damped(setting: Setting, models: list[nn.Module], share: float, scored: bool, **options: Any) -> Influence:
    """Influence functions, damped by a share of each model's mean eigenvalue; the mean over models."""
    found = []
    for model in models:
        one = setting.explained("influence_functions", [model], scored, **options)
        if share != 0.1:
            auto = next(check.value for check in one.checks if check.name == "damping")
            assert auto is not None
            one = setting.explained("influence_functions", [model], scored, damping=auto / 0.1 * share, **options)
        found.append(one)
    return averaged(found)


def digits_setting(path: str, recipe: dict[str, Any], curvatures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each technique: its score with one model and with three, and what was chosen."""
    setting = Setting(path, recipe)
    one, three = setting.models[:1], setting.models
    plain: dict[str, dict[str, Any]] = {
        "random": {"kind": "random"}, "class x similarity": {"kind": "similarity"}, "loss": {"kind": "loss"},
    }  # fmt: skip
    explanations = {name: setting.explained("influence_control", one, True, **plain[name]) for name in plain}
    for name, technique in (("gradient dot product", "ntk_influence"), ("trak, exact kernel", "trak")):
        explanations[name] = setting.explained(technique, one, True)
        explanations[f"{name}: three"] = setting.explained(technique, three, True)
    told: dict[str, dict[str, Any]] = {}
    for name, options in curvatures.items():
        share, tried = chosen(setting, **options)
        told[name] = {"damping": share, "tried": {key: round(value, 3) for key, value in tried.items()}}
        print(name, told[name], flush=True)
        explanations[name] = damped(setting, one, share, True, **options)
        explanations[f"{name}: three"] = damped(setting, three, share, True, **options)
    scores = setting.scores(explanations, scored=True)
    rows: list[dict[str, Any]] = [{"name": "ceiling of two trainings", "one": round(ceiling(setting), 3)}]
    for name in (name for name in explanations if not name.endswith(": three")):
        row: dict[str, Any] = {"name": name, "one": round(scores[name], 3), **told.get(name, {})}
        if f"{name}: three" in scores:
            row["three"] = round(scores[f"{name}: three"], 3)
        rows.append(row)
    return rows


def unrolled_setting(path: str) -> list[dict[str, Any]]:
    """Exact differentiation of 300 steps of an MLP's training, at its own seed and at others: short steps, and long."""
    return [
        *_unrolled("small MLP", path, learning_rate=0.03),
        *_unrolled("small MLP, steps 17 times as long", path, learning_rate=0.05, momentum=0.9),
    ]


def _unrolled(title: str, path: str, **recipe: Any) -> list[dict[str, Any]]:
    x, y = digits(path)
    trainer = Trainer(mlp, x[:500], y[:500], epochs=30, batch_size=50, **recipe)
    model = trainer.model(0)
    model.load_state_dict(trainer.weights())
    q, target = x[TRAIN : TRAIN + 50], y[TRAIN : TRAIN + 50]
    found = {}
    started = time.perf_counter()
    found["unrolled"] = pellucid.explain(model, q, pellucid.create("unrolled", trainer=trainer), target=target)
    seconds = time.perf_counter() - started
    functions = pellucid.create("influence_functions", train=trainer.train)
    found["influence functions, Fisher"] = pellucid.explain(model, q, functions, target=target)
    rows: list[dict[str, Any]] = [{"name": f"{name}, {title}"} for name in found]
    for share in (0.5, 0.9):
        for kind, seeds in (("own seed", (0,)), ("other seeds", None)):
            metric = pellucid.create(
                "linear_datamodeling_score", trainer=trainer, n_subsets=32, share=share, seeds=seeds
            )
            table = pellucid.evaluate(model, q, found, metric, target=target, controls=False)
            for row, values in zip(rows, table.values, strict=True):
                row[f"{kind}, parts of {share}"] = round(float(values.nanmean()), 3)
    rows[0]["seconds"] = round(seconds, 1)
    return rows


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.02, "momentum": 0.9, "epochs": 8},
    "adam": {"optimizer": "adam", "learning_rate": 0.001, "epochs": 8},
}
CURVATURES: dict[str, dict[str, Any]] = {
    "influence functions, Fisher": {},
    "influence functions, EK-FAC of the Fisher": {"solver": "ek_fac"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="sgd")
    parser.add_argument("--unrolled", action="store_true")
    given = parser.parse_args()
    if given.unrolled:
        rows = unrolled_setting(given.path)
    else:
        rows = digits_setting(given.path, RECIPES[given.recipe], CURVATURES)
        rows = [{**row, "name": f"{row['name']} ({given.recipe})"} for row in rows]
    for row in rows:
        print(row)
    save("influence_quality", merged("influence_quality", rows))


if __name__ == "__main__":
    main()
