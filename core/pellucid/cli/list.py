"""`pellucid list`: which techniques there are. Imports nothing heavy unless a model is named."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence

from pellucid.errors import ParameterError, nearest
from pellucid.registry import Problem, Technique, registry
from pellucid.registry.lookup import techniques


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--kind", help="only explainers, evaluators or projectors")
    parser.add_argument("--tag", action="append", default=[], help="only those with this tag; may be given again")
    parser.add_argument(
        "--works-with", metavar="MODEL", help="only those that a model, such as torchvision:resnet50, can serve"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """List the techniques with their kind, what they ask of a model, their provider and a summary."""
    model = None
    if options.works_with is not None:
        from pellucid.data.references import load_model

        model = load_model(options.works_with)
    kind = options.kind.removesuffix("s") if options.kind else None
    known = registry()
    tags = {tag for record in known.records.values() for tag in record.tags}
    for tag in options.tag:
        if tag not in tags:
            known_tags = f"The tags are {', '.join(sorted(tags))}."
            raise ParameterError(f"no technique has the tag {tag!r}.{nearest(tag, tags)} {known_tags}")
    found = techniques(kind, works_with=model, tags=options.tag)
    if options.json:
        listed = [{"listed_as": known.name_of(record), **record.to_dict()} for record in found]
        print(
            json.dumps({"techniques": listed, "problems": [problem.to_dict() for problem in known.problems]}, indent=2)
        )
        return
    rows = [(known.name_of(record), record.kind, _needs(record), record.provider, record.summary) for record in found]
    print(table(("NAME", "KIND", "NEEDS", "PROVIDER", "SUMMARY"), rows))
    sys.stdout.flush()
    for line in _remarks(found, known.problems):
        print(line, file=sys.stderr)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, each line cut to the terminal's width where there is a terminal."""
    lines = [tuple(head), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if sys.stdout.isatty():
        limit = max(60, shutil.get_terminal_size().columns)
        text = [line if len(line) <= limit else f"{line[: limit - 1]}…" for line in text]
    return "\n".join(text)


def _needs(record: Technique) -> str:
    needs = sorted(record.uses - {"outputs"} or record.uses)  # what gives anything else gives outputs too
    missing = record.missing
    needs += [f"{name} (missing)" if name in missing else name for name in record.requires]
    return ", ".join(needs) or "-"


def _remarks(found: Sequence[Technique], problems: Sequence[Problem]) -> list[str]:
    """What is wrong: unavailable techniques, then plugins with problems in one line."""
    remarks = [f"{record.name} is unavailable. Try: {record.hint}" for record in found if not record.available]
    if problems:
        more = f" and {len(problems) - 1} more; `pellucid doctor` tells all" if len(problems) > 1 else ""
        remarks.append(f"A plugin has a problem: {problems[0]}{more}")
    return remarks
