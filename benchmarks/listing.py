"""How long `pellucid list` takes in a fresh process: as installed, and with 100 techniques of ten third parties.

`python -m benchmarks.listing`
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure

RUNS = 15
LIMITS = {"as installed": 0.3, "with 100 more": 0.5}

PLUGIN = """from pellucid import Technique, hookimpl

@hookimpl
def pellucid_techniques():
    for index in range(10):
        yield Technique(
            f"{name}_technique_{{index}}", "explainer", "A technique of a third party.", "{name}:Class",
            uses={{"outputs", "gradients"}}, tags={{"image"}}, requires=("pytest",), reference="Nobody, 2026",
        )
"""


def main() -> None:
    """Measures both, in turn, and saves medians and the longest."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(10):
            provide(Path(folder), f"third_party_{index}")
        places = {"as installed": "", "with 100 more": folder}
        seconds: dict[str, list[float]] = {place: [] for place in places}
        lines = {place: listed(path) for place, path in places.items()}  # and warm the disk
        for _ in range(RUNS):
            for place, path in places.items():
                started = time.perf_counter()
                listed(path)
                seconds[place].append(time.perf_counter() - started)
    rows = [
        {
            "name": f"pellucid list, {place}",
            "techniques": lines[place] - 1,
            "aim": LIMITS[place],
            "seconds": {"median": round(statistics.median(taken), 3), "longest": round(max(taken), 3)},
        }
        for place, taken in seconds.items()
    ]
    print(*rows, sep="\n")
    measure.save("listing", rows)


def provide(folder: Path, name: str) -> None:
    """Installs a distribution with one plugin of ten techniques."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[pellucid]\n{name} = {name}\n")
    (folder / f"{name}.py").write_text(PLUGIN.format(name=name))


def listed(path: str) -> int:
    """Runs `pellucid list` with a folder of further distributions and returns how many lines it printed."""
    command = [sys.executable, "-m", "pellucid", "list"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return len(ran.stdout.splitlines())


if __name__ == "__main__":
    main()
