"""`pellucid explain IMAGE...`: what a model sees in images, or in texts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files, folders, patterns, or references such as demo:cat"
    )
    parser.add_argument(
        "--text", action="append", default=[], metavar="TEXT", help="a text, or a file *.txt with a text on each line"
    )
    parser.add_argument(
        "--model",
        default="demo:efficientnet_lite0",
        metavar="REF",
        help="such as torchvision:resnet50 (default %(default)s)",
    )
    parser.add_argument(
        "--technique",
        metavar="NAMES",
        help="names, with commas between; by default grad_cam, and integrated_gradients for texts",
    )
    parser.add_argument("--target", metavar="CLASS", help="an index or a name; by default the predicted class")
    parser.add_argument("--layer", metavar="NAME", help="for the techniques that look at a layer")
    parser.add_argument(
        "--out", type=Path, default=Path("explanations"), metavar="DIR", help="where results go (default %(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="write a page with everything, too")
    parser.add_argument(
        "--optimize", action="store_true", help="explain a copy of the model that is rewritten for speed"
    )
    parser.add_argument("--seed", type=int, default=0, help="what every random draw depends on")
    parser.add_argument(
        "--trust", action="store_true", help="read weights that need unpickling, which can run any code"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Explain what a model says of images or texts: a picture and a file for each technique.

    Where a technique fails the others' results are kept, and it exits with 1; with 2 if what was asked is not there.
    """
    from pellucid.cli._tables import MISTAKES, exit_code, show, summary, tell_problems, telling_what_finished
    from pellucid.pipeline import Pipeline

    with telling_what_finished(options.out):
        result = Pipeline(description(options)).run(options.out, trust=options.trust)
    mistake = next(iter(result.errors.values()), None)
    if isinstance(mistake, MISTAKES) and not result.results:
        raise mistake  # nothing to show: one line, as for any other mistake
    tell_problems(result)
    pictures = _draw(result.explanations, options.out)
    if options.json:
        print(json.dumps(summary(result) | {"pictures": [str(path) for path in pictures]}, indent=2, default=str))
    else:
        show(result)
        for path in [*pictures, *filter(None, [result.report])]:
            print(path)
    return exit_code(result)


def description(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline that the arguments mean.

    Raises:
        ParameterError: when there is no technique, a layer for techniques that all have none, or not either images or
            texts.
        UnknownTechnique, Unavailable: as `pellucid.technique`.
    """
    from pellucid.errors import ParameterError
    from pellucid.registry.lookup import technique

    if bool(options.images) == bool(options.text):
        raise ParameterError("expected either IMAGE or --text TEXT, one or several")
    asked = options.technique
    if asked is None:
        asked = "integrated_gradients" if options.text else "grad_cam"
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    if not names:
        raise ParameterError("--technique names no technique; expected names such as grad_cam,saliency")
    steps: dict[str, dict[str, Any]] = {}
    for name in names:
        record = technique(name)
        if record.kind != "explainer":
            raise ParameterError(
                f"'{name}' is of kind {record.kind}; `pellucid list --kind explainer` shows what explains"
            )
        steps[record.name] = {"use": name}
        if options.layer is not None and "layer" in [parameter.name for parameter in record.parameters()]:
            steps[record.name]["layer"] = options.layer
    if options.layer is not None and not any("layer" in step for step in steps.values()):
        raise ParameterError(f"--layer: none of {', '.join(names)} looks at a layer")
    return {
        "model": options.model,
        "data": {"texts": options.text} if options.text else {"images": list(map(_absolute, options.images))},
        "target": _target(options.target),
        "seed": options.seed,
        "optimize": options.optimize,
        "report": options.report,
        "steps": steps,
    }


def _absolute(image: str) -> str:
    from pellucid.data.references import looks_like_reference

    return image if looks_like_reference(image) else str(Path(image).expanduser())


def _target(text: str | None) -> int | str | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return text


def _draw(explanations: dict[str, Any], folder: Path) -> list[Path]:
    """Draws each explanation of all images to one picture."""
    from pellucid.errors import SavedFileError
    from pellucid.results import draw

    paths = []
    for name, one in explanations.items():
        path = folder / f"{name}.png"
        try:
            path.write_bytes(draw.png(one.plot(examples=range(len(one))), 160))
        except OSError as error:
            raise SavedFileError(f"cannot write '{path}': {error.strerror or error}") from error
        paths.append(path)
    return paths
