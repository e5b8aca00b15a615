"""The conformance kit: what a run costs for each family, and whether it raises a false alarm under other seeds.

`python -m benchmarks.conformance [--seeds 20] [FAMILY ...]`: every technique of the families, or of all, is checked
under each seed, one technique after the other. Single-threaded, so that the seconds of the processor that are printed
depend little on what else runs; a second thread saves little on networks as small as the kit's.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import pellucid
from benchmarks import measure
from pellucid.testing import check_technique

FIRST = ("gradients", "cam", "controls", "occlusion", "feature_ablation", "rise", "pixel_flipping", "pca")
"""The families and techniques that the limit of 60 seconds is for; `guided_grad_cam` came with the rules."""
LIMIT = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=FIRST, help="plugins or techniques; 'all' is every one")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [
        record.name
        for record in pellucid.techniques(distribution="pellucid", available=True)
        if {"all", record.plugin, record.name} & set(options.families)
    ]
    rows = [run(names, seed) for seed in range(options.seeds)]
    taken = [row["seconds"] for row in rows]
    told = {
        "name": "all techniques" if "all" in options.families else ", ".join(options.families),
        "techniques": len(names),
        "checks": rows[0]["checks"],
        "seeds": options.seeds,
        "seconds": {"most": max(taken), "least": min(taken)},
        "false alarms": [alarm for row in rows for alarm in row["alarms"]],
    }
    print(told)
    measure.save("conformance", measure.merged("conformance", [told]))


def run(names: list[str], seed: int) -> dict[str, Any]:
    """Checks techniques under a seed: the processor's seconds, how many checks were made, and which failed."""
    started, checks, alarms = time.process_time(), 0, []
    for name in names:
        report = check_technique(name, seed=seed)
        checks += report.count("pass") + report.count("known")
        alarms += [f"seed {seed}, {name}: {failure.check}" for failure in report.failures]
    seconds = round(time.process_time() - started, 1)
    print(f"seed {seed}: {seconds} s, {checks} checks, failed: {alarms or 'none'}", flush=True)
    return {"seconds": seconds, "checks": checks, "alarms": alarms}


if __name__ == "__main__":
    main()
