"""The three kinds of technique, and how they compose."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from pellucid.errors import ProtocolError
from pellucid.protocol.look import Look, Looks, Seen, SeenTogether
from pellucid.protocol.parameters import Parametrised
from pellucid.protocol.sample import Sample

if TYPE_CHECKING:
    from pellucid.results import Explanation, Projection, Scores

R = TypeVar("R")
E_co = TypeVar("E_co", bound="Explanation", covariant=True)
Passes: TypeAlias = Generator[Look, Seen, R]
"""What a technique's method returns: it yields looks, is sent what was seen, and ends with its result."""


class Explainer(Parametrised, ABC):
    """A technique that explains a decision, a representation or a model.

    Subclasses are frozen dataclasses (`@dataclass(frozen=True, eq=False)`) whose fields are the technique's parameters.
    """

    @abstractmethod
    def explain(self, sample: Sample) -> Passes[Any] | Explanation:
        """Yields looks at the sample and returns an explanation; without a `yield`, simply returns it."""


class Evaluator(Parametrised, ABC):
    """A technique that scores an explanation."""

    @abstractmethod
    def evaluate(self, sample: Sample, explanation: Any) -> Passes[Scores] | Scores:
        """Yields looks at the sample and returns the explanation's scores, one for each example."""

    def controls(self, explanation: Any, seed: int) -> Mapping[str, Any]:
        """Controls for explanations that the usual ones are not like, by name: explainers, or results; by default none.

        Attributions and maps of points are scored beside all techniques tagged "control". What answers otherwise, such
        as an influence, is held against what the evaluator makes of the data that it knows.

        Args:
            explanation: the first of those that are scored, of whatever kind.
            seed: every random draw depends on it and on nothing else.
        """
        return {}


class Projector(Parametrised, ABC):
    """A technique that maps states, such as features, to a few dimensions."""

    @abstractmethod
    def project(self, states: Any, *, seed: int = 0) -> Projection:
        """Fits the map to states and places them on it.

        Args:
            states: (n, d) points, or (T, n, d) points through time.
            seed: every random draw depends on it and on nothing else.
        """


def as_passes(made: Any) -> Generator[Look, Seen, Any]:
    """Makes a generator of what a technique's method returned, which may be the result itself, or of a single look."""
    return cast(Passes[Any], made) if inspect.isgenerator(made) else _passes_of(made)


def _passes_of(made: Any) -> Passes[Any]:
    return (yield made) if isinstance(made, Look) else made


def together(*passes: Any) -> Passes[tuple[Any, ...]]:
    """Drives several techniques side by side, so that they share passes, and returns their results in order.

    Use it with `yield from`; a plain look among them gives what was seen:

        one, two, seen = yield from together(a.explain(sample), b.explain(sample), Look(at=sample))
    """
    generators = [as_passes(one) for one in passes]
    results: dict[int, Any] = {}
    pending: dict[int, Look] = {}

    def advance(index: int, seen: Seen | None) -> None:
        try:
            look = generators[index].send(seen)  # type: ignore[arg-type]
            if not isinstance(look, Look):
                raise ProtocolError(
                    f"a technique driven by `together` yielded a {type(look).__name__}; expected a Look"
                )
            pending[index] = look
        except StopIteration as stop:
            pending.pop(index, None)
            results[index] = stop.value

    try:
        for index in range(len(generators)):
            advance(index, None)
        while pending:
            order = list(pending)
            looks = tuple(pending[index] for index in order)
            seen = yield Looks(at=looks[0].at, parts=looks)
            if not isinstance(seen, SeenTogether) or len(seen.parts) != len(looks):
                raise ProtocolError(f"`together` was sent {type(seen).__name__}; expected a Seen for each of its looks")
            for index, part in zip(order, seen.parts, strict=True):
                advance(index, part)
    finally:
        for generator in generators:
            generator.close()
    return tuple(results[index] for index in range(len(generators)))
