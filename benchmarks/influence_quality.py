"""How well influences foretell retraining: the linear datamodelling score on digits, beside controls.

`python -m benchmarks.influence_quality PATH_TO_MNIST.npz [--recipe adam] [--kronfluence]`: 2000 training digits, 200
queries, 32 halves of the data trained twice each, for one model and for three together.

What is chosen is chosen apart from what is scored: dampings, temperature, ridge, and whether the three models'
influences are averaged as they are or each query's at the same norm, all for the peer as well, by the score that three
models have on one side (digits 2000 to 2199, models of the seeds 0 to 2, and 32 halves); a row's "one" and "three" are
of another side (digits 4000 to 4199, models 3 to 5, 32 other halves), which nothing was tried on before. The other way
to average stands beside them, and is not chosen. A rank is taken as large as still leaves five times the peer's speed.

The recipes "sgd" and "adam" are those of earlier measurements: "sgd" was written down before anything was scored,
"adam" after that. In the "most accurate" ones the learning rate is the one, of LEARNING_RATES, with the most correct
answers on digits 6000 to 9999, whatever its scores (`--accuracy`). Its steps are long for SGD, so that the last ones
decide much: what two trainings of each half can at most be foretold to, the ceiling, is lower, and so are all methods.

`--seconds` times ours beside kronfluence (`pip install kronfluence`; `--no-deps` beside numpy 2.4) instead, fit and
scores of 200 queries by turns, and `--unrolled` measures exact differentiation through the training of a small MLP.
`--folder` keeps finished trainings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import pellucid
from benchmarks.kronfluence_peer import ek_fac
from benchmarks.measure import merged, ratios, save
from pellucid import Influence, Loss, Trainer

TRAIN, QUERIES = 2000, 200
TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
RIDGES = ("auto", 10.0, 100.0, 1000.0, 10000.0)
DAMPINGS = (None, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Those that kronfluence chooses from, its own heuristic first."""
LEARNING_RATES = {"sgd": (0.003, 0.01, 0.02, 0.03, 0.1, 0.2), "adam": (0.0003, 0.001, 0.003, 0.01)}


@dataclass(frozen=True)
class Side:
    """What is scored together, or what is chosen on.

    Attributes:
        start: the first of its queries.
        models: the seeds of its models.
        seed: of its halves and of their trainings.
    """

    start: int
    models: tuple[int, ...]
    seed: int


CHOOSING, SCORED = Side(2000, (0, 1, 2), 0), Side(4000, (3, 4, 5), 1)


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


def ensembles(found: Sequence[Tensor]) -> dict[str, Influence]:
    """Several models' influences together: their mean, and that of values of the same norm for each query."""
    values = torch.stack(list(found))
    scaled = values / values.norm(dim=2, keepdim=True).clamp_min(1e-30)
    return {"mean": Influence(values.mean(dim=0)), "mean of one norm": Influence(scaled.mean(dim=0))}


class Setting:
    """Models, queries, and the trainings that they are scored by."""

    def __init__(self, path: str, recipe: dict[str, Any], folder: str | None = None) -> None:
        self.x, self.y = digits(path)
        self.trainer = Remembering(cnn, self.x[:TRAIN], self.y[:TRAIN], batch_size=50, folder=folder, **recipe)

    def model(self, seed: int) -> nn.Module:
        model = self.trainer.model(seed).eval()
        model.load_state_dict(self.trainer.weights(seed=seed))
        return model

    def queries(self, side: Side) -> tuple[Tensor, Tensor]:
        return self.x[side.start : side.start + QUERIES], self.y[side.start : side.start + QUERIES]

    def explained(self, name: str, seed: int, side: Side, **options: Any) -> Influence:
        queries, labels = self.queries(side)
        technique = pellucid.create(name, train=self.trainer.train, **options)
        found: Influence = pellucid.explain(self.model(seed), queries, technique, target=Loss(labels))
        return found

    def scores(self, explanations: dict[str, Influence], side: Side) -> dict[str, float]:
        queries, labels = self.queries(side)
        metric = pellucid.create("linear_datamodeling_score", trainer=self.trainer, n_subsets=32, n_seeds=2)
        table = pellucid.evaluate(
            self.model(side.models[0]), queries, explanations, metric, Loss(labels), controls=False, seed=side.seed
        )
        return {row.explanation: float(values.nanmean()) for row, values in zip(table.rows, table.values, strict=True)}

    def ceiling(self, side: Side) -> float:
        """What the mean of two trainings of each half can at most be foretold to, by how well one foretells another."""
        (queries, labels), model = self.queries(side), cnn().eval()
        losses: dict[bytes, list[Tensor]] = {}
        for (kept, _), weights in self.trainer.known.items():
            if kept is not None:
                model.load_state_dict(weights)
                with torch.no_grad():
                    losses.setdefault(kept, []).append(
                        nn.functional.cross_entropy(model(queries), labels, reduction="none")
                    )
        one, other = (torch.stack([pair[place] for pair in losses.values()]).numpy() for place in (0, 1))
        agreed = float(np.nanmean([spearmanr(one[:, i], other[:, i]).statistic for i in range(QUERIES)]))
        return float(np.sqrt(2 * agreed / (1 + agreed)))


Row = dict[str, Any]
Make = Callable[[Any, int, Side], Tensor]
"""Makes the influences, (Q, N), by one of the settings that are tried, of the model of a seed, on a side's queries."""


def row_of(setting: Setting, name: str, tried: Sequence[Any], make: Make) -> Row:
    """The scores of what is best with three models on the side on which is chosen."""
    row: Row = {"name": name}
    best: tuple[Any, str] = (tried[0], "mean")
    if len(tried) > 1:
        candidates = {
            (one, way): values
            for one in tried
            for way, values in ensembles([make(one, seed, CHOOSING) for seed in CHOOSING.models]).items()
        }
        scores = setting.scores({str(key): values for key, values in candidates.items()}, CHOOSING)
        best = max(candidates, key=lambda key: scores[str(key)])
        row |= {"chosen": list(best), "choosing": round(scores[str(best)], 3)}
        row["tried"] = {str(one): round(scores[str((one, best[1]))], 3) for one in tried}
    found = [make(best[0], seed, SCORED) for seed in SCORED.models]
    together = ensembles(found)
    explanations = {"one": Influence(found[0]), **{f"three, {way}": values for way, values in together.items()}}
    scores = {key: round(value, 3) for key, value in setting.scores(explanations, SCORED).items()}
    row |= {"one": scores["one"], "three": scores[f"three, {best[1]}"], **scores}
    print(row, flush=True)
    return row


def ours(setting: Setting, options: dict[str, Any]) -> Make:
    """Influence functions with a share of the model's mean eigenvalue as the damping, and a temperature."""
    means: dict[tuple[int, float], float] = {}

    def make(tried: tuple[float, float], seed: int, side: Side) -> Tensor:
        share, temperature = tried
        asked = {**options, "temperature": temperature}
        if (seed, temperature) not in means:
            auto = setting.explained("influence_functions", seed, side, **asked)
            damping = next(check.value for check in auto.checks if check.name == "damping")
            assert damping is not None
            means[seed, temperature] = damping
        damping = means[seed, temperature] * share
        return setting.explained("influence_functions", seed, side, damping=damping, **asked).values

    return make


def peer(setting: Setting, temperature: float) -> Make:
    """kronfluence's, computed for all dampings together."""
    known: dict[int, dict[tuple[str, float | None], Tensor]] = {}

    def make(damping: float | None, seed: int, side: Side) -> Tensor:
        if seed not in known:
            pairs = {"": setting.queries(side)}
            known[seed], _ = ek_fac(
                setting.model(seed), setting.trainer.train, pairs, DAMPINGS, temperature=temperature
            )
        return known[seed]["", damping]

    return make


def digits_setting(setting: Setting, kronfluence: bool) -> list[Row]:
    """A row for each technique: its scores with one model and with three, and what was chosen."""
    rows: list[Row] = []

    def plain(name: str) -> Make:
        return lambda options, seed, side: setting.explained(name, seed, side, **options).values

    for name, kind in {"random": "random", "class x similarity": "similarity", "loss": "loss"}.items():
        rows.append(row_of(setting, name, [{"kind": kind}], plain("influence_control")))
    rows.append(row_of(setting, "gradient dot product", [{}], plain("ntk_influence")))
    trak = plain("trak")
    rows.append(row_of(setting, "trak, exact kernel", RIDGES, lambda one, *rest: trak({"ridge": one}, *rest)))
    for name, (options, shares) in CURVATURES.items():
        tried = [(share, temperature) for temperature in TEMPERATURES for share in shares]
        rows.append(row_of(setting, f"influence functions, {name}", tried, ours(setting, options)))
    if kronfluence:
        rows.append(row_of(setting, PEER, DAMPINGS, peer(setting, 1.0)))
        rows.append(row_of(setting, f"{PEER}, at our temperature of 2", DAMPINGS, peer(setting, 2.0)))
    # Last, since it needs all trainings.
    return [{"name": "ceiling of two trainings", "one": round(setting.ceiling(SCORED), 3)}, *rows]


def seconds(setting: Setting) -> list[Row]:
    """Ours and kronfluence by turns: one model, 2000 examples and 200 queries."""
    seed, pair = SCORED.models[0], setting.queries(SCORED)
    model = setting.model(seed)

    def timed(options: dict[str, Any]) -> Callable[[], object]:
        return lambda: setting.explained("influence_functions", seed, SCORED, temperature=2.0, **options)

    contenders = {f"influence functions, {name}": timed(options) for name, (options, _) in CURVATURES.items()}
    contenders[PEER] = lambda: ek_fac(model, setting.trainer.train, {"": pair}, DAMPINGS[:1])
    found = ratios(contenders, PEER, 3)["seconds"]
    return [
        {"name": f"{name}: seconds", "seconds": one, "faster": round(found[PEER] / one, 2)}
        for name, one in found.items()
    ]


def accuracy(path: str, folder: str | None) -> list[Row]:
    """By which learning rate the models answer most of the digits 6000 to 9999 correctly, the mean over three seeds."""
    rows = []
    for optimizer, rates in LEARNING_RATES.items():
        for rate in rates:
            recipe = RECIPES[optimizer] | {"learning_rate": rate}
            setting = Setting(path, recipe, folder)
            right, losses = [], []
            for seed in CHOOSING.models:
                with torch.no_grad():
                    model = setting.model(seed)
                    right.append((model(setting.x[6000:]).argmax(dim=1) == setting.y[6000:]).double().mean())
                    losses.append(nn.functional.cross_entropy(model(setting.x[:TRAIN]), setting.y[:TRAIN]))
            told = {"accuracy": torch.stack(right), "training loss": torch.stack(losses)}
            means = {key: round(float(values.mean()), 4) for key, values in told.items()}
            rows.append({"name": f"recipe {optimizer}, learning rate {rate}", **means})
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


SGD = {"learning_rate": 0.02, "momentum": 0.9, "epochs": 8}
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "epochs": 8}
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "adam": ADAM,
    "most accurate sgd": SGD | {"learning_rate": 0.03},
    "most accurate adam": ADAM | {"learning_rate": 0.01},
}
CURVATURES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "Fisher": ({}, (0.1, 1.0, 3.0, 10.0)),
    "Gauss-Newton of rank 1000": ({"curvature": "gauss_newton", "rank": 1000}, (1.0, 3.0, 10.0, 30.0)),
    "EK-FAC of the Fisher": ({"solver": "ek_fac"}, (0.01, 0.1, 1.0)),
}
"""Options, and which shares of the curvature's mean eigenvalue are tried as the damping."""
PEER = "kronfluence, EK-FAC"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="sgd")
    parser.add_argument("--unrolled", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--kronfluence", action="store_true")
    parser.add_argument("--seconds", action="store_true")
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.unrolled:
        rows = unrolled_setting(given.path)
    elif given.accuracy:
        rows = accuracy(given.path, given.folder)
    else:
        setting = Setting(given.path, RECIPES[given.recipe], given.folder)
        rows = seconds(setting) if given.seconds else digits_setting(setting, given.kronfluence)
        rows = [{**row, "name": f"{row['name']} ({given.recipe})"} for row in rows]
    for row in rows:
        print(row)
    save("influence_quality", merged("influence_quality", rows))


if __name__ == "__main__":
    main()
