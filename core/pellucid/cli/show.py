"""`pellucid show NAME`: everything that is known of one technique."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from pellucid.cli._types import type_names
from pellucid.errors import PluginError, Unavailable
from pellucid.registry.lookup import technique


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="the technique, such as grad_cam or some-distribution:grad_cam")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> None:
    """Show one technique: its record, its parameters with their defaults, and whether it can be used."""
    record = technique(options.name)
    described = record.to_dict() | {"available": record.available}
    try:
        loaded = record.load()
    except (Unavailable, PluginError) as error:
        described |= {"available": False, "error": str(error)}
    else:
        types = type_names(loaded, record.parameters())
        described["parameters"] = [_parameter(one, types[one.name]) for one in record.parameters()]
        described["description"] = inspect.getdoc(loaded) or ""
    print(json.dumps(described, indent=2) if options.json else _page(described))


def _parameter(parameter: inspect.Parameter, kind: str) -> dict[str, Any]:
    required = parameter.default is parameter.empty
    return {
        "name": parameter.name,
        "type": kind,
        "required": required,
        "default": None if required else repr(parameter.default),
    }


def _page(described: dict[str, Any]) -> str:
    lines = [f"{described['name']}: {described['summary']}", ""]
    for field in ("title", "kind", "explains", "output", "uses", "tags", "better", "reference", "requires", "target"):
        value = described[field]
        text = ", ".join(value) if isinstance(value, list) else value
        if text:
            lines.append(f"  {field:<10}  {text}")
    provider = f"{described['distribution']} {described['version']}".strip()
    lines.append(f"  {'provider':<10}  {provider or 'registered by program'}, plugin {described['plugin']}")
    state = "yes" if described["available"] else f"no; {described['hint'] or described.get('error', '')}"
    lines += [f"  {'available':<10}  {state}", ""]
    if "error" in described:
        return "\n".join([*lines, described["error"]])
    lines.append("Parameters" if described["parameters"] else "It has no parameters.")
    for parameter in described["parameters"]:
        default = "required" if parameter["required"] else f"default {parameter['default']}"
        lines.append(f"  {parameter['name']}: {parameter['type'] or 'Any'}, {default}")
    return "\n".join([*lines, "", described["description"]])
