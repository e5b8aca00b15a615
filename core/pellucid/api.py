"""The verbs: adapt, explain, evaluate, project."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pellucid.adapter import Adapter
from pellucid.engine.finish import mapped
from pellucid.engine.parts import parts_of
from pellucid.engine.run import Run, check_inputs_given, check_suits
from pellucid.errors import InputError, ModelError, ParameterError, TargetError, TechniqueFailed, Unsuitable
from pellucid.maps import histories, like, no_model, states_of
from pellucid.protocol.explainer import Evaluator, Explainer, Projector
from pellucid.protocol.leaves import tensors_of
from pellucid.protocol.target import PREDICTED
from pellucid.registry import registry
from pellucid.registry.lookup import create, techniques
from pellucid.results import Explanation, Projection

if TYPE_CHECKING:
    from pellucid.engine.planner import Progress
    from pellucid.results import Scores

_learnt: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def adapt(model: Any, *, optimize: bool = False, **options: Any) -> Adapter:
    """Makes the adapter through which a model is explained.

    Args:
        model: a module, a scikit-learn estimator, any callable, or an adapter, which is given back as it is. None is no
            model, for techniques that explain data and look at none.
        optimize: whether a copy of the model is rewritten for speed (BatchNorm folded into convolutions where no asked
            layer needs it); what that changes in the outputs is measured and stands in the results' checks.
        **options: attributes of `Adapter` such as `output`, `categories`, `transform`, `mean`, `std`, `name`, and what
            the model's own adapter takes (`weights` for torchvision's metadata).

    Raises:
        ModelError: when nothing can adapt the model, or it cannot be explained as it is.
    """
    if isinstance(model, Adapter):
        if options:
            raise ModelError(f"the model is adapted already; give {sorted(options)} where it is adapted first")
        adapter = model
    elif model is None and not options:
        adapter = no_model()
    elif not options and (known := _adapted_before(model)) is not None:
        adapter = known
    else:
        adapter = registry().hook.pellucid_adapt(model=model, options=options)
        if adapter is None:
            hint = f"; a reference is loaded by pellucid.load_model({model!r})" if isinstance(model, str) else ""
            raise ModelError(
                f"nothing can adapt a model of type {type(model).__name__}; expected an nn.Module, an estimator of "
                f"scikit-learn, a callable from inputs to scores, or a model that a plugin adapts{hint}"
            )
        # What is learnt of a model, such as its layers, lives as long as the model, and no longer.
        adapter.cache = _learnt.setdefault(adapter.module, adapter.cache)
        if adapter.module is model and not options:
            facts = {one.name: getattr(adapter, one.name) for one in fields(adapter) if one.name != "module"}
            adapter.cache["adapter"] = (_parts(model), facts)
    return replace(adapter, optimize=True) if optimize else adapter


def _adapted_before(model: Any) -> Adapter | None:
    """The adapter of a module that was adapted before and has the same parts still.

    Only what was found out about the module is kept, not the adapter, which would keep the module alive.
    """
    known = _learnt.get(model, {}).get("adapter") if isinstance(model, nn.Module) else None
    return Adapter(model, **known[1]) if known is not None and known[0] == _parts(model) else None


def _parts(model: nn.Module) -> tuple[Any, ...]:
    return parts_of(model).structure


def explain(
    model: Any,
    inputs: Any,
    techniques: Any,
    target: Any = None,
    *,
    batch_size: int | str = "auto",
    seed: int = 0,
    progress: bool | Progress | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Explains a model's outputs at inputs by one technique or many, in the fewest passes.

    Args:
        model: anything that `adapt` takes.
        inputs: (B, ...), photos, or a mapping or tuple of tensors. Of a memory-mapped array, a Dataset or a DataLoader
            (of inputs, or of pairs whose first is the input) the techniques of data sets read some examples at a time;
            others read all.
        techniques: a name or an instance gives one explanation; a list, or a mapping of labels to them, a dictionary.
        target: what is explained: None (the predicted class), a class index or name, one for each example, a callable
            from the model's output to (B,) scores, or a `Target`.
        batch_size: rows in one pass; "auto" finds what is fast and fits.
        seed: every random draw depends on it and on nothing else.
        progress: a bar on a terminal (None), always or never, or a function of the rows done and known.
        device: where the model runs; None is where it is.

    Returns:
        The explanation, or a dictionary of them by name.

    Raises:
        UnknownTechnique, ParameterError, Unsuitable, InputError, TargetError, LayerError, ModelError: when something
            is wrong with what was given; each says what was expected.
        TechniqueFailed: when some of several techniques fail; its `results` has the others.
        Interrupted: at Ctrl-C; its `results` has what had finished.
    """
    check_inputs_given(inputs)
    adapter = adapt(model)
    named, single = _named(techniques, Explainer)
    if single:
        for technique in named.values():
            check_suits(adapter, technique)
    with _shown(progress, ", ".join(named)) as told:
        outcome = Run(
            adapter, named, inputs, target, batch_size=batch_size, seed=seed, progress=told, device=device
        ).start()
    return _answer(outcome, named, single)


def evaluate(
    model: Any,
    inputs: Any,
    explanations: Any,
    metrics: Any = "pixel_flipping",
    target: Any = None,
    *,
    controls: bool | Sequence[Any] = True,
    batch_size: int | str = "auto",
    seed: int = 0,
    progress: bool | Progress | None = None,
    device: torch.device | str | None = None,
) -> Scores:
    """Scores explanations by one or many evaluators, with controls beside them.

    Args:
        model: anything that `adapt` takes; None for maps of points, which are scored against their states alone, and
            for prototypes that are compared as they are.
        inputs: what was explained; for maps without a model their states, as `project` takes them.
        explanations: one, a list, or a dictionary of them as `explain` returns it.
        metrics: names or instances of evaluators.
        target: as for `explain`; None takes the classes that the explanations recorded.
        controls: whether the explainers tagged "control" that suit the inputs are scored as well (beside influences,
            concepts and prototypes what their evaluators hold them against); or which explainers.
        batch_size: as for `explain`.
        seed: as for `explain`.
        progress: as for `explain`.
        device: as for `explain`.

    Returns:
        A score for each explanation, metric and example.

    Raises:
        As `explain`; besides, TargetError when explanations of a custom target come without it.
    """
    from pellucid.results import Concepts, Exemplars, Influence, Scores

    check_inputs_given(inputs)
    given = _explanations(explanations)
    exemplars = all(isinstance(one, Exemplars) for one in given.values())
    maps = model is None and not exemplars
    if maps:
        inputs, given = histories(inputs, given)
    adapter = adapt(model)
    evaluators, _ = _named(metrics, Evaluator)
    # The usual controls are attributions. Those of influence need training data, and those of concepts the concepts,
    # which the evaluators know.
    others = exemplars or all(isinstance(one, (Influence, Concepts)) for one in given.values())
    usual = [] if others else [one.name for one in techniques("projector" if maps else "explainer", tags={"control"})]
    # Exemplars are of a data set, whose classes are not those of the inputs that they are scored on.
    target = _common_target(given) if target is None and not exemplars and not maps else target
    chosen = usual if controls is True else list(controls or ())
    made: dict[str, Any] = {}
    for control in chosen:
        try:
            if maps:
                made[_label(create(control))] = like(given, project(states_of(inputs), control, seed=seed))
                continue
            made |= explain(
                adapter, inputs, [control], target, batch_size=batch_size, seed=seed, progress=False, device=device
            )
        except Unsuitable:
            if controls is not True:  # of those that were not named, some are for photos alone
                raise
    if others and controls is True:
        first = next(iter(given.values()))
        own = {name: one for each in evaluators.values() for name, one in each.controls(first, seed).items()}
        made = {name: one for name, one in own.items() if name not in given}
        asked = {name: one for name, one in made.items() if isinstance(one, Explainer)}
        if asked:
            made |= explain(
                adapter, inputs, asked, target, batch_size=batch_size, seed=seed, progress=False, device=device
            )
    everything = {**{name: (one, False) for name, one in given.items()}, **{n: (one, True) for n, one in made.items()}}
    work = {
        f"{metric} of {name}": (evaluator, name, one)
        for metric, evaluator in evaluators.items()
        for name, (one, _) in everything.items()
    }
    with _shown(progress, ", ".join(evaluators)) as told:
        outcome = Run(
            adapter,
            {key: evaluator for key, (evaluator, _, _) in work.items()},
            inputs,
            target,
            work=lambda key, evaluator, sample: evaluator.evaluate(sample, work[key][2]),
            batch_size=batch_size,
            seed=seed,
            progress=told,
            device=device,
        ).start()
    if not any(name in given for key, (_, name, _) in work.items() if key in outcome.results):
        outcome.results.clear()  # controls alone are no answer
    results = _answer(outcome, work, False)
    return Scores.merge([results[key].named(name, control=everything[name][1]) for key, (_, name, _) in work.items()])


def project(states: Any, technique: Any = "pca", *, seed: int = 0, **parameters: Any) -> Projection:
    """Maps states, such as features or explanations, to a few dimensions.

    Args:
        states: (n, d) points, (T, n, d) points through time, a list of T frames, or an explanation, whose values are
            taken. A memory-mapped array is not read whole by `pca`.
        technique: a projector's name or instance.
        seed: every random draw depends on it and on nothing else.
        **parameters: the projector's parameters, where it is given by name.

    Raises:
        UnknownTechnique, ParameterError: as `create`.
        InputError: when the states are of the wrong shape or not finite.
    """
    import numpy as np

    projector = create(technique, **parameters)
    if not isinstance(projector, Projector):
        raise ParameterError(f"{_label(projector)} is no projector; `pellucid list --kind projector` shows them")
    if isinstance(states, Explanation):
        # Each example is one point, however many axes its values have.
        states = torch.cat([leaf.flatten(1) for leaf in tensors_of(states.values)], dim=1)
    if isinstance(states, (list, tuple)):
        frames = [torch.as_tensor(np.asarray(frame)) for frame in states]
        if len({frame.shape for frame in frames}) > 1:
            told = [tuple(frame.shape) for frame in frames]
            raise InputError(f"the frames have shapes {told}; expected the same points (n, d) in every frame")
        states = torch.stack(frames)
    if not isinstance(states, Tensor):
        with warnings.catch_warnings():  # projectors write to no states: a read-only memory map will do
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            states = torch.as_tensor(np.asarray(states))
    started = time.perf_counter()
    made = projector.project(states, seed=seed)
    return mapped(made, projector, seed, time.perf_counter() - started)


def _label(technique: Any) -> str:
    record = getattr(technique, "technique", None)
    return record.name if record else type(technique).__name__


def _named(given: Any, kind: type) -> tuple[dict[str, Any], bool]:
    """Techniques by the names of their results, and whether a single one was asked for."""
    if isinstance(given, Mapping):
        made = {str(name): create(one) for name, one in given.items()}
    elif isinstance(given, (list, tuple, set, frozenset)):
        made = {}
        for one in given:
            technique = create(one)
            label, count = _label(technique), 2
            while label in made:
                label, count = f"{_label(technique)}_{count}", count + 1
            made[label] = technique
    else:
        technique = create(given)
        made = {_label(technique): technique}
    if not made:
        raise ParameterError("no technique was given; expected at least one name or instance")
    for name, technique in made.items():
        if not isinstance(technique, kind):
            word = kind.__name__.lower()
            raise ParameterError(
                f"'{name}' ({type(technique).__name__}) is no {word}; `pellucid list --kind {word}` shows them"
            )
    return made, not isinstance(given, (Mapping, list, tuple, set, frozenset))


def _answer(outcome: Any, order: Iterable[str], single: bool) -> Any:
    if outcome.errors:
        first = next(iter(outcome.errors.values()))
        if single or (len(set(map(str, outcome.errors.values()))) == 1 and not outcome.results):
            raise first
        raise TechniqueFailed(outcome.results, outcome.errors) from first
    results = {name: outcome.results[name] for name in order}
    return next(iter(results.values())) if single else results


def _explanations(given: Any) -> dict[str, Explanation]:
    if isinstance(given, Explanation):
        given = {given.meta.technique or "explanation": given}
    elif not isinstance(given, (Mapping, Iterable)):
        raise ParameterError(f"{type(given).__name__} was given; expected an explanation, as `explain` returns it")
    elif not isinstance(given, Mapping):
        named: dict[str, Any] = {}
        for one in given:
            label, count = (getattr(one, "meta", None) and one.meta.technique) or "explanation", 2
            base = label
            while label in named:
                label, count = f"{base}_{count}", count + 1
            named[label] = one
        given = named
    if not given:
        raise ParameterError("there is no explanation to evaluate; expected at least one")
    for name, one in given.items():
        if not isinstance(one, Explanation):
            raise ParameterError(
                f"'{name}' is of type {type(one).__name__}; expected an explanation, as `explain` returns it"
            )
    return dict(given)


def _common_target(given: Mapping[str, Explanation]) -> Any:
    """The classes that all explanations were made for; None where they are the predicted ones."""
    # What never looked at the model, such as a control, did not learn which class was predicted.
    looked = {
        n: one for n, one in given.items() if one.target.classes is not None or one.target.description != PREDICTED
    }
    classes = {name: one.target.classes for name, one in looked.items()}
    known = next(iter(classes.values()), None)
    for name, one in classes.items():
        if one is None or known is None:
            raise TargetError(f"explanation '{name}' is for {given[name].target}, no class; give evaluate(target=...)")
        if not torch.equal(one.cpu(), known.cpu()):
            raise TargetError(f"explanation '{name}' is for other classes than the first; evaluate them apart")
    return known


@contextmanager
def _shown(
    progress: bool | Callable[[int, int], None] | None, what: str
) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal."""
    if callable(progress):
        yield progress
        return
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what if len(what) <= 40 else what[:39] + "…", total=None)
        yield lambda done, known: bar.update(task, completed=done, total=known)
