"""What is checked: a technique by its name, record, class or instance."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import ParameterError, Unavailable
from pellucid.protocol.explainer import Evaluator, Explainer, Projector
from pellucid.registry import Technique, registry
from pellucid.registry.lookup import technique as named
from pellucid.registry.technique import VERBS

AXIOMS = frozenset(
    {"completeness", "conservation", "linearity", "symmetry", "sensitivity", "implementation_invariance"}
)
"""What a technique's class may claim in `axioms`."""

OTHER_INPUTS = frozenset({"table", "signal", "text"})


@dataclass(frozen=True, eq=False)
class Subject:
    """A technique with everything that decides which checks are for it.

    Attributes:
        name: what reports call it.
        kind: "explainer", "evaluator" or "projector".
        cls: its class.
        record: its record, or None for a class that is in no registry.
        make: makes its test instances, new ones at each call.
        plain: what `Case.plain` has made, by instance, seed and kind of inputs.
    """

    name: str
    kind: str
    cls: type[Any]
    record: Technique | None
    make: Callable[[], list[Any]]
    plain: dict[Any, Any] = field(default_factory=dict)

    @property
    def tags(self) -> frozenset[str]:
        """The record's tags."""
        return frozenset(self.record.tags) if self.record else frozenset()

    @property
    def output(self) -> str:
        """The shape of answer that its record names; an explainer without a record is taken to attribute."""
        return self.record.output if self.record else "attribution"

    @property
    def explains(self) -> str:
        """What its record says it explains."""
        return self.record.explains if self.record else "decision"

    @property
    def control(self) -> bool:
        """Whether it knows nothing of the model, on purpose."""
        return "control" in self.tags

    @property
    def tables_only(self) -> bool:
        """Whether it is for other inputs than images."""
        return bool(self.tags & OTHER_INPUTS) and "image" not in self.tags

    @property
    def axioms(self) -> frozenset[str]:
        """What its class claims."""
        return frozenset(getattr(self.cls, "axioms", ()))

    @property
    def known_failures(self) -> Mapping[str, str]:
        """The checks that its class excuses, with the reasons."""
        return dict(getattr(self.cls, "known_failures", {}))

    @property
    def yields(self) -> bool:
        """Whether its method is a generator, or need be none, since its record says that it looks at nothing."""
        idle = self.kind == "projector" or (self.record is not None and not self.record.uses)
        return idle or inspect.isgeneratorfunction(getattr(self.cls, VERBS[self.kind], None))

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters."""
        return [field.name for field in dataclasses.fields(self.cls)] if dataclasses.is_dataclass(self.cls) else []

    def instances(self) -> list[Any]:
        """New test instances, each with the record.

        Raises:
            ParameterError: when there are none, or `test_instances` gives something else.
        """
        made = self.make()
        if not isinstance(made, list) or not made or not all(isinstance(one, self.cls) for one in made):
            raise ParameterError(
                f"{self.cls.__name__}.test_instances() gave {made!r:.80}; expected a list of at least one instance"
            )
        return [self._recorded(one) for one in made]

    def varied(self, instance: Any, **changes: Any) -> Any:
        """A new instance with some parameters changed."""
        return self._recorded(type(instance)(**{**instance.get_params(), **changes}))

    def _recorded(self, instance: Any) -> Any:
        if self.record is not None:
            object.__setattr__(instance, "technique", self.record)
        return instance


def subject_of(given: Any) -> Subject:
    """Makes a subject of a technique's name, record, class or instance.

    Raises:
        UnknownTechnique, Unavailable, PluginError: as `pellucid.create`.
        ParameterError: when it is none of these.
    """
    if isinstance(given, str):
        given = named(given)
    if isinstance(given, Technique):
        if not given.available:
            missing = ", ".join(given.missing)
            raise Unavailable(f"technique {given.name!r} needs {missing}, which is not installed. Try: {given.hint}")
        cls = given.load()
        return Subject(registry().name_of(given), given.kind, cls, given, _test_instances(cls))
    if inspect.isclass(given):
        return Subject(given.__name__, _kind(given), given, None, _test_instances(given))
    record: Technique | None = getattr(given, "technique", None)
    kind, params = _kind(type(given)), given.get_params() if hasattr(given, "get_params") else {}
    name = record.name if record else type(given).__name__
    return Subject(name, kind, type(given), record, lambda: [type(given)(**params)])


def _test_instances(cls: type[Any]) -> Callable[[], list[Any]]:
    def make() -> list[Any]:
        given: list[Any] = cls.test_instances() if hasattr(cls, "test_instances") else [cls()]
        return given

    return make


def _kind(cls: type[Any]) -> str:
    for kind, base in (("explainer", Explainer), ("evaluator", Evaluator), ("projector", Projector)):
        if issubclass(cls, base):
            return kind
    raise ParameterError(
        f"{cls.__name__} is no technique; expected a name, a record, or a class or instance of an Explainer, "
        "an Evaluator or a Projector"
    )
