"""How well influences foretell retraining: the linear datamodelling score on digits, beside controls.

`python -m benchmarks.influence_quality PATH_TO_MNIST.npz [--recipe adam] [--kronfluence]`: 2000 training digits, 200
queries, 32 halves of the data trained twice each, for one model and for the mean over three, plain ("three") and with
each model's influences on a query scaled to the same norm ("three, scaled"). What is added to the curvature is chosen
on 200 other queries, for the peer as well. `--seconds` times ours beside kronfluence instead, and `--unrolled` measures
exact differentiation through the training of a small MLP. `--folder` keeps finished trainings.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import pellucid
from benchmarks.kronfluence_peer import ek_fac
from benchmarks.measure import merged, ratios, save
from pellucid import Influence, Trainer

TRAIN, QUERIES, MODELS = 2000, 200, 3
SHARES = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0)
"""Of the curvature's mean eigenvalue: what is added to it, of which one is chosen."""
DAMPINGS = (None, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Those that kronfluence chooses from, its own heuristic first."""


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


def averaged(found: list[Influence]) -> dict[str, Influence]:
    """For one model, and for several the mean, also of values of the same norm for each query of each model."""
    values = torch.stack([one.values for one in found])
    if len(found) == 1:
        return {"one": found[0]}
    scaled = values / values.norm(dim=2, keepdim=True).clamp_min(1e-30)
    return {
        "one": found[0],
        "three": dataclasses.replace(found[0], values=values.mean(dim=0)),
        "three, scaled": dataclasses.replace(found[0], values=scaled.mean(dim=0)),
    }


class Setting:
    """Models, queries to choose on and to score on, and the trainings that they are scored by."""

    def __init__(self, path: str, recipe: dict[str, Any], folder: str | None = None) -> None:
        self.x, self.y = digits(path)
        self.trainer = Remembering(cnn, self.x[:TRAIN], self.y[:TRAIN], batch_size=50, folder=folder, **recipe)
        self.models = [self.trainer.model(seed).eval() for seed in range(MODELS)]
        for seed, model in enumerate(self.models):
            model.load_state_dict(self.trainer.weights(seed=seed))

    def queries(self, scored: bool) -> tuple[Tensor, pellucid.Loss]:
        start = TRAIN + (QUERIES if scored else 0)
        return self.x[start : start + QUERIES], pellucid.Loss(self.y[start : start + QUERIES])

    def explained(self, name: str, models: Iterable[nn.Module], scored: bool, **options: Any) -> list[Influence]:
        """That of each model."""
        q, target = self.queries(scored)
        technique = pellucid.create(name, train=self.trainer.train, **options)
        return [pellucid.explain(model, q, technique, target=target) for model in models]

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


def damped(setting: Setting, models: list[nn.Module], share: float, scored: bool, **options: Any) -> list[Influence]:
    """Influence functions, damped by a share of each model's mean eigenvalue."""
    found = []
    for model in models:
        (one,) = setting.explained("influence_functions", [model], scored, **options)
        auto = next(check.value for check in one.checks if check.name == "damping")
        assert auto is not None
        found += setting.explained("influence_functions", [model], scored, damping=auto / 0.1 * share, **options)
    return found


Row = dict[str, Any]


def row_of(setting: Setting, name: str, found: list[Influence]) -> Row:
    scores = setting.scores(averaged(found), scored=True)
    row = {"name": name, **{key: round(value, 3) for key, value in scores.items()}}
    print(row, flush=True)
    return row


def chosen_row(setting: Setting, name: str, tried: Iterable[Any], make: Callable[[Any, bool], list[Influence]]) -> Row:
    """The row of the damping that is best, over three models, on what is not scored."""
    unscored = {one: averaged(make(one, False))["three"] for one in tried}
    scores = setting.scores({str(one): found for one, found in unscored.items()}, scored=False)
    best = max(unscored, key=lambda one: scores[str(one)])
    told = {"damping": best, "tried": {key: round(value, 3) for key, value in scores.items()}}
    return {**row_of(setting, name, make(best, True)), **told}


def digits_setting(setting: Setting, kronfluence: bool) -> list[Row]:
    """A row for each technique: its scores with one model and with three, and what was chosen."""
    three = setting.models
    rows: list[Row] = []
    plain: dict[str, dict[str, Any]] = {
        "random": {"kind": "random"}, "class x similarity": {"kind": "similarity"}, "loss": {"kind": "loss"},
    }  # fmt: skip
    for name, options in plain.items():
        rows.append(row_of(setting, name, setting.explained("influence_control", three[:1], True, **options)))
    for name, technique in (("gradient dot product", "ntk_influence"), ("trak, exact kernel", "trak")):
        rows.append(row_of(setting, name, setting.explained(technique, three, True)))
    for name, options in CURVATURES.items():

        def make(share: float, scored: bool, options: dict[str, Any] = options) -> list[Influence]:
            return damped(setting, three, share, scored, **options)

        rows.append(chosen_row(setting, name, SHARES, make))
    if kronfluence:
        rows.append(chosen_row(setting, "kronfluence, EK-FAC", DAMPINGS, peers(setting)))
    # Last, since it needs all trainings.
    return [{"name": "ceiling of two trainings", "one": round(ceiling(setting), 3)}, *rows]


def peers(setting: Setting) -> Callable[[float | None, bool], list[Influence]]:
    """kronfluence's influences, computed once for all dampings."""
    queries = {str(scored): setting.queries(scored) for scored in (False, True)}
    pairs = {key: (q, target.labels) for key, (q, target) in queries.items()}
    found = [ek_fac(model, setting.trainer.train, pairs, DAMPINGS)[0] for model in setting.models]

    def make(damping: float | None, scored: bool) -> list[Influence]:
        return [Influence(one[str(scored), damping]) for one in found]

    return make


def seconds(setting: Setting) -> list[Row]:
    """Ours and kronfluence by turns: one model, 2000 examples and 200 queries."""
    (q, target), model = setting.queries(True), setting.models[0]

    def ours(options: dict[str, Any]) -> Callable[[], object]:
        return lambda: setting.explained("influence_functions", [model], True, **options)

    contenders = {name: ours(options) for name, options in CURVATURES.items()}
    contenders["kronfluence, EK-FAC"] = lambda: ek_fac(
        model, setting.trainer.train, {"": (q, target.labels)}, DAMPINGS[:1]
    )
    found = ratios(contenders, "kronfluence, EK-FAC", 3)["seconds"]
    most = found["kronfluence, EK-FAC"]
    return [{"name": f"{name}: seconds", "seconds": one, "faster": round(most / one, 2)} for name, one in found.items()]


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
    "influence functions, Gauss-Newton of rank 1000": {"curvature": "gauss_newton", "rank": 1000},
    "influence functions, EK-FAC of the Fisher": {"solver": "ek_fac"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="sgd")
    parser.add_argument("--unrolled", action="store_true")
    parser.add_argument("--kronfluence", action="store_true")
    parser.add_argument("--seconds", action="store_true")
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.unrolled:
        rows = unrolled_setting(given.path)
    else:
        setting = Setting(given.path, RECIPES[given.recipe], given.folder)
        rows = seconds(setting) if given.seconds else digits_setting(setting, given.kronfluence)
        rows = [{**row, "name": f"{row['name']} ({given.recipe})"} for row in rows]
    for row in rows:
        print(row)
    save("influence_quality", merged("influence_quality", rows))


if __name__ == "__main__":
    main()
