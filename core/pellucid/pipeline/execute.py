"""Running a plan: the explainers together, then what takes their results, keeping what finishes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.api import adapt, evaluate, project
from pellucid.data.images import load_images
from pellucid.data.references import load_model
from pellucid.data.texts import load_texts, name_of
from pellucid.engine.finish import plain_parameters
from pellucid.engine.run import Run, check_inputs_given
from pellucid.errors import InputError, Interrupted, TargetError, TechniqueFailed
from pellucid.pipeline import folder as files
from pellucid.pipeline.choice import RECORDING, Choice
from pellucid.pipeline.plan import Planned
from pellucid.pipeline.progress import Progress, shown
from pellucid.pipeline.result import PipelineResult
from pellucid.protocol.explainer import Explainer, Passes
from pellucid.protocol.leaves import Leaves, each
from pellucid.protocol.look import Look
from pellucid.protocol.sample import Sample
from pellucid.results import Explanation, Meta, Projection, Scores

if TYPE_CHECKING:
    from pellucid.pipeline.pipeline import Pipeline

PREDICTIONS = "the model's predictions"
"""Under this name, which no step can have, the outputs at the inputs are asked for beside the explainers."""


@dataclass(frozen=True, eq=False)
class Outputs(Explainer):
    """What the model returns at the inputs; it shares its pass with the explainers."""

    def explain(self, sample: Sample) -> Passes[Any]:
        """Yields one look."""
        seen = yield Look(at=sample, outputs=True)
        return seen.outputs


def execute(
    pipeline: Pipeline, out: str | Path | None, *, progress: bool | Progress | None, trust: bool
) -> PipelineResult:
    """Runs a pipeline; see `Pipeline.run`."""
    folder = None if out is None else files.writable(out)
    started = time.perf_counter()
    settings = pipeline.plan.settings
    adapter = adapt(load_model(pipeline.model, trust=trust), optimize=settings.optimize)
    result = PipelineResult(adapter, folder=folder)
    inputs = pipeline.inputs
    if inputs is None and pipeline.texts:
        inputs = load_texts(pipeline.texts, pipeline.base)
        result.names = [name_of(text) for text in inputs]
    elif inputs is None:
        images = load_images(pipeline.images, adapter)
        inputs, result.names, result.unread = images.tensor, images.names, images.skipped
    check_inputs_given(inputs)
    with shown(progress) as tell:
        execution = _Execution(pipeline, result, inputs, tell)
        try:
            execution.run()
        except KeyboardInterrupt as stop:
            execution.keep(stop)
        finally:
            result.seconds = time.perf_counter() - started
    # In the order of the description, whatever the order of the work.
    result.results = {step: result.results[step] for step in pipeline.plan.steps if step in result.results}
    if folder is not None:
        _write(pipeline, result, folder)
    if result.interrupted:
        raise Interrupted(dict(result.results))
    return result


@dataclass(eq=False)
class _Execution:
    """One run of a pipeline on inputs."""

    pipeline: Pipeline
    result: PipelineResult
    inputs: Any
    tell: Progress

    def run(self) -> None:
        """Runs all steps, each after those that it waits for."""
        steps = self.pipeline.plan.steps
        self.explain({name: one for name, one in steps.items() if one.kind == "explainer" and one.at is None})
        waiting = {name: one for name, one in steps.items() if one.kind == "projector" or one.at is not None}
        while waiting:
            ready = {name: one for name, one in waiting.items() if not one.waits_for & set(waiting)}
            waiting = {name: one for name, one in waiting.items() if name not in ready}
            for choice in dict.fromkeys(one.at for one in ready.values() if one.at is not None):
                self.explain_some(choice, {name: one for name, one in ready.items() if one.at == choice})
            for step in ready.values():
                if step.kind == "projector":
                    self.attempt(step, self.project)
        for step in self.pipeline.plan.of_kind("evaluator").values():
            self.attempt(step, self.evaluate)

    def explain(self, steps: Mapping[str, Planned]) -> None:
        """Runs explainers together at all inputs, and looks at the model's predictions."""
        result = self.result
        raw = self._explain({PREDICTIONS: Outputs()}, steps, self.inputs, self.pipeline.plan.settings.target)
        logits = None if raw is None else result.adapter.logits(raw)
        result.predictions = None if logits is None else probabilities(logits)
        states = self.pipeline.states
        if not result.names:
            count = next((len(one) for one in result.results.values()), 0) if logits is None else len(logits)
            given = None if states is None else states.names
            result.names = list(given or (f"input {place}" for place in range(1, count + 1)))

    def explain_some(self, choice: Choice, steps: Mapping[str, Planned]) -> None:
        """Runs explainers together at the chosen inputs."""
        result, target = self.result, self.pipeline.plan.settings.target
        try:
            chosen = choice.among(self._source(choice.of), len(result.names))
        except _Lost as lost:
            result.skipped |= dict.fromkeys(steps, str(lost))
            return
        except InputError as error:
            result.errors |= dict.fromkeys(steps, error)
            return
        rows = torch.tensor(list(dict.fromkeys(place for places in chosen.values() for place in places.tolist())))
        if isinstance(target, (list, tuple, Tensor)) and len(target) == len(result.names):
            target = target[rows] if isinstance(target, Tensor) else [target[row] for row in rows.tolist()]
        result.rows |= dict.fromkeys(steps, rows.tolist())
        self._explain({}, steps, _rows(self.inputs, rows), target)

    def _explain(self, besides: dict[str, Explainer], steps: Mapping[str, Planned], inputs: Any, target: Any) -> Any:
        """Runs explainers together; the model's outputs are returned if they are asked besides."""
        settings, result = self.pipeline.plan.settings, self.result
        run = Run(
            result.adapter,
            {**besides, **{name: step.technique for name, step in steps.items()}},
            inputs,
            target,
            batch_size=settings.batch_size,
            seed=settings.seed,
            progress=self._progress(f"explaining by {len(steps)} technique{'s' * (len(steps) != 1)}"),
        )
        outcome = run.start()
        raw = outcome.results.pop(PREDICTIONS, None)
        if outcome.errors and not outcome.results and all(isinstance(e, TargetError) for e in outcome.errors.values()):
            # The target is the whole pipeline's: one mistake, not one failure for each step.
            raise next(iter(outcome.errors.values()))
        result.errors.update({name: error for name, error in outcome.errors.items() if name in steps})
        result.cost += run.total
        for name, one in outcome.results.items():
            self._done(name, one)
        return raw

    def _source(self, name: str) -> Any:
        """What a choice is made of: a step's result, or the recorded states."""
        if name == RECORDING:
            return self.pipeline.states
        if name not in self.result.results:
            raise _Lost(f"it takes '{name}', which failed")
        return self.result.results[name]

    def attempt(self, step: Planned, work: Callable[[Planned, dict[str, Explanation]], Explanation]) -> None:
        """Runs a step on those of its inputs that there are."""
        given = {of: self.result.results[of] for of in step.of if of in self.result.results}
        lost = [of for of in step.of if of not in given and of != RECORDING]
        if lost and not given:
            self.result.skipped[step.name] = f"it takes {_listed(step.of)}, which failed"
            return
        for of in lost:
            self.result.notes.append(f"step '{step.name}' is without '{of}', which failed")
        try:
            self._done(step.name, work(step, given))
        except Exception as error:
            self.result.errors[step.name] = error

    def project(self, step: Planned, given: dict[str, Explanation]) -> Projection:
        """Maps the recorded states, or an explanation's values; the points are named as the inputs."""
        settings, recorded = self.pipeline.plan.settings, self.pipeline.states
        started = time.perf_counter()
        if step.of == (RECORDING,) and recorded is not None:
            made = recorded.project(step.technique, seed=settings.seed)
            meta = Meta(model=self.result.adapter.name, layer=recorded.over, categories=recorded.classes)
        else:
            [of] = given.values()
            made = project(self._states(step), step.technique, seed=settings.seed)
            meta, labels = of.meta, of.target.classes
            if recorded is not None and step.of[0] not in self.result.rows and made.labels is None:
                labels = recorded.labels if recorded.labels is not None else labels
            names = self._names(step.of[0])
            made = replace(
                made,
                names=made.names or (tuple(names) if len(names) == len(made) else None),
                labels=made.labels if made.labels is not None else labels,
            )
        record = step.technique.technique
        meta = replace(
            meta,
            technique=record.name if record else type(step.technique).__name__,
            parameters=plain_parameters(step.technique),
            provider=record.distribution if record else "",
            version=record.version if record else "",
            passes={},
            seconds=time.perf_counter() - started,
            seed=settings.seed,
        )
        return self._marked(step, replace(made, meta=meta))

    def _marked(self, step: Planned, made: Projection) -> Projection:
        """The map with its marks; one that cannot be had is told, and loses nothing else."""
        marks = [""] * len(made)
        for choice in step.mark:
            try:
                source = made if choice.of == step.name else self._source(choice.of)
                for name, places in choice.among(source, len(made)).items():
                    for place in places.tolist():
                        marks[place] = marks[place] or name.replace("_", "-")
            except (_Lost, InputError) as error:
                self.result.notes.append(f"step '{step.name}' is without marks of '{choice.of}': {error}")
        return replace(made, marks=tuple(marks)) if any(marks) else made

    def _states(self, step: Planned) -> Any:
        """What a projector step maps, (n, d), or (T, n, d) of a recording."""
        recorded = self.pipeline.states
        if step.of == (RECORDING,) and recorded is not None:
            return recorded
        states = self.result.results[step.of[0]].values
        return states.flatten(1) if isinstance(states, Tensor) and states.dim() > 2 else states

    def _names(self, step: str) -> list[str]:
        """What the inputs that a step explains are called."""
        names, rows = self.result.names, self.result.rows.get(step)
        return names if rows is None else [names[row] for row in rows]

    def evaluate(self, step: Planned, given: dict[str, Explanation]) -> Scores:
        """Scores explanations; one that cannot be scored does not lose the others' scores."""
        settings = self.pipeline.plan.settings
        maps = all(isinstance(one, Projection) for one in given.values())
        mapped = self._states(self.pipeline.plan.steps[next(iter(given))]) if maps else None
        try:
            scores = evaluate(
                None if maps else self.result.adapter,
                mapped if maps else self.inputs,
                given,
                {step.name: step.technique},
                None if maps else settings.target,
                controls=step.controls,
                batch_size=settings.batch_size,
                seed=settings.seed,
                progress=self._progress(step.name),
            )
        except TechniqueFailed as failed:
            prefix = f"{step.name} of "
            kept = {key.removeprefix(prefix): one for key, one in failed.results.items() if isinstance(one, Scores)}
            if not any(name in given for name in kept):
                raise
            lost = [f"'{key.removeprefix(prefix)}' ({error})" for key, error in failed.errors.items()]
            self.result.notes.append(f"step '{step.name}' could not score {', '.join(lost)}")
            scores = Scores.merge([one.named(name, control=name not in given) for name, one in kept.items()])
        examples = len(scores)
        self.result.cost.forward += round(scores.meta.passes.get("forward", 0) * examples)
        self.result.cost.backward += round(scores.meta.passes.get("backward", 0) * examples)
        self.result.cost.seconds += scores.meta.seconds or 0.0
        several = len(scores.metrics) > 1
        rows = (replace(row, metric=f"{step.name} {row.metric}" if several else step.name) for row in scores.rows)
        return replace(scores, rows=tuple(rows))

    def keep(self, stop: KeyboardInterrupt) -> None:
        """Keeps what an interrupted run had finished, and says of the other steps that they were not run."""
        result = self.result
        result.interrupted = True
        steps = self.pipeline.plan.of_kind("explainer")
        for name, one in getattr(stop, "results", {}).items():
            if name in steps and isinstance(one, Explanation):
                self._done(name, one)
        for name in self.pipeline.plan.steps:
            if name not in result.results and name not in result.errors and name not in result.skipped:
                result.skipped[name] = "the run was interrupted"

    def _done(self, name: str, one: Explanation) -> None:
        self.result.results[name] = one
        if self.result.folder is not None:
            files.write_result(self.result.folder, name, one)

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, known: self.tell(what, done, known)


class _Lost(Exception):
    """A step's result is missing."""


def _rows(inputs: Any, rows: Tensor) -> Any:
    """Some of the inputs, whatever they are given as."""
    if isinstance(inputs, (list, tuple)) and not all(isinstance(leaf, Tensor) for leaf in inputs):
        return [inputs[row] for row in rows.tolist()]  # texts and photos
    if isinstance(inputs, (Tensor, Leaves)):
        return each(lambda leaf: leaf[rows], inputs)
    if hasattr(inputs, "iloc"):  # a table of pandas
        return inputs.iloc[rows.tolist()]
    if isinstance(inputs, Mapping):
        return {name: leaf[rows] for name, leaf in inputs.items()}
    return tuple(leaf[rows] for leaf in inputs)


def probabilities(logits: Tensor) -> Tensor | None:
    """Class probabilities (B, classes) of a classifier's scores; None where the model is no classifier.

    Scores that are probabilities already, as those of scikit-learn's estimators, stay as they are.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        return None
    scores = logits.detach().cpu().double()
    if not bool(torch.isfinite(scores).all()):
        return None
    already = bool((scores >= 0).all()) and bool(((scores.sum(dim=1) - 1).abs() < 1e-4).all())
    return scores if already else scores.softmax(dim=1)


def _write(pipeline: Pipeline, result: PipelineResult, folder: Path) -> None:
    """Writes scores, report and provenance; the steps' results are written already."""
    settings = pipeline.plan.settings
    scores = result.scores
    if scores is not None:
        files.write_scores(folder, scores, result.names)
    if pipeline.states is not None:
        steps = [step for step in pipeline.plan.of_kind("projector").values() if step.of == (RECORDING,)]
        choices = dict.fromkeys(choice for step in steps for choice in step.mark)
        result.pages = files.write_pages(folder, pipeline.states, [step.name for step in steps], choices, result)
    if settings.report_name and result.results:
        from pellucid.report import write_report

        report = Path(settings.report_name)
        files.writable((folder / report).parent)
        # Hundreds of examples are looked at on the maps' pages, not one by one: the maps first, and no predictions.
        recorded = pipeline.states is not None
        maps = {name: one for name, one in result.explanations.items() if recorded and isinstance(one, Projection)}
        result.report = write_report(
            folder / report,
            results={**maps, **result.explanations},
            scores=scores,
            names=[] if recorded else result.names,
            adapter=result.adapter,
            predictions=None if recorded else result.predictions,
            cost=result.cost,
            seconds=result.seconds,
            title=settings.title,
            notes=_remarks(result),
        )
    import pellucid

    description = {key: _plain(value) for key, value in pipeline.description.items()}
    first = next(iter(result.results.values()), None)
    provenance = {
        "pellucid": pellucid.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "model": result.adapter.name,
        "model_hash": first.meta.model_hash if first else None,
        "input_hash": first.meta.input_hash if first else None,
        "created": first.meta.created if first else None,
        "seed": settings.seed,
        "pipeline": description,
    }
    files.write_json(folder / "run.json", provenance | result.to_dict())


def _remarks(result: PipelineResult) -> list[str]:
    """What went wrong, in sentences for the report."""
    told = [f"step '{name}' failed: {error}" for name, error in result.errors.items()]
    told += [f"step '{name}' was skipped: {reason}" for name, reason in result.skipped.items()]
    told += [f"picture '{name}' could not be read and was left out: {reason}" for name, reason in result.unread]
    told += [f"{page.name} shows the map '{name}' through time" for name, page in result.pages.items()]
    return told + result.notes


def _plain(value: Any) -> Any:
    """A part of a description as JSON has it; objects by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(f"'{name}'" for name in names)
