"""Maps of training dynamics on digits, scored beside their controls (what recording costs: benchmarks.recording).

python -m benchmarks.dynamics            # the table of maps: 11 captures of 300 digits, two recipes
python -m benchmarks.dynamics size       # 20 captures x 10,000 points x 128 features by the default map
python -m benchmarks.dynamics pca        # PCA beside scikit-learn's randomised SVD
"""

from __future__ import annotations

import itertools
import resource
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
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
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 128, generator=generator) * 3
    moves = torch.randn(10000, 128, generator=generator) * 0.5
    start = torch.randn(10000, 128, generator=generator)
    frames = [start + centres[torch.arange(10000) % 10] * t / 19 + moves * t / 19 for t in range(20)]
    states = torch.stack(frames)
    began = time.perf_counter()
    pellucid.project(states, "dynamic_tsne")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": "20 x 10000 x 128", "seconds": round(seconds, 1), "GiB": round(peak, 2)}


def pca() -> list[dict[str, object]]:
    """PCA beside the randomised SVD of scikit-learn on the same matrices, which decay but for the last."""
    rows = []
    for count, width, decays in (
        (200_000, 128, True),
        (10_000, 512, True),
        (8_000, 2_000, True),
        (10_000, 4_000, False),
    ):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(count, width, generator=generator)
        if decays:
            states *= torch.arange(1, width + 1).rsqrt()
        array = states.numpy()
        contenders = {
            "randomised SVD": lambda array=array: SVD(2, svd_solver="randomized", random_state=0).fit_transform(array),
            "pellucid": lambda states=states: pellucid.project(states, "pca"),
        }
        title = f"PCA, {count} x {width}{'' if decays else ', flat spectrum'}"
        rows.append({"name": title, "aim": 1.2} | ratios(contenders, "randomised SVD", repeats=3))  # type: ignore[arg-type]
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    what = sys.argv[1] if len(sys.argv) > 1 else "table"
    found = {"table": table, "pca": pca, "size": lambda: [size()]}[what]()
    save("dynamics", merged("dynamics", found))
    print(found, RESULTS)
