"""Checks of the result: its class, its parts, and that it can be kept and shown."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import torch

import pellucid
from pellucid.api import adapt
from pellucid.engine.passes import Engine
from pellucid.results import Attribution, Explanation, load
from pellucid.testing.case import TARGETS, Case, require_same, rows_of, values_of
from pellucid.testing.laws import ATTRIBUTING, BY_EXAMPLE, FAITHFUL, RECORDED, Group, require

result_check = Group("Result", frozenset({"explainer", "evaluator"}))

NO_LAYER = frozenset({"input", "segments", "tokens", "features", "concepts", "training examples"})


@result_check("answers with what its record names", RECORDED)
def right_class(case: Case) -> None:
    """`output="attribution"` is an `Attribution`."""
    assert case.subject.record is not None
    expected = getattr(pellucid, case.subject.record.output.capitalize(), None)
    known = isinstance(expected, type) and issubclass(expected, Explanation)
    require(known, f"output={case.subject.record.output!r} is no result; expected 'attribution', 'scores', ...")
    assert isinstance(expected, type)
    result = case.plain()
    require(isinstance(result, expected), f"it returns {type(result).__name__}; expected {expected.__name__}")


@result_check("gives finite values, one row for each example", BY_EXAMPLE)
def rows(case: Case) -> None:
    """On inputs and models without anything special."""
    result = case.plain()
    for leaf in values_of(result):
        require(len(leaf) == len(TARGETS), f"the values have {len(leaf)} rows for {len(TARGETS)} examples")
        require(torch.isfinite(leaf).all(), "some values are not finite")
        require(not leaf.requires_grad, "the values carry a graph")


@result_check("gives values of the shape of what they are over", ATTRIBUTING, kinds={"explainer"})
def right_shape(case: Case) -> None:
    """The inputs' shape, or a layer's: its output, its grid or its channels."""
    inputs, result = case.inputs(), case.plain()
    assert isinstance(result, Attribution)
    shape = tuple(values_of(result)[0].shape)
    if result.over == "input":
        require(shape == tuple(inputs.shape), f"the values over the inputs {tuple(inputs.shape)} are {shape}")
    elif result.over not in NO_LAYER:
        model = case.model()
        layer = Engine(adapt(model)).find(case.drive(model, inputs).sample, result.over).layer
        allowed = [layer.shape, layer.grid, layer.shape[:1], layer.shape[-1:]]
        require(shape[1:] in allowed, f"the values over layer '{result.over}', {layer.shape}, are {shape[1:]}")
        require(result.meta.layer in (None, layer.name), f"meta names another layer, '{result.meta.layer}'")


@result_check("says where it comes from", kinds={"explainer"}, once=True)
def provenance(case: Case) -> None:
    """Technique, parameters, model, inputs, seed, passes and time; all of them can be written as JSON."""
    meta = case.plain().meta
    missing = [
        name
        for name in ("technique", "model", "model_hash", "input_hash", "pellucid_version", "torch_version", "created")
        if not getattr(meta, name)
    ]
    missing += [name for name in ("seed", "seconds") if getattr(meta, name) is None]
    missing += [name for name in ("forward", "backward") if name not in meta.passes]
    require(not missing, f"meta lacks {', '.join(missing)}")
    require(set(meta.parameters) == set(case.technique.get_params()), "meta.parameters are not the parameters")
    json.dumps(dict(meta.parameters), allow_nan=False)


@result_check("records the classes that it explained", kinds={"explainer"})
def recorded_target(case: Case) -> None:
    """Whether they were given or predicted."""
    classes = case.plain().target.classes
    require(classes is not None and classes.tolist() == list(TARGETS), f"target.classes are {classes}")
    if case.subject.record is not None and not case.subject.record.uses:
        return  # nothing was predicted where nothing was looked at
    with torch.no_grad():
        predicted = case.model()(case.inputs()).argmax(dim=1)
    classes = case.run(target=None).target.classes
    if classes is not None:
        require(classes.tolist() == predicted.tolist(), f"target.classes are {classes} for the predicted {predicted}")


@result_check("gives every certificate a verdict")
def verdicts(case: Case) -> None:
    """A name, a number, and whether it holds."""
    for check in case.plain().checks:
        require(bool(check.name.strip()), "a check has no name")
        require(check.verdict in ("pass", "fail", "info"), f"check '{check.name}' has the verdict {check.verdict!r}")
        require(check.value is None or not math.isnan(check.value), f"check '{check.name}' measured no number")
        require(check.passed is None or check.tolerance is not None, f"check '{check.name}' judges without a tolerance")


@result_check("gives a result that can be saved, read and sliced")
def kept(case: Case) -> None:
    """With the same bits."""
    result = case.plain()
    with tempfile.TemporaryDirectory() as folder:
        read = load(result.save(Path(folder) / "result"))
    require(type(read) is type(result), f"{type(result).__name__} was read as {type(read).__name__}")
    require_same(read, result, "what was read", tolerance=0)
    require(read.meta == result.meta, "the provenance that was read is another")
    if len(result) == len(TARGETS):
        require_same(result[1], rows_of(result, [1]), "result[1]", tolerance=0)
    require(repr(result).startswith(type(result).__name__), "its repr does not start with its class")


@result_check("gives a result that can be drawn", once=True)
def drawn(case: Case) -> None:
    """As a figure of matplotlib, without a display."""
    from matplotlib.figure import Figure

    figure = case.plain().plot()
    require(isinstance(figure, Figure), f"plot() gives {type(figure).__name__}; expected a matplotlib Figure")
    require(figure.axes, "plot() gives an empty figure")


@result_check("names itself, and says which scores are good", FAITHFUL, kinds={"evaluator"})
def named_scores(case: Case) -> None:
    """In every row of the scores."""
    result = case.plain()
    for row in getattr(result, "rows", ()):
        require(row.explanation == "given", f"the scores are of {row.explanation!r}; expected the explanation's name")
        require(row.metric, "the scores do not name their metric")
        require(row.better in ("higher", "lower"), f"better={row.better!r}; expected 'higher' or 'lower'")
