"""The registry: finds plugins, keeps their records, and never lets one plugin harm another."""

from __future__ import annotations

import importlib.metadata
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from types import ModuleType

import pluggy

from pellucid.errors import PluginError, nearest
from pellucid.registry import hooks
from pellucid.registry.core import Core
from pellucid.registry.installed import Found, find
from pellucid.registry.problem import Problem, told
from pellucid.registry.technique import Technique

GROUP = "pellucid"
"""The entry point group, the hook project's name, and the distribution whose names win."""


class _Opened:
    """A plugin module that defines `__dir__`, as lazily importing packages do, with the hooks that this would hide."""

    def __init__(self, module: ModuleType) -> None:
        vars(self).update(vars(module))


class Registry:
    """All techniques of all plugins, with what is wrong with the plugins that fail.

    Attributes:
        records: every technique by name; a duplicate by "distribution:name".
        disabled: the techniques that `PELLUCID_DISABLE` names.
        blocked: the plugins that `PELLUCID_DISABLE` names; their code was not imported.
        problems: broken plugins, conflicts, and names in `PELLUCID_DISABLE` that nothing has.
        hook: pluggy's callers, `registry.hook.pellucid_adapt(model=model, options={})`.

    Args:
        distributions: where plugins are looked for, by default everything installed.
        disable: names of plugins and techniques, by default those in the environment's `PELLUCID_DISABLE`, separated by
            commas.
        trace: whether to print each hook call to stderr, by default whether `PELLUCID_TRACE` is set and not "0".
    """

    def __init__(
        self,
        distributions: Iterable[importlib.metadata.Distribution] | None = None,
        *,
        disable: Iterable[str] | None = None,
        trace: bool | None = None,
    ) -> None:
        self.records: dict[str, Technique] = {}
        self.disabled: dict[str, Technique] = {}
        self.blocked: dict[str, str] = {}
        self.problems: list[Problem] = []
        self._by_program: set[str] = set()
        self._unused = set(_words(os.environ.get("PELLUCID_DISABLE", "")) if disable is None else disable)
        self._disable = frozenset(self._unused)
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hooks)
        self._core = Core(self._manager)
        self._manager.register(self._core, "core")
        self.hook = self._manager.hook
        if os.environ.get("PELLUCID_TRACE", "0") not in ("", "0") if trace is None else trace:
            from pellucid.registry.trace import trace_calls

            trace_calls(self._manager)
        where = importlib.metadata.distributions() if distributions is None else distributions
        for found in sorted(find(GROUP, where, self._unreadable), key=_first_party_first):
            self._load(*found)
        self._report_unused()

    def name_of(self, record: Technique) -> str:
        """The name by which a record is found here: its own, or "distribution:name" where another one has that."""
        return record.name if self.records.get(record.name) == record else record.qualified

    def provided_by(self, name: str) -> list[Technique]:
        """The techniques of a plugin, by its entry point, its distribution or its package."""
        return [record for record in self.records.values() if _plain(name) in _origins(record)]

    def origins(self) -> list[str]:
        """Every name that `provided_by` knows."""
        return sorted({origin for record in self.records.values() for origin in _origins(record)})

    def register(self, plugin: object, name: str) -> list[Technique]:
        """Adds a plugin by program, for example in a notebook, and returns its techniques.

        Args:
            plugin: a module or object with functions that `@hookimpl` decorates.
            name: under which its techniques are listed; registering the same name again replaces the plugin.

        Raises:
            PluginError: if anything is wrong with the plugin; nothing of it is kept then.
        """
        if self._manager.get_plugin(name) is not None and name not in self._by_program:
            raise PluginError(f"plugin {name!r}: an installed plugin has this name. Register under another one.")
        self.unregister(name)
        known = len(self.problems)
        self._by_program.add(name)
        self._add(plugin, name, name, "", "")
        wrong = self.problems[known:]
        if wrong:
            del self.problems[known:]
            self.unregister(name)
            raise PluginError("; ".join(map(str, wrong)))
        return [record for record in self.records.values() if record.plugin == name and not record.distribution]

    def unregister(self, name: str) -> None:
        """Takes away a plugin that was registered by program, with its techniques; other names do nothing."""
        if name not in self._by_program:
            return
        self._by_program.discard(name)
        if self._manager.get_plugin(name) is not None:
            self._manager.unregister(name=name)
        for key in [key for key, record in self.records.items() if record.plugin == name and not record.distribution]:
            del self.records[key]

    def _unreadable(self, distribution: str, error: Exception) -> None:
        self._report("?", distribution, "could not be found", f"its metadata is broken: {told(error)}", loses=True)

    def _load(self, distribution: str, version: str, entry_point: importlib.metadata.EntryPoint) -> None:
        plugin, long_name = entry_point.name, f"{distribution}:{entry_point.name}"
        for key in (plugin, long_name):
            if key in self._disable:
                self._unused.discard(key)
                self.blocked[long_name] = key
                return
        try:
            loaded = entry_point.load()
        except (Exception, SystemExit) as error:
            hint = f"Its entry point is {entry_point.value!r}."
            self._report(plugin, distribution, "could not be imported", told(error), hint, loses=True)
            return
        if isinstance(loaded, ModuleType) and "__dir__" in vars(loaded):
            loaded = _Opened(loaded)
        name = plugin
        if self._manager.get_plugin(plugin) is not None:
            name = long_name
            why = "two distributions have an entry point of this name"
            self._report(plugin, distribution, "has another plugin's name", why, f"It is loaded as {long_name!r}.")
        self._add(loaded, name, plugin, distribution, version)

    def _add(self, loaded: object, name: str, plugin: str, distribution: str, version: str) -> None:
        """Registers a plugin's hooks and collects its techniques; what is wrong becomes a problem."""
        try:
            if known_as := self._manager.get_name(loaded):
                raise PluginError(f"it is the plugin {known_as!r}, which is loaded already")
            self._manager.register(loaded, name)
            self._check_hooks(loaded)
        except (Exception, SystemExit) as error:
            why = str(error) if isinstance(error, PluginError) else told(error)
            self._report(plugin, distribution, "was refused", why, loses=True)
            if self._manager.get_plugin(name) is loaded:
                self._manager.unregister(name=name)
            return
        kept = (loaded, self._core)
        others = [other for _, other in self._manager.list_name_plugin() if other is not None and other not in kept]
        try:
            items = self._manager.subset_hook_caller("pellucid_techniques", others)()
        except (Exception, SystemExit) as error:
            items = [error]
        if items is None and any(impl.plugin is loaded for impl in self.hook.pellucid_techniques.get_hookimpls()):
            items = [TypeError("it returned None where techniques were expected")]
        for item in items or ():
            if isinstance(item, BaseException):
                self._report(plugin, distribution, "failed while it listed its techniques", told(item), loses=True)
            elif not isinstance(item, Technique):
                why = f"it gave {item!r:.80} where a Technique was expected"
                self._report(plugin, distribution, "provides something else than techniques", why, loses=True)
            else:
                self._keep(replace(item, plugin=plugin, distribution=distribution, version=version))

    def _check_hooks(self, loaded: object) -> None:
        callers = self._manager.get_hookcallers(loaded) or []
        specified = sorted(name for name in vars(hooks) if name.startswith("pellucid_"))
        for caller in callers:
            if caller.has_spec() or all(impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is loaded):
                continue
            raise PluginError(
                f"it implements the unknown hook {caller.name!r}.{nearest(caller.name, specified, limit=1)} "
                f"The hooks are {', '.join(specified)}."
            )
        if not callers:
            raise PluginError("it implements no hook. Decorate its functions with `@hookimpl`.")

    def _keep(self, record: Technique) -> None:
        for key in (record.name, record.qualified):
            if key in self._disable:
                self._unused.discard(key)
                self.disabled[record.qualified] = record
                return
        first = self.records.get(record.name)
        if first is None:
            self.records[record.name] = record
        elif record.qualified in self.records or first.qualified == record.qualified:
            self._conflict(record, first, "It is left out.")
        else:
            self.records[record.qualified] = record
            self._conflict(record, first, f"It stays reachable as {record.qualified!r}.")

    def _conflict(self, record: Technique, first: Technique, hint: str) -> None:
        why = f"{record.name!r} is already provided by plugin {first.plugin!r} of {first.provider}"
        self._report(record.plugin, record.distribution, "has a technique of a taken name", why, hint)

    def _report(
        self, plugin: str, distribution: str, what: str, why: str, hint: str = "", *, loses: bool = False
    ) -> None:
        self.problems.append(Problem(plugin, distribution, what, why, hint, loses))

    def _report_unused(self) -> None:
        names = [*self.records, *self.blocked, *(name.partition(":")[2] for name in self.blocked)]
        names += [record.plugin for record in self.records.values()]
        for name in sorted(self._unused):
            why = f"there is no plugin and no technique {name!r}"
            self._report("PELLUCID_DISABLE", "", "names something unknown", why, nearest(name, names).strip())


def _origins(record: Technique) -> set[str]:
    package = re.split(r"[.:]", record.target)[0]
    return {_plain(part) for part in (record.plugin, record.distribution, package) if part}


def _plain(name: str) -> str:
    """A name as all spellings of it are compared, such as those of a distribution."""
    return re.sub(r"[-_.]+", "-", name).casefold()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _first_party_first(found: Found) -> tuple[bool, str, str]:
    return found.distribution != GROUP, found.distribution, found.entry_point.name


_lock = threading.RLock()
_current: list[Registry] = []
_building: list[bool] = []


def registry() -> Registry:
    """The registry of this process, built at the first call.

    Raises:
        PluginError: if a plugin asks for it while it is being built.
    """
    with _lock:
        if _building:
            raise PluginError("a plugin must not ask the registry for techniques while the registry imports it.")
        if not _current:
            _building.append(True)
            try:
                _current.append(Registry())
            finally:
                _building.clear()
        return _current[0]


def reset() -> None:
    """Forgets the registry, so that the next call builds it again, for example after an installation."""
    with _lock:
        _current.clear()
