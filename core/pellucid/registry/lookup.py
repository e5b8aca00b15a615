"""What users ask the registry: which techniques there are, one of them by name, an instance of it."""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import fields
from typing import Any, get_args

from pellucid.errors import ParameterError, UnknownTechnique, nearest
from pellucid.registry.discovery import registry
from pellucid.registry.technique import Kind, Technique

_FILTERS = sorted({field.name for field in fields(Technique)} - {"kind"} | {"available"})


def techniques(kind: Kind | None = None, works_with: object = None, **filters: object) -> list[Technique]:
    """Lists the techniques that pass all filters. Without `works_with` this imports no heavy library.

    Args:
        kind: "explainer", "evaluator" or "projector".
        works_with: a model or an `Adapter`; keeps the techniques that ask no more than it offers.
        **filters: values of a record's fields, or `available`. For a field of several words (`tags`, `uses`,
            `requires`) a word or a collection of words that it must contain; for any other field a value or a
            collection of accepted values: `techniques(tags={"image"}, output=["attribution", "concepts"])`.

    Returns:
        Records in the order of their plugins, Pellucid's own first.

    Raises:
        ParameterError: if a filter or the kind is unknown.
        ModelError: if nothing can adapt the model.
    """
    if kind is not None and kind not in get_args(Kind):
        known = ", ".join(map(repr, get_args(Kind)))
        raise ParameterError(
            f"no kind {kind!r} of technique.{nearest(str(kind), get_args(Kind))} The kinds are {known}."
        )
    for name in filters:
        if name not in _FILTERS:
            raise ParameterError(f"no filter {name!r}.{nearest(name, _FILTERS)} The filters are {', '.join(_FILTERS)}.")
    found = [
        record
        for record in registry().records.values()
        if kind in (None, record.kind) and all(_passes(record, name, wanted) for name, wanted in filters.items())
    ]
    if works_with is None:
        return found
    from pellucid.api import adapt

    offers = adapt(works_with).offers
    return [record for record in found if record.uses <= offers]


def technique(name: str) -> Technique:
    """The record of one technique, by its name or as "distribution:name".

    Raises:
        UnknownTechnique: if there is none; the message has the nearest names, and says if the technique is disabled or
            which plugins could not be loaded.
    """
    known = registry()
    record = known.records.get(name)
    if record is None:
        record = next((other for other in known.records.values() if other.qualified == name), None)
    if record is not None:
        return record
    for disabled in known.disabled.values():
        if name in (disabled.name, disabled.qualified):
            raise UnknownTechnique(f"technique {name!r} of {disabled.provider} is disabled by PELLUCID_DISABLE.")
    message = f"no technique {name!r}.{nearest(name, known.records)} `pellucid list` shows all."
    absent = [f"{plugin} (disabled by PELLUCID_DISABLE)" for plugin in known.blocked]
    absent += [problem.headline for problem in known.problems if problem.loses]
    if absent:
        message += f" It may come from what is missing: {'; '.join(absent)}. `pellucid doctor` tells more."
    raise UnknownTechnique(message)


def title(name: str, technique: str = "") -> str:
    """How a technique is written, "Grad-CAM" for "grad_cam"; the words of a name that the registry does not know.

    A number that tells several of one technique apart stays: "Grad-CAM 2".

    Args:
        name: a technique's, or a result's.
        technique: of which the result is, where that is known: a result of Grad-CAM that is called "cam" is not CAM's.
    """
    known = registry().records
    base, _, number = name.rpartition("_")
    if name in known and technique in ("", name):
        return known[name].title
    if name not in known and base in known and number.isdigit() and technique in ("", base):
        return f"{known[base].title} {number}"
    return name.replace("_", " ")


def create(technique: str | Technique | object, /, **params: Any) -> Any:
    """Makes an instance of a technique with keyword parameters: `create("grad_cam", layer="layer4")`.

    Args:
        technique: a name, a record, or an instance, which is given back as it is.
        **params: the technique's parameters; `pellucid show NAME` lists them.

    Raises:
        UnknownTechnique: if there is no technique of this name.
        Unavailable: if it needs a distribution that is not installed; the message says what installs it.
        ParameterError: if a parameter is unknown, missing or refused, or an instance comes with parameters.
        PluginError: if its code cannot be loaded.
    """
    if isinstance(technique, str):
        technique = _named(technique)
    if isinstance(technique, Technique):
        return technique.create(**params)
    if isinstance(technique, type):
        raise ParameterError(f"{technique.__name__} is a class; give an instance of it or a technique's name.")
    if params:
        raise ParameterError(f"{type(technique).__name__} is made already; set {', '.join(params)} when you make it.")
    return technique


def register(plugin: object, name: str = "local") -> list[Technique]:
    """Adds a plugin by program, for example in a notebook, and returns the records of its techniques.

    Args:
        plugin: a module or object with functions that `@hookimpl` decorates.
        name: of the plugin; registering under the same name again replaces what was there.

    Raises:
        PluginError: if anything is wrong with the plugin; nothing of it is kept then.
    """
    return registry().register(plugin, name)


_named = technique  # `create` has a parameter of this name


def _passes(record: Technique, name: str, wanted: object) -> bool:
    value = getattr(record, name)
    if isinstance(value, Set | tuple):
        words = {wanted} if isinstance(wanted, str) or not isinstance(wanted, Collection) else set(wanted)
        return words <= set(value)
    if isinstance(wanted, Collection) and not isinstance(wanted, str):
        return value in wanted
    return bool(value == wanted)
