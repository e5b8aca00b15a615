"""Maps of training dynamics on digits, scored beside their controls (what recording costs: benchmarks.recording).

python -m benchmarks.dynamics            # the table of maps: 11 captures of 300 digits, two recipes
python -m benchmarks.dynamics size       # trained, recorded (20 captures x 10,000 x 128), read and mapped by default
python -m benchmarks.dynamics pca        # PCA beside scikit-learn's randomised SVD
"""

from __future__ import annotations

import itertools
import resource
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits, make_classification
from sklearn.decomposition import PCA as SVD
from torch import nn

import pellucid
from benchmarks.measure import RESULTS, merged, ratios, save
from pellucid.recorder import load

METRICS = {
    "within frames, 15": pellucid.create("neighbourhood_preservation", n_neighbors=15),
    "along trajectories, 3": pellucid.create("trajectory_preservation", n_neighbors=3),
    "movement": pellucid.create("movement_correlation"),
    "trustworthiness": pellucid.create("trustworthiness"),
    "continuity": pellucid.create("continuity"),
    "stability": pellucid.create("temporal_stability"),
    "boundaries": pellucid.create("boundary_preservation"),
    "explained stress": pellucid.create("explained_stress"),
}
RECIPES = {
    "probabilities, log steps": ((64,), "output", np.geomspace(1, 240, 10).round().astype(int).tolist()),
    "features, epochs": ((64, 64), "features", list(range(24, 241, 24))),
}
"""Hidden layers, what is recorded, and at which steps; batches of 64, Adam at 3e-3. Step 0 is always recorded."""


def recorded(hidden: tuple[int, ...], layer: str, steps: list[int], seed: int = 0) -> pellucid.States:
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    probe, rest = order[:300], order[300:]
    widths = (64, *hidden)
    parts = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential()
    net.add_module("features", nn.Sequential(*parts))
    net.add_module("head", nn.Linear(widths[-1], 10))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    with tempfile.TemporaryDirectory() as folder:
        with pellucid.Recorder(net, x[probe], layers=["features"], every=steps, path=folder, labels=y[probe]):
            for _ in range(max(steps)):
                rows = rest[torch.randint(len(rest), (64,))]
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimiser.step()
        states = load(folder).states(layer)
    if layer == "output":
        return pellucid.States(states.values.softmax(dim=-1), states.steps, layer, states.labels)
    return states


def aligned_umap(states: pellucid.States) -> pellucid.Projection:
    import umap

    points = list(states.values.numpy())
    relations = [{place: place for place in range(len(states))} for _ in points[1:]]
    made = umap.AlignedUMAP(random_state=0).fit_transform(points, relations=relations)
    return pellucid.Projection(torch.tensor(np.stack(made)))


def frame_by_frame(states: pellucid.States, technique: str) -> pellucid.Projection:
    frames = [pellucid.project(frame, technique).values for frame in states.values]
    return pellucid.Projection(torch.stack(frames))


def table() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    pellucid.project(torch.rand(100, 5), "umap")  # compiles
    for recipe, (hidden, layer, steps) in RECIPES.items():
        states = recorded(hidden, layer, steps)
        contenders = {
            "dynamic_tsne": lambda s=states: s.project("dynamic_tsne"),
            "pca": lambda s=states: s.project("pca"),
            "joint umap": lambda s=states: s.project("umap"),
            "aligned umap": lambda s=states: aligned_umap(s),
            "joint t-SNE": lambda s=states: s.project("tsne"),
            "t-SNE by frame": lambda s=states: frame_by_frame(s, "tsne"),
        }
        if recipe.startswith("prob"):
            contenders["in_pca"] = lambda s=states: s.project("in_pca")
        maps, seconds = {}, {}
        for name, run in contenders.items():
            began = time.perf_counter()
            maps[name] = run()
            seconds[name] = round(time.perf_counter() - began, 1)
        labelled = {
            name: pellucid.Projection(one.values, labels=states.labels, times=states.steps)
            for name, one in maps.items()
        }
        labelled["the states"] = pellucid.Projection(states.values, labels=states.labels, times=states.steps)
        scores = pellucid.evaluate(None, states, labelled, METRICS)
        for name in [*labelled, "random_projection"]:
            found = {
                row.metric: round(float(values.nanmean()), 3)
                for row, values in zip(scores.rows, scores.values, strict=True)
                if row.explanation == name
            }
            rows.append({"name": f"{recipe}: {name}", **found, "seconds": seconds.get(name)})
            print(rows[-1], flush=True)
    return rows


def size() -> dict[str, object]:
    """The whole job: 19 epochs of training with 20 captures of 10,000 x 128, on disk, read again, and mapped.

    The peak is that of this process, which has loaded scikit-learn besides; before the job it has what imports take.
    """
    imported = peak()
    images, classes = make_classification(
        10_000, 64, n_informative=20, n_redundant=20, n_classes=10, n_clusters_per_class=1, class_sep=2, random_state=0
    )
    x, y = torch.tensor(images, dtype=torch.float32), torch.tensor(classes)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.Adam(net.parameters())
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with pellucid.Recorder(net, x, layers=["3"], every=len(x) // 64 + 1, path=folder, labels=y) as recorder:
            for _ in range(19):
                for rows in torch.randperm(len(x)).split(64):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                    optimiser.step()
        trained = time.perf_counter()
        states = load(folder).states("3")
        loaded = time.perf_counter()
        made = states.project()
        mapped = time.perf_counter()
    assert made.values.shape == (20, 10_000, 2)
    return {
        "name": "20 x 10000 x 128",
        "seconds": round(mapped - began, 1),
        "training": round(trained - began - recorder.seconds, 1),
        "recording": round(recorder.seconds, 2),
        "loading": round(loaded - trained, 2),
        "mapping": round(mapped - loaded, 1),
        "accuracy": round(float(states.correct[-1].double().mean()), 3),
        "GiB": round(peak(), 2),
        "imports_GiB": round(imported, 2),
    }


def peak() -> float:
    """The most memory that this process had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def pca() -> list[dict[str, object]]:
    """PCA beside the randomised SVD of scikit-learn on the same matrices, and how much both explain."""
    rows = []
    for shape, decays in (
        ((200_000, 128), True),
        ((60_000, 784), True),
        ((50_000, 512), True),
        ((10_000, 512), True),
        ((8_000, 2_000), True),
        ((3_000, 1_500), True),
        ((2_000, 10_000), True),
        ((1_000, 50_000), True),
        ((20, 10_000, 128), True),
        ((10_000, 512), False),
        ((10_000, 4_000), False),
        ((2_000, 10_000), False),
    ):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(shape, generator=generator)
        if decays:
            states *= torch.arange(1, shape[-1] + 1).rsqrt()
        array = states.flatten(0, -2).numpy()
        explained: dict[str, float] = {}
        drawn = SVD(2, svd_solver="randomized", random_state=0)

        def theirs(drawn: SVD = drawn, array: Any = array, explained: dict[str, float] = explained) -> None:
            drawn.fit_transform(array)
            explained["randomised SVD"] = float(drawn.explained_variance_ratio_.sum())

        def ours(states: torch.Tensor = states, explained: dict[str, float] = explained) -> None:
            made = pellucid.project(states, "pca")
            assert not made.checks.failed, made.checks
            explained["pellucid"] = made.checks.named("explained variance").value

        title = f"PCA, {' x '.join(map(str, shape))}{'' if decays else ', flat spectrum'}"
        row = {"name": title, "aim": 1.2} | ratios(
            {"randomised SVD": theirs, "pellucid": ours}, "randomised SVD", repeats=2, pause=0.3
        )
        rows.append(row | {"explained": {name: round(value, 6) for name, value in explained.items()}})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    what = sys.argv[1] if len(sys.argv) > 1 else "table"
    found = {"table": table, "pca": pca, "size": lambda: [size()]}[what]()
    save("dynamics", merged("dynamics", found))
    print(found, RESULTS)
