"""`pellucid bench`: what techniques cost on a model, held against the raw cost of their passes."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        default="demo:efficientnet_lite0",
        metavar="MODEL",
        help="such as torchvision:resnet50 (default %(default)s)",
    )
    parser.add_argument(
        "--technique",
        default="saliency,grad_cam,integrated_gradients",
        metavar="NAMES",
        help="names, with commas between (default %(default)s)",
    )
    parser.add_argument(
        "--size", type=int, default=224, metavar="PIXELS", help="height and width of the inputs (default 224)"
    )
    parser.add_argument("--examples", type=int, default=1, metavar="N", help="how many inputs (default 1)")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="timed rounds; the median counts (default 5)"
    )
    parser.add_argument(
        "--optimize", action="store_true", help="explain a copy of the model that is rewritten for speed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Time techniques on a model, and the raw passes they need, in turn.

    A ratio of 1.0 says that a technique costs just its passes. The raw passes run one example at a time, with the
    parameters locked.
    """
    import torch

    import pellucid
    from pellucid.errors import ParameterError

    for name in ("size", "examples", "repeats"):
        if getattr(options, name) < 1:
            raise ParameterError(f"--{name} is {getattr(options, name)}; expected at least 1")
    techniques = {name.strip(): pellucid.create(name.strip()) for name in options.technique.split(",") if name.strip()}
    if not techniques:
        raise ParameterError("--technique names no technique; expected names such as grad_cam,saliency")
    adapter = pellucid.adapt(pellucid.load_model(options.model), optimize=options.optimize)
    inputs = torch.randn(options.examples, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    raw = _raw_passes(adapter, inputs[:1])
    rows = []
    for name, technique in techniques.items():
        rows.append({"technique": name, **_timed(adapter, inputs, technique, raw, options.repeats)})
        if not options.json:
            print(f"{name}: done", file=sys.stderr)
    if options.json:
        print(json.dumps({"model": adapter.name, "examples": options.examples, "rows": rows}, indent=2))
    else:
        _print(rows)


def _timed(
    adapter: Any, inputs: Any, technique: Any, raw: dict[str, Callable[[], None]], repeats: int
) -> dict[str, Any]:
    """What a technique takes, and what its passes take raw."""
    import pellucid

    made: list[Any] = []

    def explain() -> None:
        made.append(pellucid.explain(adapter, inputs, technique, progress=False))

    seconds = _median({"technique": explain, **raw}, repeats)
    passes = made[-1].meta.passes
    # A backward pass follows a forward one, which the gradient's own time holds already.
    forwards = passes["forward"] - passes["backward"]
    least = len(inputs) * (forwards * seconds["forward"] + passes["backward"] * seconds.get("gradient", 0.0))
    return {
        "forward": passes["forward"],
        "backward": passes["backward"],
        "seconds": seconds["technique"],
        "raw_seconds": least,
        "ratio": seconds["technique"] / least if least else None,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from pellucid.cli.list import table

    lines = [
        (
            row["technique"],
            f"{row['forward']:g}",
            f"{row['backward']:g}",
            f"{row['seconds']:.3f}",
            f"{row['raw_seconds']:.3f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    print(table(("TECHNIQUE", "FORWARD", "BACKWARD", "SECONDS", "RAW PASSES", "RATIO"), lines))


def _raw_passes(adapter: Any, one: Any) -> dict[str, Callable[[], None]]:
    """One example's forward and, where the model has gradients, its forward and backward."""
    import torch

    from pellucid.engine.guard import guarded

    module = adapter.module

    def forward() -> None:
        with guarded(module, 0), torch.no_grad():
            module(one)

    def gradient() -> None:
        with guarded(module, 0):
            leaf = one.clone().requires_grad_()
            torch.autograd.grad(adapter.logits(module(leaf)).amax(dim=1).sum(), leaf)

    return {"forward": forward, "gradient": gradient} if "gradients" in adapter.offers else {"forward": forward}


def _median(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if repeat:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}
