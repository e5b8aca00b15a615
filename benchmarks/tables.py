"""Writes the README's tables from what the benchmarks measured and the registry lists.

`python -m benchmarks.tables` rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`; with `--check` it
only says whether the README is up to date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

README = Path(__file__).parent.parent / "README.md"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def speed() -> str:
    """Ratios to the raw cost of the passes."""

    def peers(row: dict[str, Any]) -> str:
        return ", ".join(
            f"{name} {ratio:.2f}"
            for name, ratio in row["ratio"].items()
            if name != "limit" and not name.startswith("pellucid")
        )

    return _table(
        ["work", "limit, s", "aim", "Pellucid", "Pellucid, `optimize=True`", "peers"],
        (
            [
                row["name"],
                f"{row['seconds']['limit']:.3f}",
                f"{row['aim']:.2f}",
                f"**{row['ratio']['pellucid']:.2f}**",
                f"{row['ratio']['pellucid, optimize']:.2f}",
                peers(row),
            ]
            for row in _rows("speed")
        ),
    )


def memory() -> str:
    """Memory over the model."""
    return _table(
        ["work, EfficientNet-Lite0 at 224 x 224", "MiB over the model"],
        ([row["name"], f"{row['over_model_mib']:.0f}"] for row in _rows("memory")),
    )


def layers() -> str:
    """How many architectures `layer="auto"` serves."""
    rows = _rows("layers")
    good = [row for row in rows if row["finite"] and row["varies"]]
    theirs = [row for row in rows if not row["name"].startswith("timm:")]
    return (
        f'`grad_cam` with `layer="auto"` and no other setting: {len(good)} of {len(rows)} architectures give a '
        f"finite map that varies ({len(theirs)} classifiers of torchvision, {len(rows) - len(theirs)} models of timm)."
    )


def listing() -> str:
    """How long `pellucid list` takes."""
    plain, more = _rows("listing")
    return (
        f"`pellucid list`, in a fresh process: {plain['seconds']['median']:.2f} s with the {plain['techniques']} "
        f"built-in techniques (aim {plain['aim']:.1f}), {more['seconds']['median']:.2f} s with 100 more of ten other "
        f"distributions (aim {more['aim']:.1f}); the longest of 15 runs {more['seconds']['longest']:.2f} s."
    )


def rules() -> str:
    """What rule passes cost, beside zennit and integrated gradients with 50 steps."""

    def told(row: dict[str, Any]) -> str:
        return ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratio"].items() if ratio != 1)

    return _table(
        ["rule pass", "relative to", "aim", "ratios"],
        ([row["name"], _limit(row), f"{row['aim']:.2f}", told(row)] for row in _rows("rules")),
    )


def _limit(row: dict[str, Any]) -> str:
    (name,) = (name for name, ratio in row["ratio"].items() if ratio == 1)
    return str(name)


def exactness() -> str:
    """How exactly what is carried back sums to what it explains."""
    kept, lifted = _rows("conservation"), _rows("differences")

    def most(rows: list[dict[str, Any]], column: str) -> str:
        return f"{max(abs(row[column]) for row in rows):.0e}"

    ends = f"from {kept[0]['name']} to {kept[-1]['name']}"
    exact, single = most(lifted, "rescale, float64"), most(lifted, "rescale, float32")
    return (
        f"Over {len(kept)} architectures of torchvision, {ends}, without code for any of them, in double precision "
        f"unless said: relevance without biases is conserved to {most(kept, 'lrp_0')} by LRP-0 and to "
        f"{most(kept, 'z_plus')} by z+; DeepLIFT's values sum to the score's rise to {exact} ({single} in single "
        "precision); guided backprop differs from the plain gradient by at least "
        f"{min(row['guided'] for row in lifted):.0%} of its maximum."
    )


def techniques() -> str:
    """What the registry lists."""
    import pellucid

    return _table(
        ["technique", "kind", "what it does", "paper"],
        (
            [f"`{record.name}`", record.kind, record.summary, record.reference]
            for record in sorted(pellucid.techniques(distribution="pellucid"), key=lambda r: (r.kind, r.plugin))
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "memory": memory,
    "layers": layers,
    "listing": listing,
    "rules": rules,
    "exactness": exactness,
    "techniques": techniques,
}


def rendered(text: str) -> str:
    """A text with its tables written anew."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    text = README.read_text()
    new = rendered(text)
    if "--check" in sys.argv:
        sys.exit(0 if new == text else "the README's tables are out of date: run python -m benchmarks.tables")
    README.write_text(new)


if __name__ == "__main__":
    main()
