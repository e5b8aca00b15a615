"""`pellucid doctor [MODEL]`: what works here, what works with a model, and what is wrong."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pellucid.cli.list import table
from pellucid.registry import registry

SHOWN_LAYERS = 24


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model to examine, such as torchvision:resnet50")
    parser.add_argument(
        "--shape", metavar="N,N,...", help="the shape of one input, where it cannot be found out: 3,64,64"
    )
    parser.add_argument("--text", metavar="TEXT", help="one input, for a model that reads texts")
    parser.add_argument("--layers", action="store_true", help="list all layers, not only the outer ones")
    parser.add_argument(
        "--trust", action="store_true", help="read weights that need unpickling, which can run any code"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Tell what works here and what is wrong: versions, plugins, extras.

    With a model also its layers, which techniques work on it and why others do not, and how long its passes take.
    Exits with 1 if a plugin has a problem.
    """
    from pellucid.cli._checkup import environment, examine, missing_extras
    from pellucid.errors import ParameterError

    shape: tuple[int, ...] | None = None
    if options.shape is not None:
        try:
            shape = tuple(int(side) for side in options.shape.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise ParameterError(f"--shape {options.shape}: expected the sides of one input, such as 3,64,64")
    if shape is not None and options.text is not None:
        raise ParameterError("--shape and --text: expected one of them")
    known = registry()
    told: dict[str, Any] = {
        "environment": environment(),
        "techniques": len(known.records),
        "problems": [problem.to_dict() for problem in known.problems],
        "unavailable": {
            known.name_of(record): record.hint for record in known.records.values() if not record.available
        },
        "missing_extras": missing_extras(),
    }
    if options.model is not None:
        if not options.json:
            print(f"examining {options.model} ...", file=sys.stderr)
        told["model"] = examine(options.model, shape, text=options.text, trust=options.trust)
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        _print(told, [str(problem) for problem in known.problems], everything=options.layers)
    return 1 if known.problems else 0


def _print(told: dict[str, Any], problems: list[str], *, everything: bool) -> None:
    print("ENVIRONMENT")
    for name, value in told["environment"].items():
        print(f"  {name:<14}{value}")
    print(f"\nPLUGINS\n  {told['techniques']} techniques")
    for problem in problems:
        print(f"  problem: {problem}")
    for name, hint in told["unavailable"].items():
        print(f"  {name} is unavailable. Try: {hint}")
    for extra, missing in told["missing_extras"].items():
        print(f"  extra '{extra}' is not whole, without {', '.join(missing)}. Try: pip install 'pellucid[{extra}]'")
    if not problems:
        print("  no problems")
    if "model" in told:
        print()
        _print_model(told["model"], everything=everything)


def _print_model(model: dict[str, Any], *, everything: bool) -> None:
    print("MODEL")
    for name in ("name", "class", "parameters", "input", "output", "classes", "offers", "mode", "device"):
        value = model[name]
        print(f"  {name:<14}{', '.join(value) if isinstance(value, list) else value}")
    for note in model["notes"]:
        print(f"  {'note':<14}{note}")
    if model["layers"]:
        layers = [layer for layer in model["layers"] if everything or layer["outer"] or layer["auto"]]
        shown = (
            layers if everything else [*layers[:SHOWN_LAYERS], *(one for one in layers[SHOWN_LAYERS:] if one["auto"])]
        )
        rows = [
            (f"  {'>' if one['auto'] else ' '} {one['name']}", " x ".join(map(str, one["shape"])), one["layout"] or "-")
            for one in shown
        ]
        print(f"\n{table(('  LAYER', 'SHAPE', 'LAYOUT'), rows)}")
        if len(shown) < len(model["layers"]):
            print(f"    and {len(model['layers']) - len(shown)} more; --layers shows all")
    print("  > is what layer='auto' means" if model["auto"] else f"  layer='auto': {model['auto_problem']}")
    print("\nSPEED")
    for name, seconds in model["seconds"].items():
        print(f"  one {name:<9}{1000 * seconds:8.1f} ms an example, in batches of {model['batch_size'][name]}")
    words = {True: "works", False: "no: ", None: "not tried: "}
    rows = [(f"  {one['name']}", one["kind"], f"{words[one['works']]}{one['why']}") for one in model["techniques"]]
    print(f"\n{table(('  TECHNIQUE', 'KIND', 'WORKS'), rows)}")
