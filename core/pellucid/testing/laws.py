"""What a conformance check is: a sentence that must hold of a technique, and to which techniques it applies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from pellucid.testing.case import Case
    from pellucid.testing.subject import Subject

LAWS: list[Law] = []
"""Every check; the modules of the groups fill it when they are imported."""


class Broken(AssertionError):
    """A check that does not hold; the message says what was found."""


class Skipped(Exception):
    """A check that has nothing to say about this technique; the message says why."""


GROUPS = (
    "Record and parameters",
    "State",
    "Determinism",
    "Examples",
    "Target",
    "Passes",
    "Number types",
    "Bad input",
    "Result",
    "Axioms",
    "Planted truth",
    "Maps of points",
    "Maps through time",
)
"""The titles of the groups, in their order."""

PLANTING = frozenset({"Planted truth", "Maps of points", "Maps through time"})
"""The groups whose checks plant what must be found."""


@dataclass(frozen=True)
class Condition:
    """Which techniques a check is for.

    Attributes:
        words: completes "for techniques ...".
        holds: whether it is for this one.
    """

    words: str
    holds: Callable[[Subject], bool]


@dataclass(frozen=True, eq=False)
class Law:
    """One check.

    Attributes:
        sentence: what must hold, of a technique as its subject; the check's name.
        group: what it belongs to.
        kinds: the kinds of technique that it is for.
        when: the conditions under which it is for a technique, all of them.
        function: raises when it does not hold.
        once: whether the first test instance is enough.
    """

    sentence: str
    group: str
    kinds: frozenset[str]
    when: tuple[Condition, ...]
    function: Callable[[Case], None]
    once: bool = False

    def excuse(self, subject: Subject) -> str:
        """Why the check is not for a technique, "" where it is."""
        if subject.kind not in self.kinds:
            return f"for {' and '.join(sorted(f'{kind}s' for kind in self.kinds))}"
        unmet = [condition.words for condition in self.when if not condition.holds(subject)]
        return f"for techniques {' and '.join(unmet)}" if unmet else ""


Check: TypeAlias = "Callable[[Case], None]"


@dataclass(frozen=True)
class Group:
    """Registers the checks of one group: `@group("sentence", CONDITION)`.

    Attributes:
        title: the group's name.
        kinds: the kinds of technique that its checks are for.
    """

    title: str
    kinds: frozenset[str] = frozenset({"explainer"})

    def __call__(
        self, sentence: str, *when: Condition, kinds: Iterable[str] | None = None, once: bool = False
    ) -> Callable[[Check], Check]:
        """Makes a check of a function."""

        def register(function: Check) -> Check:
            words = self.kinds if kinds is None else frozenset(kinds)
            LAWS.append(Law(sentence, self.title, words, when, function, once))
            return function

        return register


def require(holds: object, message: str) -> None:
    """Fails the check unless something holds."""
    if not holds:
        raise Broken(message)


def require_refused(what: str, run: Callable[[], object]) -> None:
    """Fails the check unless something is refused, with an error of Pellucid's that says what was expected."""
    try:
        run()
    except PellucidError as error:
        require(len(str(error)) > 20, f"{what}: the message '{error}' does not say what was expected")
    except Exception as error:
        require(False, f"{what}: {type(error).__name__} instead of an InputError or the like: {error}")
    else:
        require(False, f"{what} was taken without a word; expected an InputError or the like")


RECORDED = Condition("with a record", lambda s: s.record is not None)
INSTALLED = Condition("of an installed plugin", lambda s: s.record is not None and bool(s.record.distribution))
LOOKING = Condition("that look at the model", lambda s: s.record is None or bool(s.record.uses))
STOCHASTIC = Condition("tagged 'stochastic'", lambda s: "stochastic" in s.tags)
STEADY = Condition("not tagged 'stochastic'", lambda s: "stochastic" not in s.tags)
FOR_A_TARGET = Condition("not tagged 'class_agnostic'", lambda s: "class_agnostic" not in s.tags)
CLASS_AGNOSTIC = Condition("tagged 'class_agnostic'", lambda s: "class_agnostic" in s.tags)
BY_EXAMPLE = Condition("not tagged 'across_examples'", lambda s: "across_examples" not in s.tags)
ON_IMAGES = Condition("for images", lambda s: not s.tables_only)
ON_TABLES = Condition("tagged 'table'", lambda s: "table" in s.tags)
ATTRIBUTING = Condition("that answer with an attribution", lambda s: s.output == "attribution")
LAYERED = Condition("with a parameter `layer`", lambda s: "layer" in s.parameters)
DECIDING = Condition(
    "that attribute a decision", lambda s: s.output == "attribution" and s.explains == "decision" and not s.control
)
CONTROL = Condition("tagged 'control'", lambda s: s.control)
IN_EARNEST = Condition("not tagged 'control'", lambda s: not s.control)
DEMANDING = Condition(
    "that use more than outputs", lambda s: s.record is not None and bool(s.record.uses - {"outputs"})
)
FAITHFUL = Condition("tagged 'faithfulness'", lambda s: "faithfulness" in s.tags)
OF_MAPS = Condition("tagged 'map'", lambda s: "map" in s.tags)
LINEAR = Condition("tagged 'linear'", lambda s: "linear" in s.tags)
TIMELESS = Condition("not tagged 'dynamics'", lambda s: "dynamics" not in s.tags)
FITTED = Condition("with a method `fit`", lambda s: callable(getattr(s.cls, "fit", None)))


def claiming(axiom: str) -> Condition:
    """Techniques whose class lists an axiom in `axioms`."""
    return Condition(f"that claim {axiom.replace('_', ' ')}", lambda s: axiom in s.axioms)
