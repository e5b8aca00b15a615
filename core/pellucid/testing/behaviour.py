"""Checks of determinism, of the independence of examples, and of the target."""

from __future__ import annotations

import torch

from pellucid.testing.case import OTHER_TARGETS, TARGETS, Case, deviation, require_same, rows_of, values_of
from pellucid.testing.laws import (
    BY_EXAMPLE,
    CLASS_AGNOSTIC,
    FOR_A_TARGET,
    LOOKING,
    ON_TABLES,
    STEADY,
    STOCHASTIC,
    Group,
    require,
)
from pellucid.testing.models import CLASSES

BOTH = frozenset({"explainer", "evaluator"})
behaviour_check = Group("Determinism", BOTH)
example_check = Group("Examples", BOTH)
target_check = Group("Target")

ROUNDING = 1e-6
"""Where other batches make other roundings: in double precision, and far below any real difference."""
DRAWS = 6
"""How many further networks are tried where all values are zero."""


@behaviour_check("gives the same bits under the same seed")
def same_seed(case: Case) -> None:
    """Another instance, another model with the same weights, and other global random states."""
    first = case.plain()
    torch.manual_seed(1234)
    require_same(case.run(), first, "the same seed a second time", tolerance=0)


@behaviour_check("gives other values under another seed", STOCHASTIC, kinds={"explainer"})
def other_seed(case: Case) -> None:
    """Or the seed does not reach its random numbers."""
    gap = deviation(case.run(seed=case.seed + 1), case.plain())
    require(gap > 0, "another seed gave the same values, although it is tagged 'stochastic'")


@behaviour_check("gives the same values under any seed", STEADY, kinds={"explainer"})
def any_seed(case: Case) -> None:
    """What draws random numbers is tagged 'stochastic'."""
    require_same(case.run(seed=case.seed + 1), case.plain(), "another seed, without the tag 'stochastic'", tolerance=0)


@behaviour_check("keeps nothing from one call to the next")
def no_memory(case: Case) -> None:
    """New values at the same address, and new weights in the same model, give what a new instance gives."""
    model, inputs = case.model(), case.inputs()
    first = case.run(model, inputs)
    inputs.copy_(case.inputs(label="others"))
    others = case.run(model, inputs)
    expected = case.run(case.model(), case.inputs(label="others"), technique=case.fresh())
    require_same(others, expected, "other inputs at the same address", ROUNDING)
    inputs.copy_(case.inputs())
    require_same(case.run(model, inputs), first, "the first inputs again", ROUNDING)
    model.load_state_dict(case.model(label="trained").state_dict())
    expected = case.run(case.model(label="trained"), case.inputs(), technique=case.fresh())
    require_same(case.run(model, inputs), expected, "other weights in the same model", ROUNDING)


@example_check("explains an example as it does in a batch", BY_EXAMPLE)
def batch_independence(case: Case) -> None:
    """The result of x[i:i+1] is row i of the batch's."""
    whole = case.plain()
    require(len(whole) == len(TARGETS), f"the result has {len(whole)} rows for {len(TARGETS)} examples")
    for row in range(len(TARGETS)):
        alone = case.run(inputs=case.inputs()[row : row + 1], target=[TARGETS[row]], technique=case.fresh())
        require_same(alone, rows_of(whole, [row]), f"example {row} alone", ROUNDING)


@example_check("keeps to the order of the examples", BY_EXAMPLE)
def permutation(case: Case) -> None:
    """Permuted examples give a permuted result."""
    order = [1, 0, 2]
    permuted = case.run(inputs=case.inputs()[order], target=[TARGETS[row] for row in order], technique=case.fresh())
    require_same(permuted, rows_of(case.plain(), order), "the examples in another order", ROUNDING)


@example_check("does not depend on the batch size")
def batch_size(case: Case) -> None:
    """One row at a time, a few at a time, or as the engine likes."""
    automatic = case.plain()
    for size in (1, 2):
        require_same(case.run(batch_size=size, technique=case.fresh()), automatic, f"batch_size={size}", ROUNDING)


@example_check("explains rows of a table as well", ON_TABLES, kinds={"explainer"})
def on_tables(case: Case) -> None:
    """Example by example, one value for each feature."""
    case = Case(case.subject, case.index, case.seed, table=True)
    try:
        whole = case.plain()
    except ValueError as error:
        case.skip(f"this instance's parameters are not for tables: {error}")
    require(whole.values.shape == case.inputs().shape, f"the values of a table are {tuple(whole.values.shape)}")
    alone = case.run(inputs=case.inputs()[1:2], target=[TARGETS[1]], technique=case.fresh())
    require_same(alone, rows_of(whole, [1]), "row 1 alone", ROUNDING)


@target_check("explains the target that is asked", FOR_A_TARGET, LOOKING)
def target_matters(case: Case) -> None:
    """Every example its own; another target, other values."""
    results = compared = [case.run(target=target, technique=case.fresh()) for target in range(CLASSES)]
    for draw in range(DRAWS):
        if any(bool(leaf.any()) for result in compared for leaf in values_of(result)):
            break
        # What keeps only evidence for its target may find none in a network, whatever the target: ask of another one.
        model = case.model(f"model {draw}")
        compared = [case.run(model, target=target, technique=case.fresh()) for target in range(CLASSES)]
    gaps = [deviation(result, compared[0]) for result in compared[1:]]
    require(max(gaps) > ROUNDING, "every target gives the same values; tag it 'class_agnostic' if that is meant")
    if not BY_EXAMPLE.holds(case.subject):
        _require_rows_of_classes(case)
        return
    mixed = case.plain()
    for row, target in enumerate(TARGETS):
        expected = rows_of(results[target], [row])
        require_same(rows_of(mixed, [row]), expected, f"target {target} of example {row} among others", ROUNDING)


def _require_rows_of_classes(case: Case) -> None:
    """Where a row is not an example's but a class's, equal examples leave a class the same row whatever the others are.

    What is found in the examples may come in an order that depends on all rows, so that a row's order is left aside.
    """
    equal = case.inputs()[[0] * len(TARGETS)]
    expected = [values_of(case.run(inputs=equal, target=target, technique=case.fresh()))[0] for target in TARGETS]
    mixed = values_of(case.run(inputs=equal, technique=case.fresh()))[0]
    require(
        len(mixed) == len(TARGETS) and all(len(one) == 1 for one in expected),
        f"three classes gave {len(mixed)} rows, one class gave {[len(one) for one in expected]}; expected one for each",
    )
    for row, target in enumerate(TARGETS):
        ours, alone = (one.sort().values for one in (mixed[row], expected[row][0]))
        require_same([ours], [alone], f"target {target} among others, of the same example", ROUNDING)


@target_check("gives the same for every target", CLASS_AGNOSTIC)
def target_does_not_matter(case: Case) -> None:
    """As its tag says."""
    require_same(case.run(target=OTHER_TARGETS), case.plain(), "another target", ROUNDING)


@target_check("takes an index, a tensor of it and the predicted class as one target")
def target_forms(case: Case) -> None:
    """None is the class of the greatest output."""
    with torch.no_grad():
        predicted = case.model()(case.inputs()).argmax(dim=1)
    other = (int(predicted[0]) + 1) % CLASSES  # which is not predicted, or one could be taken for the other
    one = case.run(target=other)
    require_same(case.run(target=torch.full_like(predicted, other)), one, "a tensor of indices", ROUNDING)
    require_same(case.run(target=lambda output: output[:, other]), one, "a function of the output", ROUNDING)
    require_same(case.run(target=None), case.run(target=predicted), "the predicted class", ROUNDING)
