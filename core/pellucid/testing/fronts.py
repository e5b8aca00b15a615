"""The fronts of the conformance kit: a report, parameters for pytest, and a page of all sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pellucid.errors import Unavailable, UnknownTechnique, nearest
from pellucid.registry import registry
from pellucid.registry.technique import VERBS
from pellucid.testing import (  # noqa: F401
    answer,
    axioms,
    behaviour,
    given,
    passes,
    planted,
    planted_concepts,
    planted_exemplars,
    planted_influence,
    projectors,
    records,
    state,
    trajectories,
)
from pellucid.testing.case import Case
from pellucid.testing.laws import GROUPS, LAWS, PLANTING, Broken, Law, Skipped
from pellucid.testing.report import Report, Result
from pellucid.testing.state import isolated
from pellucid.testing.subject import Subject, subject_of

CHECKS = sorted(LAWS, key=lambda law: GROUPS.index(law.group))
"""Every check, group by group."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One check of one technique; calling it raises where the check does not hold.

    Attributes:
        subject: the technique.
        law: the check.
        seed: what inputs and models depend on.
    """

    subject: Subject
    law: Law
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.subject.name}: {self.law.sentence}"

    def __call__(self) -> None:
        """Runs the check on each test instance.

        Raises:
            Broken: with the instance and what was found.
            Skipped: when no instance is one that the check is for.
        """
        instances = self.subject.instances()
        skipped: list[Skipped] = []
        used = instances[:1] if self.law.once else instances
        # Checks that plant something plant their own; the others look at the same examples, and share a result.
        own = self.law.sentence if self.law.group in PLANTING else ""
        for index, instance in enumerate(used):
            digest = hashlib.blake2b(f"{own} {index} {self.seed}".encode(), digest_size=4).digest()
            case = Case(self.subject, index, int.from_bytes(digest, "big"))
            try:
                with isolated():
                    self.law.function(case)
            except Skipped as reason:
                skipped.append(reason)
            except Exception as error:
                told = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
                if isinstance(error, (TypeError, AttributeError)) and not self.subject.yields:
                    verb = VERBS[self.subject.kind]
                    told += f"; `{verb}` has no `yield`, by which a look is taken: seen = yield Look(...)"
                which = f" [{instance!r:.120}]" if len(instances) > 1 else ""
                raise Broken(f"{told}{which}") from error
        if len(skipped) == len(used):
            raise skipped[0]

    def result(self) -> Result:
        """Runs the check and says what came of it; a known failure must fail."""
        sentence = self.law.sentence
        known = self.subject.known_failures.get(sentence)
        try:
            self()
        except Skipped as reason:
            return Result(sentence, "skip", str(reason))
        except Broken as error:
            return Result(sentence, "fail" if known is None else "known", str(error) if known is None else known)
        if known is not None:
            return Result(sentence, "fail", f"it passes, but is excused in known_failures ({known}); remove it there")
        return Result(sentence, "pass")


def check_technique(technique: Any, *, seed: int = 0) -> Report:
    """Checks a technique against the contract.

    Args:
        technique: a name, a record, a class, or an instance, which is then the only one that is checked.
        seed: what the inputs and models of the checks depend on.

    Raises:
        UnknownTechnique, Unavailable, PluginError: when it cannot be loaded.
        ParameterError: when it is no technique, or has no test instances.
    """
    subject = subject_of(technique)
    results = []
    for law in CHECKS:
        excuse = law.excuse(subject)
        results.append(Result(law.sentence, "skip", excuse) if excuse else Trial(subject, law, seed).result())
    return Report(subject.name, tuple(results), seed)


def check_plugin(name: str, *, seed: int = 0) -> list[Report]:
    """Checks all techniques of a plugin; those that are not available have a report without results.

    Args:
        name: the plugin's entry point, its distribution, or its package.
        seed: as for `check_technique`.

    Raises:
        UnknownTechnique: when nothing that is installed has this name.
    """
    chosen = registry().provided_by(name)
    if not chosen:
        known = registry().origins()
        raise UnknownTechnique(f"no plugin {name!r}.{nearest(name, known)} There are {', '.join(known)}.")
    return [
        check_technique(record, seed=seed) if record.available else Report(registry().name_of(record), (), seed)
        for record in chosen
    ]


def parametrize_with_checks(techniques: Iterable[Any], *, seed: int = 0) -> Callable[[Any], Any]:
    """Makes a test of every check of every technique: `@parametrize_with_checks(["grad_cam"])`.

    The test takes one argument, `check`, and calls it. Checks that are not for a technique make no test; known failures
    are strict expected failures; a technique that needs a distribution which is not installed makes one skipped test.

    Args:
        techniques: what `check_technique` takes.
        seed: as for `check_technique`.
    """
    import pytest

    return pytest.mark.parametrize("check", list(_params(techniques, seed)))


def _params(techniques: Iterable[Any], seed: int) -> Iterator[Any]:
    import pytest

    for technique in techniques:
        try:
            subject = subject_of(technique)
        except Unavailable as error:
            name = getattr(technique, "name", technique)
            yield pytest.param(None, id=f"{name}: is available", marks=pytest.mark.skip(reason=str(error)))
            continue
        for law in CHECKS:
            if law.excuse(subject):
                continue
            trial = Trial(subject, law, seed)
            reason = subject.known_failures.get(law.sentence)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=Broken)]
            yield pytest.param(_skipping(trial), id=str(trial), marks=marks)


def _skipping(trial: Trial) -> Callable[[], None]:
    def check() -> None:
        import pytest

        try:
            trial()
        except Skipped as reason:
            pytest.skip(str(reason))

    return check


PREFACE = """# Conformance

What every technique is held to. `pellucid check NAME`, `pellucid.testing.check_technique(name)` and
`@pellucid.testing.parametrize_with_checks([name])` run these checks. Each gets fresh inputs, a fresh model and a fresh
instance, one after the other of those that the class's `test_instances()` gives (by default one, with default
parameters); checks that only read the result of a plain run, or compare others with it, share that result. `axioms` is
what a class claims besides. A class excuses a check with `known_failures = {sentence: reason}`; an excused check that
passes is a failure.

This page is made by `pellucid.testing.page()`. A technique ..."""


def page() -> str:
    """All checks as a page of Markdown, by group: `docs/conformance.md`."""
    lines = [PREFACE]
    group = ""
    for law in CHECKS:
        if law.group != group:
            group = law.group
            lines += ["", f"## {group}", ""]
        kinds = " and ".join(sorted(f"{kind}s" for kind in law.kinds)) if len(law.kinds) < 3 else "all kinds"
        when = "".join(f", {condition.words}" for condition in law.when)
        detail = (law.function.__doc__ or "").partition("\n")[0]
        lines.append(f"* **{law.sentence}** ({kinds}{when}). {detail}")
    return "\n".join(lines) + "\n"
