"""`pellucid check NAME_OR_PACKAGE`: the conformance kit on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from pellucid.errors import PluginError, UnknownTechnique, nearest
from pellucid.registry import Registry, Technique, registry
from pellucid.registry.lookup import technique

if TYPE_CHECKING:
    from pellucid.testing import Report


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="a technique, or a plugin by its entry point, distribution or package")
    parser.add_argument("--seed", type=int, default=0, help="what every random draw of the checks depends on")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Check a technique, or all techniques of a plugin, against the contract; exit with 1 if any check fails."""
    known = registry()
    chosen = _chosen(options.name, known)
    # One technique is not blamed for what else is wrong with its plugin.
    alone = options.name in known.records
    providers = set() if alone else {(record.plugin, record.distribution) for record in chosen}
    problems = [problem for problem in known.problems if (problem.plugin, problem.distribution) in providers]
    from pellucid.testing import check_technique

    ok, told = not problems, []
    for problem in problems:
        if not options.json:
            print(f"FAIL  {problem}")
    for record in chosen:
        if not record.available:
            told.append({**_named(record), "ok": None, "hint": record.hint, "results": []})
            if not options.json:
                print(f"{record.name} of {record.provider}: skipped, it is unavailable. Try: {record.hint}")
            continue
        try:
            report = check_technique(known.name_of(record), seed=options.seed)
        except PluginError as error:
            if len(chosen) == 1:
                raise
            ok = False
            told.append({**_named(record), "ok": False, "hint": str(error), "results": []})
            if not options.json:
                print(f"FAIL  {error}")
            continue
        ok = ok and report.ok
        told.append({**_named(record), "ok": report.ok, "results": [list(result) for result in report.results]})
        if not options.json:
            _print(record, report)
    if options.json:
        listed = [problem.to_dict() for problem in problems]
        print(json.dumps({"ok": ok, "techniques": told, "problems": listed}, indent=2))
    return 0 if ok else 1


def _chosen(name: str, known: Registry) -> list[Technique]:
    """The technique of this name, or else all those of the plugin, distribution or package of this name."""
    if name in known.records:
        return [known.records[name]]
    found = known.provided_by(name)
    if found:
        return found
    try:
        return [technique(name)]
    except UnknownTechnique as error:
        broken = [str(problem) for problem in known.problems if name in (problem.plugin, problem.distribution)]
        if broken:
            raise UnknownTechnique(f"plugin {name!r} has no technique that works. {' '.join(broken)}") from error
        raise UnknownTechnique(f"{error} Nor is there a plugin {name!r}.{nearest(name, known.origins())}") from error


def _named(record: Technique) -> dict[str, Any]:
    return {"name": record.name, "provider": record.provider}


def _print(record: Technique, report: Report) -> None:
    """The checks that were for this technique; the skipped ones are for others, and only counted."""
    words = ("pass", "fail", "known", "skip")
    counts = {word: sum(status == word for _, status, _ in report.results) for word in words}
    print(
        f"{record.name} of {record.provider}: {', '.join(f'{count} {word}' for word, count in counts.items() if count)}"
    )
    alike = Counter(detail for _, status, detail in report.results if status == "fail")
    for check, status, detail in report.results:
        if status == "skip" or (status == "fail" and not alike[detail]):
            continue
        mark = status.upper() if status == "fail" else status
        # What breaks a technique as a whole breaks many checks, and is told once.
        others = alike.pop(detail) - 1 if status == "fail" else 0
        more = f" (and so do {others} more)" if others > 1 else " (and so does 1 more)" if others else ""
        print(f"  {mark:<5} {check}{f': {detail}' if detail else ''}{more}")
    sys.stdout.flush()
