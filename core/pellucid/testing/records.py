"""Checks of the record, the class and its parameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import subprocess
import sys
import typing
from typing import Any

import torch

from pellucid.errors import ParameterError
from pellucid.protocol.explainer import Evaluator, Explainer, Projector
from pellucid.protocol.parameters import Parametrised
from pellucid.registry import Technique
from pellucid.testing.case import Case
from pellucid.testing.laws import INSTALLED, LAWS, RECORDED, Group, require
from pellucid.testing.subject import AXIOMS

KINDS = {"explainer": Explainer, "evaluator": Evaluator, "projector": Projector}
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "pydantic", "umap", "numba")

record_check = Group("Record and parameters", frozenset(KINDS))


@record_check("has a record that says in one sentence what it does, what it explains and what it answers", RECORDED)
def complete_record(case: Case) -> None:
    """The fields that tables are made of."""
    record = _record(case)
    first, last = record.summary[:1], record.summary[-1:]
    require(first == first.upper() and last == ".", f"summary={record.summary!r} is no sentence")
    for name in ("explains", "output"):
        require(getattr(record, name), f"{name} is empty; expected a word such as 'decision' or 'attribution'")


@record_check("is a frozen dataclass of its record's kind", once=True)
def right_class(case: Case) -> None:
    """`Explainer`, `Evaluator` or `Projector`."""
    cls, kind = case.subject.cls, case.subject.kind
    if case.subject.record is not None:
        require(case.subject.record.load() is cls, f"{case.subject.record.target} loads another class")
    require(issubclass(cls, KINDS[kind]), f"{cls.__name__} is no {KINDS[kind].__name__}")
    made = getattr(cls, "__dataclass_params__", None)
    frozen = made is not None and made.frozen
    require(frozen, f"{cls.__name__} is no frozen dataclass; write @dataclass(frozen=True, eq=False) above it")


@record_check("has a docstring whose first line stands alone", once=True)
def docstring(case: Case) -> None:
    """One sentence, then a blank line."""
    cls = case.subject.cls
    text = cls.__doc__ or ""
    require(not text.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring of its own")
    first, _, rest = text.partition("\n")
    require(first.strip().endswith("."), f"the first line {first.strip()!r} does not end as a sentence does")
    require(not rest.strip() or not rest.partition("\n")[0].strip(), "no blank line follows the first line")


@record_check("belongs to a plugin whose import needs none of the heavy libraries", INSTALLED, once=True)
def light_import(case: Case) -> None:
    """`pellucid list` imports every plugin."""
    heavy = _imports(_entry_module(_record(case)))
    require(not heavy, f"importing the plugin imports {', '.join(heavy)}; import them in the technique's own module")


@record_check("has parameters with types, and takes those that it gives back", once=True)
def parameters(case: Case) -> None:
    """`get_params` and `create` are inverse."""
    technique = case.technique
    require(isinstance(technique, Parametrised), f"{type(technique).__name__} is no Explainer, Evaluator or Projector")
    hints = typing.get_type_hints(type(technique), include_extras=True)
    untyped = [field.name for field in dataclasses.fields(technique) if field.name not in hints]
    require(not untyped, f"the parameters {untyped} have no type")
    given = technique.get_params()
    record = case.subject.record
    again = (record.create(**given) if record else type(technique)(**given)).get_params()
    changed = [name for name in given if not _equal(given[name], again[name])]
    require(list(given) == list(again) and not changed, f"the parameters {changed} are others when given again")


@record_check("refuses an unknown parameter", RECORDED, once=True)
def unknown_parameter(case: Case) -> None:
    """With a `ParameterError` that names it."""
    try:
        _record(case).create(no_such_parameter=1)
    except ParameterError as error:
        require("no_such_parameter" in str(error), f"the message does not name the parameter: {error}")
    else:
        require(False, "no_such_parameter=1 was taken without a word")


@record_check("has parameters that cannot be changed afterwards")
def frozen(case: Case) -> None:
    """Results say what they were made with."""
    for name, value in case.technique.get_params().items():
        try:
            setattr(case.technique, name, value)
        except dataclasses.FrozenInstanceError:
            continue
        require(False, f"parameter {name} could be set on an instance")


@record_check("claims only axioms and excuses only checks that there are", once=True)
def known_words(case: Case) -> None:
    """A misspelt claim would never be checked."""
    unknown = sorted(case.subject.axioms - AXIOMS)
    require(not unknown, f"axioms={unknown} are unknown; expected among {sorted(AXIOMS)}")
    sentences = {law.sentence for law in LAWS}
    strange = sorted(set(case.subject.known_failures) - sentences)
    require(not strange, f"known_failures has no check {strange}; `pellucid check` prints the sentences")


def _record(case: Case) -> Technique:
    assert case.subject.record is not None
    return case.subject.record


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    return one is other or bool(one == other)


def _entry_module(record: Technique) -> str:
    points = importlib.metadata.distribution(record.distribution).entry_points
    return next(point.module for point in points.select(group="pellucid", name=record.plugin))


@functools.cache
def _imports(module: str) -> list[str]:
    """The heavy libraries that are imported with a module, in a process of its own."""
    script = (
        f"import sys, json; import {module}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    path = json.dumps(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path}\n{script}"], capture_output=True, text=True
    )
    require(done.returncode == 0, f"importing {module} failed: {done.stderr.strip().splitlines()[-1:]}")
    heavy: list[str] = json.loads(done.stdout.splitlines()[-1])
    return heavy
