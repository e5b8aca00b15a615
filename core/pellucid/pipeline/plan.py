"""From a description to steps that can run: everything that is wrong with it is said at once, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pellucid.errors import ParameterError, PellucidError, PipelineError, nearest
from pellucid.pipeline.choice import QUALITIES, RECORDING, Choice
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
        at: for an explainer, which of the inputs it explains; None is all.
        mark: for a projector, which of the inputs are marked.
    """

    name: str
    kind: str
    technique: Any
    of: tuple[str, ...] = ()
    controls: bool | tuple[str, ...] = True
    at: Choice | None = None
    mark: tuple[Choice, ...] = ()

    @property
    def waits_for(self) -> set[str]:
        """The steps that must have run before this one."""
        results = () if self.kind == "explainer" else self.of
        choices = () if self.at is None else (self.at,)
        return {*results, *(one.of for one in (*choices, *self.mark))} - {RECORDING, self.name}


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


def make_plan(given: Mapping[str, Any], further: list[str], words: Mapping[str, Any] = MappingProxyType({})) -> Plan:
    """Makes a plan of a description.

    Args:
        given: the description.
        further: what is already known to be wrong.
        words: what stands for the recording's examples in parameters; empty without a recording.

    Raises:
        PipelineError: with everything that is wrong, naming steps and fields.
    """
    settings, steps, problems = parse(given)
    declared = [str(name) for name in given.get("steps") or ()] if isinstance(given.get("steps"), Mapping) else []
    planned = _Planner(steps, declared, problems, words).run()
    problems += further
    if problems:
        raise PipelineError(joined(problems))
    return Plan(settings, {name: planned[name] for name in steps})


def joined(problems: Sequence[str]) -> str:
    """What is wrong with a pipeline, in one message."""
    if len(problems) == 1:
        return f"the pipeline cannot run: {problems[0]}"
    listed = "\n".join(f"({place}) {problem}" for place, problem in enumerate(problems, start=1))
    return f"the pipeline cannot run, {len(problems)} things are wrong:\n{listed}"


class _Planner:
    """Checks steps and makes their techniques, each after those that it is composed of."""

    def __init__(
        self, steps: dict[str, Step], declared: list[str], problems: list[str], words: Mapping[str, Any]
    ) -> None:
        self.steps, self.declared, self.problems, self.words = steps, declared, problems, words
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
            if name in sound and name not in self.planned and self._known(self.steps[name].of) <= set(self.planned)
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
            self._say(name, "use", f"of type {type(step.use).__name__}; expected a technique's name or an instance")
            return
        self.records[name], self.kinds[name] = None, kind

    def _cycles(self) -> set[str]:
        """Reports each circle of steps once, and returns all steps that are on one."""
        on: set[str] = set()
        for start in self.steps:
            paths = [[start]]
            while paths:
                path = paths.pop()
                taken = self.steps[path[-1]]
                chosen = [one.of for one in taken.choices if one.of != path[-1] or taken.at is one]
                for next_step in [*taken.of, *chosen]:
                    if next_step == start:
                        if start not in on:
                            told = " -> ".join(f"'{name}'" for name in [*path, start])
                            self._say(start, "of", f"the steps take each other in a circle: {told}")
                            on.update(path)
                    elif next_step in self.steps and next_step not in path:
                        paths.append([*path, next_step])
        return on

    def _known(self, of: Iterable[str]) -> set[str]:
        """Those of the names that are steps."""
        return set(of) - ({RECORDING} if self.words else set())

    def _check_of(self, name: str) -> bool:
        """Whether a step takes what a step of its kind can take."""
        step, kind, known = self.steps[name], self.kinds[name], len(self.problems)
        if name == RECORDING and self.words:
            self._say(name, "of", "with a recording, no step can have its name; give the step another one")
        wanted = "projector" if kind == "evaluator" and self._scores_maps(name) else "explainer"
        for of in dict.fromkeys(step.of):
            if of == RECORDING and self.words:
                if kind != "projector":
                    self._say(name, "of", f"a step of kind {kind} cannot take '{RECORDING}', which projectors map")
            elif self._exists(name, "of", of) and of != name and self.kinds.get(of, wanted) != wanted:
                self._say(name, "of", f"'{of}' is of kind {self.kinds[of]}; a step of kind {kind} takes {wanted} steps")
            elif kind == "evaluator" and of in self.steps and self.steps[of].at is not None:
                self._say(name, "of", f"'{of}' explains some of the inputs only; score a step that explains all")
        if len(set(step.of)) < len(step.of):
            self._say(name, "of", "names a step twice")
        if kind != "explainer" and not step.of:
            self._say(name, "of", f"missing; expected the {wanted} step{'s' * (kind == 'evaluator')} that it takes")
        if kind != "evaluator" and len(step.of) > 1:
            self._say(name, "of", f"{len(step.of)} steps; a step of kind {kind} takes one")
        if wanted == "projector" and len({tuple(self.steps[of].of) for of in step.of if of in self.steps}) > 1:
            self._say(name, "of", "maps of different states; score them in a step for each")
        if kind == "explainer" and step.of and "of" not in self._parameters(name):
            self._say(name, "of", f"'{_called(step.use)}' is not made of another explainer; leave it out")
        self._check_fields(name, step, kind)
        return len(self.problems) == known

    def _check_fields(self, name: str, step: Step, kind: str) -> None:
        """Whether a step has the fields of its kind only, and what they name exists."""
        for field, owner, what in (
            ("controls", "evaluator", "evaluators score controls"),
            ("at", "explainer", "explainers explain some of the inputs"),
            ("mark", "projector", "projectors mark points"),
        ):
            if kind != owner and field in step.model_fields_set:
                self._say(name, field, f"only {what}; leave it out")
        if isinstance(step.controls, list):
            for control in step.controls:
                try:
                    technique(control)
                except PellucidError as error:
                    self._say(name, "controls", error)
        if step.mark and any(of in self.steps and self.steps[of].at is not None for of in step.of):
            self._say(name, "mark", "this map is of some of the inputs only; mark a map of all")
        for choice in step.choices:
            field = "at" if choice is step.at else "mark"
            if choice.of == RECORDING and self.words:
                self._check_choice(name, field, choice, QUALITIES[RECORDING])
            elif self._exists(name, field, choice.of) and choice.of in self.kinds:
                record = self.records[choice.of]  # None of an instance, which is seen when it has run
                if record is not None and record.output not in QUALITIES:
                    self._say(name, field, f"'{choice.of}' chooses no inputs; expected exemplars, influence or a map")
                elif record is not None:
                    self._check_choice(name, field, choice, QUALITIES[record.output])
                if self.steps[choice.of].at is not None:
                    self._say(name, field, f"'{choice.of}' explains some of the inputs only, and cannot choose of all")

    def _check_choice(self, name: str, field: str, choice: Choice, qualities: Sequence[str]) -> None:
        if choice.most is None and qualities:
            self._say(name, field, f"missing 'most' and 'count'; '{choice.of}' knows what is most {_or(qualities)}")
        elif choice.most is not None and choice.most not in qualities:
            told = f"expected {_or(qualities)}" if qualities else "it gives exemplars, which have a 'kind'"
            self._say(name, field, f"'{choice.of}' does not know what is most '{choice.most}'; {told}")

    def _exists(self, name: str, field: str, of: str) -> bool:
        if of in self.declared:
            return True
        others = [other for other in self.declared if other != name]
        reason = "; it is there with data: {recording: FOLDER}" if of == RECORDING else ""
        told = reason or nearest(of, others) or " The steps are " + ", ".join(others)
        self._say(name, field, f"no step '{of}'{'' if reason else '.'}{told}")
        return False

    def _scores_maps(self, name: str) -> bool:
        record = self.records[name]
        return record is not None and record.explains == "projection"

    def _parameters(self, name: str) -> list[str]:
        record = self.records[name]
        if record is None:
            return list(self.steps[name].use.get_params())
        return [parameter.name for parameter in record.parameters()]

    def _make(self, name: str) -> None:
        step = self.steps[name]
        if not self._check_parameters(name):
            return
        parameters = {field: self._meant(value) for field, value in step.parameters.items()}
        if self.kinds[name] == "explainer" and step.of:
            parameters["of"] = self.planned[step.of[0]].technique
        try:
            made = create(step.use, **parameters)
        except PellucidError as error:
            self.wrong.add(name)
            self.problems.append(f"step '{name}': {error}")
            return
        controls = tuple(step.controls) if isinstance(step.controls, list) else step.controls
        self.planned[name] = Planned(name, self.kinds[name], made, tuple(step.of), controls, step.at, tuple(step.mark))

    def _meant(self, value: Any) -> Any:
        return self.words.get(value, value) if isinstance(value, str) else value

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
                elif isinstance(value, str) and value.startswith("$") and value not in self.words:
                    known_words = f"expected {_or(list(self.words))}" if self.words else "such words are of a recording"
                    self._say(name, field, f"'{value}' stands for nothing; {known_words}")
                    self.wrong.add(name)
                elif needed <= {field}:
                    try:
                        record.create(**{field: self._meant(value)})
                    except ParameterError as error:
                        self._say(name, field, error)
                        self.wrong.add(name)
                    except PellucidError:
                        continue  # missing requirements and the like, which are said where the whole is made
        return name not in self.wrong


def _called(use: Any) -> str:
    return use if isinstance(use, str) else type(use).__name__


def _or(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
