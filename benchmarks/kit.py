"""How long the conformance kit takes: seconds by family of techniques, and all together, on one thread.

`python -m benchmarks.kit [--only FAMILY ...] [--details N]`
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch

import pellucid
from benchmarks import measure
from pellucid.testing.fronts import CHECKS, Trial
from pellucid.testing.subject import subject_of


def main(only: list[str], details: int) -> None:
    """Runs every check of the chosen families' techniques; prints and saves what they took."""
    by_family: dict[str, float] = defaultdict(float)
    by_technique: dict[str, float] = defaultdict(float)
    by_check: dict[str, float] = defaultdict(float)
    failed: list[str] = []
    for record in pellucid.techniques(distribution="pellucid", available=True):
        if only and record.plugin not in only:
            continue
        started = time.perf_counter()
        subject = subject_of(record)
        for law in CHECKS:
            if not law.excuse(subject):
                begun = time.perf_counter()
                result = Trial(subject, law).result()
                by_check[law.sentence] += time.perf_counter() - begun
                if result.status == "fail":
                    failed.append(f"{record.name}: {law.sentence}")
        by_technique[record.name] = time.perf_counter() - started
        by_family[record.plugin] += by_technique[record.name]
    print(f"{sum(by_family.values()):.1f} s, {len(by_technique)} techniques; failed: {failed or 'none'}")
    for counts in (by_family, by_technique, by_check):
        for name, seconds in slowest(counts)[:details]:
            print(f"{seconds:7.2f}  {name}")
        print()
    if not only:
        whole = {"name": "all", "seconds": round(sum(by_family.values()), 1), "techniques": len(by_technique)}
        measure.save("kit", [whole, *({"name": name, "seconds": round(s, 1)} for name, s in slowest(by_family))])


def slowest(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """The names with their seconds, from the longest to the shortest."""
    return sorted(seconds.items(), key=lambda one: -one[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[], help="families, such as gradients cam")
    parser.add_argument("--details", type=int, default=12, help="how many of the slowest are printed")
    given = parser.parse_args()
    main(given.only, given.details)
