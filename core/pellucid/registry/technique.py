"""The record by which a technique is known before any of its code is imported."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pellucid.errors import ParameterError, PellucidError, PluginError, Unavailable, nearest

if TYPE_CHECKING:
    import inspect

Kind = Literal["explainer", "evaluator", "projector"]

VERBS: dict[str, str] = {"explainer": "explain", "evaluator": "evaluate", "projector": "project"}
"""What a class of each kind must be able to do."""

USES = frozenset({"outputs", "activations", "gradients", "rules", "factors", "data"})
"""What a technique may ask of a model, the vocabulary of `Technique.uses` and `Adapter.offers`."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Technique:
    """What the registry knows of a technique; its code is imported only when it is created.

    Attributes:
        name: lower_snake and unique, such as "grad_cam".
        kind: "explainer", "evaluator" or "projector".
        summary: one sentence for tables.
        target: where the class is, "module:Class".
        title: how the field writes it, such as "Grad-CAM"; by default the name's words.
        explains: what is explained, such as "decision", "model" or "data".
        output: the shape of answer, such as "attribution" or "scores".
        uses: what is asked of a model; a subset of `USES`. Any iterable of words is accepted.
        tags: free words to filter by, such as "image" or "control". Any iterable of words is accepted.
        reference: the publication, such as "Selvaraju et al., 2017".
        better: "higher" or "lower", for evaluators: which score is the good one.
        requires: names of distributions, without versions, that the technique needs beyond Pellucid's own.
        extra: the extra of the providing distribution that brings them.
        plugin: the entry point that provided the record; the registry sets this and the next two.
        distribution: the installed distribution that holds the entry point.
        version: that distribution's version.

    Raises:
        PluginError: if a field is wrong; the message names the record, the field and what was expected.
    """

    name: str
    kind: Kind
    summary: str
    target: str
    _: KW_ONLY
    title: str = ""
    explains: str = ""
    output: str = ""
    uses: AbstractSet[str] = frozenset()
    tags: AbstractSet[str] = frozenset()
    reference: str = ""
    better: Literal["", "higher", "lower"] = ""
    requires: tuple[str, ...] = ()
    extra: str = ""
    plugin: str = ""
    distribution: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        for words in ("uses", "tags"):
            object.__setattr__(self, words, frozenset(self._words(words)))
        object.__setattr__(self, "requires", tuple(self._words("requires")))
        for field in fields(self):
            if field.type == "str" and not isinstance(getattr(self, field.name), str):
                raise self._wrong(field.name, "a string")
        if not _NAME.fullmatch(self.name):
            raise self._wrong("name", "a lower_snake identifier such as 'grad_cam'")
        if self.kind not in VERBS:
            raise self._wrong("kind", _one_of(VERBS), nearest(str(self.kind), VERBS))
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " "))
        if not self.title.isprintable() or self.title != self.title.strip():
            raise self._wrong("title", "a name on one line, such as 'Grad-CAM'")
        if not self.summary.strip() or "\n" in self.summary:
            raise self._wrong("summary", "one line that says what the technique does")
        if not _TARGET.fullmatch(self.target):
            raise self._wrong("target", "'module:Class'")
        for word in sorted(self.uses - USES):
            raise self._wrong("uses", f"words among {_one_of(sorted(USES))}", nearest(word, USES))
        if self.better not in ("", "higher", "lower"):
            raise self._wrong("better", "'higher' or 'lower'")
        if (self.kind == "evaluator") != bool(self.better):
            raise self._wrong("better", "'higher' or 'lower' for an evaluator and '' for every other kind")
        for distribution in self.requires:
            if not _DISTRIBUTION.fullmatch(distribution):
                raise self._wrong("requires", "names of distributions without versions, such as 'pymde'")

    def _words(self, field: str) -> list[str]:
        value = getattr(self, field)
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise self._wrong(field, "several words, such as {'image'}")
        words = list(value)
        if not all(isinstance(word, str) for word in words):
            raise self._wrong(field, "words, such as {'image'}")
        return words

    def _wrong(self, field: str, expected: str, hint: str = "") -> PluginError:
        value = getattr(self, field)
        shown = sorted(value, key=str) if isinstance(value, frozenset) else value
        return PluginError(f"technique {self.name!r}: {field}={shown!r} is not {expected}.{hint}")

    @property
    def provider(self) -> str:
        """Who provides it, such as "pellucid 0.1.0" or, when it was registered by program, the plugin's name."""
        return f"{self.distribution} {self.version}".strip() or self.plugin

    @property
    def qualified(self) -> str:
        """The name that stays unique when two distributions use the same one, "distribution:name"."""
        return f"{self.distribution or self.plugin}:{self.name}"

    @property
    def missing(self) -> tuple[str, ...]:
        """The distributions among `requires` that are not installed."""
        return tuple(name for name in self.requires if not _installed(name))

    @property
    def available(self) -> bool:
        """Whether everything that it requires is installed."""
        return not self.missing

    @property
    def hint(self) -> str:
        """The command that installs what is missing, "" where nothing is."""
        missing = self.missing
        if not missing:
            return ""
        wanted = f"'{self.distribution or 'pellucid'}[{self.extra}]'" if self.extra else " ".join(missing)
        return f"pip install {wanted}"

    def load(self) -> type[Any]:
        """Imports the technique's class.

        Raises:
            Unavailable: if the import fails and a required distribution is missing.
            PluginError: if the import fails otherwise, or what is found is not a class of the record's kind.
        """
        module, _, path = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            if isinstance(error, ImportError) and self.missing:
                raise self._unavailable() from error
            raise PluginError(
                f"{self._who} could not be loaded from {self.target!r}: {type(error).__name__}: {error}"
            ) from error
        verb = VERBS[self.kind]
        if not isinstance(found, type) or not callable(getattr(found, verb, None)):
            raise PluginError(f"{self._who}: {self.target!r} is not a class with a method `{verb}`.")
        return found

    def create(self, **params: Any) -> Any:
        """Makes an instance with the given parameters; the instance's `technique` is this record.

        Raises:
            Unavailable: if a required distribution is missing; the message says what installs it.
            ParameterError: if a parameter is unknown, missing or refused by the technique.
            PluginError: if the technique cannot be loaded.
        """
        if self.missing:
            raise self._unavailable()
        cls = self.load()
        self._check_names(params)
        try:
            instance = cls(**params)
        except PellucidError:
            raise
        except (TypeError, ValueError) as error:
            raise ParameterError(f"technique {self.name!r} refuses its parameters: {error}") from error
        try:
            object.__setattr__(instance, "technique", self)
        except AttributeError as error:
            raise PluginError(f"{self._who}: instances must accept an attribute `technique` (no __slots__).") from error
        return instance

    def parameters(self) -> list[inspect.Parameter]:
        """The keyword parameters of the class, in order. Imports the class.

        Raises:
            Unavailable, PluginError: as `load`.
        """
        return list(_parameters(self.load()))  # type: ignore[arg-type]  # mypy does not know that classes have a hash

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-able values, with what is missing of its requirements."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in record.items()}
        return plain | {"requires": list(self.requires), "missing": list(self.missing), "hint": self.hint}

    @property
    def _who(self) -> str:
        return f"technique {self.name!r} of {self.provider or 'an unregistered plugin'}"

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"technique {self.name!r} needs {', '.join(self.missing)}, which is not installed. Try: {self.hint}"
        )

    def _check_names(self, params: dict[str, Any]) -> None:
        known = self.parameters()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
            return
        names = [parameter.name for parameter in known]
        for name in params:
            if name not in names:
                has = f"Its parameters are {', '.join(names)}." if names else "It has no parameters."
                raise ParameterError(f"technique {self.name!r} has no parameter {name!r}.{nearest(name, names)} {has}")
        for parameter in known:
            if parameter.default is parameter.empty and parameter.name not in params:
                raise ParameterError(f"technique {self.name!r} needs the parameter {parameter.name!r}.")


@functools.cache
def _parameters(cls: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    import inspect  # only when something is created or shown: it would slow `pellucid list`

    parameters = inspect.signature(cls).parameters.values()
    return tuple(parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        # A package may be importable without metadata, for example on a path that was added by hand.
        return importlib.util.find_spec(re.sub(r"[-.]", "_", distribution)) is not None
    return True


def _one_of(words: Iterable[str]) -> str:
    return ", ".join(map(repr, words))
