"""From a description to steps that can run: everything that is wrong with it is said at once, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pellucid.errors import ParameterError, PellucidError, PipelineError, nearest
from pellucid.pipeline.spec import Settings, Step, parse
from pellucid.protocol.explainer import Evaluator, Explainer, Projector
from pellucid.registry import Technique
from pellucid.registry.lookup import create, technique

KINDS = {"explainer": Explainer, "evaluator": Evaluator, "projector": Projector}


@dataclass(frozen=True, eq=False)
class Planned:
    """A step that is ready to run.

    Attributes:
        name: the step's.
        kind: "explainer", "evaluator" or "projector".
        technique: the instance; one that is composed of another step has that step's instance.
        of: the steps whose results it takes; for an explainer, the one that it is composed of.
        controls: for an evaluator, which controls are scored beside the explanations.
    """

    name: str
    kind: str
    technique: Any
    of: tuple[str, ...] = ()
    controls: bool | tuple[str, ...] = True


@dataclass(frozen=True, eq=False)
class Plan:
    """A pipeline that is ready to run.

    Attributes:
        settings: everything but the steps.
        steps: by name, in the order of the description.
    """

    settings: Settings
    steps: dict[str, Planned]

    def of_kind(self, kind: str) -> dict[str, Planned]:
        """The steps of one kind."""
        return {name: step for name, step in self.steps.items() if step.kind == kind}


def make_plan(given: Mapping[str, Any], further: list[str]) -> Plan:
    """Makes a plan of a description.

    Args:
        given: the description.
        further: what is already known to be wrong.

    Raises:
        PipelineError: with everything that is wrong, naming steps and fields.
    """
    settings, steps, problems = parse(given)
    declared = [str(name) for name in given.get("steps") or ()] if isinstance(given.get("steps"), Mapping) else []
    planned = _Planner(steps, declared, problems).run()
    problems += further
    if problems:
        raise PipelineError(_joined(problems))
    return Plan(settings, {name: planned[name] for name in steps})


def _joined(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"the pipeline cannot run: {problems[0]}"
    listed = "\n".join(f"({place}) {problem}" for place, problem in enumerate(problems, start=1))
    return f"the pipeline cannot run, {len(problems)} things are wrong:\n{listed}"


class _Planner:
    """Checks steps and makes their techniques, each after those that it is composed of."""

    def __init__(self, steps: dict[str, Step], declared: list[str], problems: list[str]) -> None:
        self.steps, self.declared, self.problems = steps, declared, problems
        self.kinds: dict[str, str] = {}
        self.records: dict[str, Technique | None] = {}
        self.planned: dict[str, Planned] = {}
        self.wrong: set[str] = set()

    def run(self) -> dict[str, Planned]:
        for name, step in self.steps.items():
            self._find(name, step)
        cyclic = self._cycles()
        sound = {name for name in self.steps if name in self.kinds and self._check_of(name)} - cyclic
        while ready := [
            name
            for name in self.steps
            if name in sound and name not in self.planned and all(of in self.planned for of in self.steps[name].of)
        ]:
            for name in ready:
                sound.discard(name)
                self._make(name)
        for name in self.steps:
            # What takes a faulty step cannot be made, but its own parameters are looked at.
            if name in self.kinds and name not in self.planned:
                self._check_parameters(name)
        return self.planned

    def _say(self, name: str, field: str, problem: object) -> None:
        self.problems.append(f"step '{name}', field '{field}': {problem}")

    def _find(self, name: str, step: Step) -> None:
        """Finds out of what kind a step is."""
        if isinstance(step.use, str):
            try:
                record = technique(step.use)
                record.load()
            except PellucidError as error:
                self._say(name, "use", error)
                return
            self.records[name], self.kinds[name] = record, record.kind
            return
        kind = next((kind for kind, base in KINDS.items() if isinstance(step.use, base)), None)
        if kind is None:
            self._say(name, "use", f"a {type(step.use).__name__}; expected a technique's name or an instance")
            return
        self.records[name], self.kinds[name] = None, kind

    def _cycles(self) -> set[str]:
        """Reports each circle of steps once, and returns all steps that are on one."""
        on: set[str] = set()
        for start in self.steps:
            paths = [[start]]
            while paths:
                path = paths.pop()
                for next_step in self.steps[path[-1]].of:
                    if next_step == start:
                        if start not in on:
                            told = " -> ".join(f"'{name}'" for name in [*path, start])
                            self._say(start, "of", f"the steps take each other in a circle: {told}")
                            on.update(path)
                    elif next_step in self.steps and next_step not in path:
                        paths.append([*path, next_step])
        return on

    def _check_of(self, name: str) -> bool:
        """Whether a step takes what a step of its kind can take."""
        step, kind, known = self.steps[name], self.kinds[name], len(self.problems)
        for of in dict.fromkeys(step.of):
            if of not in self.declared:
                others = [other for other in self.declared if other != name]
                told = f"no step '{of}'.{nearest(of, others) or ' The steps are ' + ', '.join(others)}"
                self._say(name, "of", told)
            elif of != name and self.kinds.get(of, "explainer") != "explainer":
                self._say(name, "of", f"'{of}' is a {self.kinds[of]}; a step of kind {kind} takes explainer steps")
        if len(set(step.of)) < len(step.of):
            self._say(name, "of", "names a step twice")
        if kind != "explainer" and not step.of:
            self._say(name, "of", f"missing; expected the explainer step{'s' * (kind == 'evaluator')} that it takes")
        if kind != "evaluator" and len(step.of) > 1:
            self._say(name, "of", f"{len(step.of)} steps; a step of kind {kind} takes one")
        if kind == "explainer" and step.of and "of" not in self._parameters(name):
            self._say(name, "of", f"'{_called(step.use)}' is not made of another explainer; leave it out")
        if kind != "evaluator" and "controls" in step.model_fields_set:
            self._say(name, "controls", "only evaluators score controls; leave it out")
        if isinstance(step.controls, list):
            for control in step.controls:
                try:
                    technique(control)
                except PellucidError as error:
                    self._say(name, "controls", error)
        return len(self.problems) == known

    def _parameters(self, name: str) -> list[str]:
        record = self.records[name]
        if record is None:
            return list(self.steps[name].use.get_params())
        return [parameter.name for parameter in record.parameters()]

    def _make(self, name: str) -> None:
        step = self.steps[name]
        if not self._check_parameters(name):
            return
        parameters = step.parameters
        if self.kinds[name] == "explainer" and step.of:
            parameters["of"] = self.planned[step.of[0]].technique
        try:
            made = create(step.use, **parameters)
        except PellucidError as error:
            self.wrong.add(name)
            self.problems.append(f"step '{name}': {error}")
            return
        controls = tuple(step.controls) if isinstance(step.controls, list) else step.controls
        self.planned[name] = Planned(name, self.kinds[name], made, tuple(step.of), controls)

    def _check_parameters(self, name: str) -> bool:
        """Whether a step's parameters exist and have values that the technique takes, each looked at by itself."""
        step, record, known = self.steps[name], self.records[name], self._parameters(name)
        if name in self.wrong:
            return False
        if record is None:
            if step.parameters:
                self.problems.append(
                    f"step '{name}': 'use' is an instance already; set its parameters where it is made"
                )
                self.wrong.add(name)
        else:
            needed = {one.name for one in record.parameters() if one.default is one.empty}
            for field, value in step.parameters.items():
                if field not in known:
                    fields = [*(other for other in known if other != "of"), *Step.model_fields]
                    listed = nearest(field, fields) or f" Its parameters are {', '.join(known) or 'none'}."
                    self._say(name, field, f"'{record.name}' has no such parameter.{listed}")
                    self.wrong.add(name)
                elif needed <= {field}:
                    try:
                        record.create(**{field: value})
                    except ParameterError as error:
                        self._say(name, field, error)
                        self.wrong.add(name)
                    except PellucidError:
                        continue  # missing requirements and the like, which are said where the whole is made
        return name not in self.wrong


def _called(use: Any) -> str:
    return use if isinstance(use, str) else type(use).__name__
