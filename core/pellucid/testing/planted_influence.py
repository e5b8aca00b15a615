"""Planted truth for influences: training data that contradict themselves at the queries, and wrong labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import TargetError
from pellucid.protocol.target import Contrast
from pellucid.protocol.trainer import Trainer
from pellucid.results import Influence
from pellucid.testing.case import OTHER_TARGETS, TARGETS, Case
from pellucid.testing.laws import FOR_A_TARGET, Condition, Group, require, require_refused
from pellucid.testing.models import CLASSES
from pellucid.testing.planted import require_preferred

planted_check = Group("Planted truth")
bad_input_check = Group("Bad input")

TRAINING = frozenset({"train", "trainer"})
TAUGHT = Condition(
    "that answer with an influence and take training data as `train=(inputs, labels)` or a `Trainer` as `trainer`",
    lambda s: s.output == "influence" and not s.control and bool(TRAINING & set(s.parameters)),
)
JUDGING = Condition(
    "tagged 'training_data', with a `trainer` or the places of wrong labels as `wrong`",
    lambda s: "training_data" in s.tags and bool({"trainer", "wrong"} & set(s.parameters)),
)

SIDE, ROWS = 4, 16
MEMBERS = 6
"""How many clean training examples there are of each class."""
WRONG = 4
"""How many labels are wrong of as many clean examples as make them one in ten."""
DETECTED = 0.9
"""The least share of pairs of a wrong and a right label in which the wrong one has the greater self-influence."""


class Learner(nn.Module):
    """Softmax regression of images 3 x 4 x 4 or rows of 16 numbers; its layer has a name of `SmallNet`'s."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Linear(ROWS, CLASSES) if table else nn.Conv2d(3, CLASSES, SIDE)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, 4)."""
        logits: Tensor = self.conv1(inputs).flatten(1)
        return logits


@dataclass(frozen=True, eq=False)
class Lesson:
    """A recipe of training with its data, and a model that was trained so.

    Attributes:
        trainer: all examples in each step, so that their order does not count.
        model: trained, in eval mode.
        queries: (3, ...) what is asked about.
        copies: (3,) which training example is each query, with the class `TARGETS` gives it.
        twins: (3,) which is each query with another class, that of `OTHER_TARGETS`.
        wrong: (N,) which labels are wrong, those of the twins left aside.
    """

    trainer: Trainer
    model: nn.Module
    queries: Tensor
    copies: Tensor
    twins: Tensor
    wrong: Tensor

    def scores(self, left_out: int = -1) -> Tensor:
        """(3,) how probable `TARGETS` is at each query to a model that is trained with all examples, or all but one."""
        model = self.trainer.model(0)
        model.load_state_dict(self.trainer.weights(torch.arange(len(self.trainer)) != left_out))
        with torch.no_grad():
            shares: Tensor = model.eval()(self.queries).softmax(dim=1)
        found: Tensor = shares.gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
        return found


def lesson(case: Case, wrong: int = 0) -> Lesson:
    """Clusters of points, one for each class, with some wrong labels; and each query twice, as of two classes."""
    generator = case.generator("lesson")
    shape = (ROWS,) if case.table else (3, SIDE, SIDE)

    def noise(n: int) -> Tensor:
        drawn = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
        return drawn / math.sqrt(drawn[0].numel())

    members = MEMBERS if not wrong else -(-10 * wrong // CLASSES)
    count = CLASSES + len(TARGETS)
    directions = torch.linalg.qr(torch.randn(noise(1).numel(), count, generator=generator, dtype=torch.float64))[0]
    centres = 2 * directions.T.reshape(count, *shape)
    classes = torch.arange(CLASSES).repeat(members)
    queries = centres[CLASSES:] + noise(len(TARGETS))
    inputs = torch.cat([centres[classes] + noise(len(classes)), queries, queries])
    labels = torch.cat([classes, torch.tensor(TARGETS), torch.tensor(OTHER_TARGETS)])
    flipped = torch.zeros(len(labels), dtype=torch.bool)
    if wrong:  # no contradictions then but these
        flipped[torch.randperm(len(classes), generator=generator)[:wrong]] = True
        labels = torch.where(flipped, (labels + 1) % CLASSES, labels)
        kept = torch.arange(len(classes))
        inputs, labels, flipped = inputs[kept], labels[kept], flipped[kept]
    order = torch.randperm(len(labels), generator=generator)
    place = order.argsort()[-2 * len(TARGETS) :]
    table = case.table

    def make() -> nn.Module:
        return Learner(table).double()

    trainer = Trainer(
        make, inputs[order], labels[order], learning_rate=0.1, momentum=0.9, epochs=40, batch_size=len(order)
    )
    model = make()
    model.load_state_dict(trainer.weights())
    return Lesson(trainer, model.eval(), queries, place[: len(TARGETS)], place[len(TARGETS) :], flipped[order])


def explained(case: Case, given: Lesson, target: Any) -> Influence:
    """What the technique says of the lesson."""
    technique = case.given(train=given.trainer.train, trainer=given.trainer, examples=None)
    result = case.run(given.model, given.queries, target, technique)
    assert isinstance(result, Influence)
    expected = (len(given.queries), len(given.trainer))
    require(
        tuple(result.values.shape) == expected,
        f"the influence has the shape {tuple(result.values.shape)}; expected {expected}, queries by training examples",
    )
    return result


def verify(given: Lesson) -> None:
    """Fails unless training without a copy of a query makes its class less likely, and without its twin more."""
    whole = given.scores()
    for query, places in enumerate(zip(given.copies.tolist(), given.twins.tolist(), strict=True)):
        less = [float(given.scores(place)[query]) for place in places]
        told = f"the kit's own model gives {float(whole[query]):.2f}, and {less} without the copy and its twin"
        require(less[0] < whole[query] < less[1], told)


@planted_check("counts a copy of the query as a help and its wrongly labelled twin as a harm", TAUGHT, FOR_A_TARGET)
def copies(case: Case) -> None:
    """The greatest help and the greatest harm, in their places; the other way round for the twin's class."""
    given = lesson(case)
    verify(given)
    one, other = torch.tensor(TARGETS), torch.tensor(OTHER_TARGETS)
    for target, rather, helps, harms in (
        (one, other, given.copies, given.twins),
        (other, one, given.twins, given.copies),
    ):
        try:
            values = explained(case, given, Contrast(target, rather)).values
        except TargetError:  # it is for classes only
            values = explained(case, given, target.tolist()).values
        for query, (best, worst) in enumerate(zip(helps.tolist(), harms.tolist(), strict=True)):
            row = values[query]
            require(
                row[best] > 0 > row[worst],
                f"query {query}, class {int(target[query])} rather than {int(rather[query])}: its copy of the one "
                f"class has the influence {float(row[best]):.3g}, that of the other {float(row[worst]):.3g}; expected "
                "one above zero and one below. Above zero is what raises the target's score",
            )
            found = int(row.argmax()), int(row.argmin())
            require(
                found == (best, worst),
                f"query {query}: training example {found[0]} helps most and {found[1]} harms most; expected "
                f"{best}, the copy of the query, and {worst}, its twin of another class, in the caller's order",
            )


@planted_check("gives wrong labels the greatest self-influence", TAUGHT)
def mislabels(case: Case) -> None:
    """One in ten is wrong; nine in ten pairs of a wrong and a right label must be in that order."""
    given = lesson(case, WRONG)
    own = explained(case, given, list(TARGETS)).self_influence
    if own is None:
        case.skip("this instance gives no self-influence")
    assert own is not None
    ahead = (own[given.wrong][:, None] > own[~given.wrong]).double().mean()
    require(
        ahead >= DETECTED,
        f"a wrong label has the greater self-influence in {float(ahead):.0%} of its pairs with right ones; expected "
        f"{DETECTED:.0%} at least (chance: 50 %), in the order of the training examples",
    )


@bad_input_check("refuses training data that do not fit the queries, or have labels that there are not", TAUGHT)
def bad_training_data(case: Case) -> None:
    """With an error of Pellucid's that says what is wrong."""
    if "train" not in case.subject.parameters:
        case.skip("its training data are those of a trainer")
    given = lesson(case)
    inputs, labels = given.trainer.train
    for what, train in (
        ("training inputs of another shape", (inputs[..., :-1], labels)),
        ("fewer labels than inputs", (inputs, labels[:-1])),
        ("a training input that is not a number", (torch.where(inputs == inputs.max(), torch.nan, inputs), labels)),
        (f"label {CLASSES} of {CLASSES} classes", (inputs, torch.where(labels == 0, CLASSES, labels))),
        ("a negative label", (inputs, torch.where(labels == 0, -1, labels))),
    ):
        refused(case, given, what, train)


def refused(case: Case, given: Lesson, what: str, train: tuple[Tensor, Tensor]) -> None:
    """Fails unless other training data than the lesson's are refused, when they are given or when they are used."""
    require_refused(
        what, lambda: case.run(given.model, given.queries, list(TARGETS), technique=case.given(train=train))
    )


@planted_check("prefers true influences to chance and to their reverse", JUDGING, kinds={"evaluator"})
def evaluators(case: Case) -> None:
    """The truth is what training without each example changes, and which labels are wrong."""
    judges_labels = "wrong" in case.subject.parameters
    given = lesson(case, WRONG if judges_labels else 0)
    count = len(given.trainer)
    noise = torch.randn(len(TARGETS) + 1, count, generator=case.generator("chance"), dtype=torch.float64)
    whole = given.scores()
    # Of labels the values of the queries say nothing, and their truth would take as many trainings.
    places = range(0 if judges_labels else count)
    true = torch.stack([whole - given.scores(place) for place in places], dim=1) if places else noise[1:]
    own = given.wrong + 0.3 * noise[0]
    explanations = {
        "good": Influence(true, self_influence=own),
        "chance": Influence(noise[1:], self_influence=noise[0]),
        "reverse": Influence(-true, self_influence=-own),
    }
    asked = [*given.copies.tolist(), *given.twins.tolist()]
    technique = case.given(trainer=given.trainer, wrong=given.wrong, examples=asked, n_subsets=12)
    require_preferred(case, given.model, given.queries, list(TARGETS), explanations, technique)
