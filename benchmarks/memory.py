"""The greatest memory that techniques take over the model's own, each in a process of its own.

`python -m benchmarks.memory`
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import measure

WORK = {
    "integrated_gradients, 50 steps": ("integrated_gradients", {"n_steps": 50}),
    "smoothgrad, 32 samples": ("smoothgrad", {"n_samples": 32}),
    "occlusion, 169 windows": ("occlusion", {}),
    "rise, 500 masks": ("rise", {"n_masks": 500}),
    "score_cam, 320 channels": ("score_cam", {"layer": "_blocks.15"}),
}


def _child(name: str, parameters: dict[str, Any]) -> None:
    """Prints the mebibytes over the model's, as the operating system counts them."""
    import resource
    from pathlib import Path

    import pellucid
    from benchmarks import models

    model, one = models.build("efficientnet_lite0"), models.photos(1)
    # A first forward loads the libraries and their workspaces, which are not the technique's.
    pellucid.explain(model, one, "constant")
    technique = pellucid.create(name, **parameters)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    pellucid.explain(model, one, technique, target=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"over_model_mib": (peak - before) / 2**20}))


def main() -> None:
    if len(sys.argv) > 1:
        _child(sys.argv[1], json.loads(sys.argv[2]))
        return
    rows = []
    for title, (name, parameters) in WORK.items():
        command = [sys.executable, "-m", "benchmarks.memory", name, json.dumps(parameters)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"name": title, "aim": 1024, **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    measure.save("memory", rows)


if __name__ == "__main__":
    main()
