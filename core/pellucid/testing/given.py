"""Checks of number types, of unusual circumstances and of bad input."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from pellucid.errors import InputError, LayerError, PellucidError, TargetError
from pellucid.testing.behaviour import ROUNDING
from pellucid.testing.case import TARGETS, Case, require_same, values_of
from pellucid.testing.laws import FOR_A_TARGET, LAYERED, LOOKING, Group, require
from pellucid.testing.state import State, lived_in, require_untouched

type_check = Group("Number types", frozenset({"explainer", "evaluator"}))
bad_input_check = Group("Bad input", frozenset({"explainer", "evaluator"}))

HALF = (torch.float16, torch.bfloat16)
SINGLE = 1e-3
"""How far single precision may be from double precision, as a share of the greatest value."""


@type_check("answers in the precision that it is asked in", kinds={"explainer"})
def precision(case: Case) -> None:
    """Double in, double out; single agrees with it."""
    double = case.plain()
    single = case.run(case.model(dtype=torch.float32), case.inputs(dtype=torch.float32))
    for values, dtype in ((values_of(double), torch.float64), (values_of(single), torch.float32)):
        found = {str(leaf.dtype) for leaf in values}
        require(found == {str(dtype)}, f"a model of {dtype} gives values of {', '.join(sorted(found))}")
    require_same(single, double, "single and double precision", SINGLE)


@type_check("keeps double precision all the way", LOOKING, kinds={"explainer"})
def double_all_the_way(case: Case) -> None:
    """Values that are all exact in single precision have been there."""
    for leaf in values_of(case.plain()):
        lost = torch.equal(leaf, leaf.float().double()) and bool((leaf != 0).any())
        require(not lost, "every value is a number of single precision; something casts to float on the way")


@type_check("explains a model of half precision in finite single precision, or refuses it clearly")
def half(case: Case) -> None:
    """Half-precision values overflow and are hard to read."""
    for dtype in HALF:
        with contextlib.suppress(PellucidError):
            for leaf in values_of(case.run(case.model(dtype=dtype), case.inputs(dtype=dtype))):
                require(leaf.dtype not in HALF, f"a model of {dtype} gives values of {leaf.dtype}; expected float32")
                require(torch.isfinite(leaf).all(), f"a model of {dtype} gives values that are not finite")


@type_check("does not hide a score that is not a number", LOOKING, FOR_A_TARGET)
def not_a_number(case: Case) -> None:
    """A model with broken weights is refused, or its explanation is not finite; zeros would be a lie."""
    model = case.model()
    with torch.no_grad():
        dict(model.named_parameters())["head.weight"].fill_(torch.nan)
    with contextlib.suppress(PellucidError):
        result = case.run(model)
        finite = any(torch.isfinite(leaf).all() for leaf in values_of(result))
        require(not finite, "the model's scores are not numbers; the values are finite all the same")


@type_check("gives the same without grad mode, in inference mode, and of a frozen model in train mode")
def circumstances(case: Case) -> None:
    """How the caller's process is set does not matter."""
    expected = case.plain()
    model = case.model()
    for circumstance in (torch.no_grad, torch.inference_mode):
        with circumstance():
            found = case.run(model, case.inputs(), technique=case.fresh())
        require_same([leaf.clone() for leaf in values_of(found)], expected, circumstance.__name__, ROUNDING)
    frozen = case.model().requires_grad_(False).train()
    require_same(case.run(frozen, technique=case.fresh()), expected, "a frozen model in train mode", ROUNDING)


@bad_input_check(
    "refuses inputs that are empty, not finite or of the wrong shape, and leaves everything as it was", once=True
)
def bad_inputs(case: Case) -> None:
    """With an `InputError`, or a `ModelError` where only the model knows its shapes."""
    bad = case.inputs()
    bad[1].view(-1)[0] = torch.nan
    _refused(case, InputError, inputs=bad, what="NaN")
    bad[1].view(-1)[0] = torch.inf
    _refused(case, InputError, inputs=bad, what="infinity")
    _refused(case, InputError, inputs=case.inputs()[:0], target=0, what="no example")
    if not case.table:
        _refused(case, InputError, inputs=case.inputs()[0], target=0, what="an image without the axis of examples")


@bad_input_check("refuses a target that does not exist, and leaves everything as it was", LOOKING, once=True)
def bad_targets(case: Case) -> None:
    """With a `TargetError`."""
    _refused(case, TargetError, target=99, what="class 99 of 4")
    _refused(case, TargetError, target=[0, 1, 99], what="class 99 of one example")
    _refused(case, TargetError, target=[0, 1], what="two targets for three examples")
    _refused(case, TargetError, target=torch.zeros(len(TARGETS)), what="a target of floating type")


@bad_input_check("refuses a layer that does not exist, and leaves everything as it was", LAYERED, kinds={"explainer"})
def bad_layer(case: Case) -> None:
    """With a `LayerError`."""
    technique = case.subject.varied(case.technique, layer="no_such_layer")
    _refused(case, LayerError, technique=technique, what="layer='no_such_layer'")


def _refused(case: Case, expected: type[PellucidError], *, what: str, **given: Any) -> None:
    model = lived_in(case.model())
    before = State.of(model)
    try:
        case.run(model, **given)
    except expected as error:
        require(len(str(error)) > 20, f"{what}: the message '{error}' does not say what was expected")
    except Exception as error:
        require(False, f"{what}: {type(error).__name__} instead of {expected.__name__}: {error}")
    else:
        require(False, f"{what} was taken without a word; expected {expected.__name__}")
    require_untouched(before, model, f"{what}: ")
