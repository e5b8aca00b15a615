"""`pellucid run PIPELINE.yaml`: a pipeline of named steps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.pipeline import Pipeline


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("pipeline", type=Path, metavar="PIPELINE.yaml", help="the file that describes the steps")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go, by default a folder named as the file"
    )
    parser.add_argument(
        "--trust", action="store_true", help="read weights that need unpickling, which can run any code"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Run a pipeline from a YAML file: results, scores, a report and run.json go to a folder.

    Where a step fails the others' results are kept, and it exits with 1; with 2 if what it asked for is not there.
    """
    from pellucid.pipeline import Pipeline

    pipeline = Pipeline.from_yaml(options.pipeline)
    out = options.out or Path(options.pipeline.stem)
    return execute(pipeline, out, as_json=options.json, trust=options.trust)


def execute(pipeline: Pipeline, out: Path, *, as_json: bool, trust: bool = False) -> int:
    """Runs a pipeline with bars on a terminal, prints what it gave, and returns the exit code."""
    from pellucid.cli._tables import exit_code, show, summary, tell_problems, telling_what_finished

    with telling_what_finished(out):
        result = pipeline.run(out, trust=trust)
    tell_problems(result)
    if as_json:
        print(json.dumps(summary(result), indent=2, default=str))
    else:
        show(result)
        cost = result.cost
        print(f"{cost.forward} forward and {cost.backward} backward passes, {result.seconds:.1f} s in all.")
        for page in result.pages.values():
            print(f"Map: {page}")
        print(f"Report: {result.report}" if result.report is not None else f"Results: {result.folder}")
    return exit_code(result)
