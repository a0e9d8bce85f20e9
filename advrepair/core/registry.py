"""Find, check, quarantine and look up components.

A plugin that breaks the contract is set aside with a one-line reason and stops nothing;
only naming one of its components is an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from importlib import metadata
from types import ModuleType

import attrs
import pluggy

from advrepair.core import hookspecs
from advrepair.core.errors import PluginError, UsageError
from advrepair.core.interfaces import (
    Allocator,
    Attack,
    Component,
    Executor,
    Indicator,
    Method,
    Refiner,
    Verifier,
)
from advrepair.core.options import Option, describe, suggestion

GROUP = "advrepair"
BUILT_IN = "advrepair"
KINDS: dict[str, type[Component]] = {
    "verifier": Verifier,
    "indicator": Indicator,
    "allocator": Allocator,
    "refiner": Refiner,
    "attack": Attack,
    "executor": Executor,
    "method": Method,
}
# Sections of the core's own, and of roles; a component of such a name could not be given options.
RESERVED = (
    "problem",
    "plan",
    "patch",
    "sampling",
    "screening",
    "training",
    "certification",
    "evaluation",
    "comparison",
    "run",
    "verifier",
    "certifier",
    "front",
    "indicator",
    "allocator",
    "refiner",
    "attack",
    "evaluation_attack",
    "executor",
)

_PLUGIN = "plugin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@attrs.frozen
class Entry:
    """One line of ``advrepair plugins``.

    kind: a key of KINDS, or ``plugin`` for one that brought nothing usable. problem: why it
    cannot be used, or None.
    """

    kind: str
    name: str
    distribution: str
    version: str
    summary: str = ""
    options: tuple[Option, ...] = ()
    problem: str | None = None


@attrs.frozen
class _Source:
    """Where a plugin comes from."""

    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.distribution or self.plugin} {self.version}".strip()


def _summary(cls: type) -> str:
    lines = (cls.__dict__.get("__doc__") or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def _itself(plugin: ModuleType) -> ModuleType:
    return plugin


def _kinds(found: type) -> list[str]:
    return [kind for kind, base in KINDS.items() if issubclass(found, base)]


def _check_name(cls: type[Component]) -> None:
    if not isinstance(cls.name, str) or not _NAME.fullmatch(cls.name):
        raise PluginError(f"{cls.__name__}: name {cls.name!r} may hold only letters, digits, - _")
    if cls.name in RESERVED:
        raise PluginError(f"{cls.__name__}: {cls.name!r} is a section of advrepair's own")


def _check_frozen(cls: type[Component]) -> None:
    """Setting an attribute of an instance must fail as attrs makes it fail."""
    if "__attrs_attrs__" in cls.__dict__:
        describe(cls)
        try:
            cls().__setattr__("name", cls.name)
        except attrs.exceptions.FrozenError:
            return
        except AttributeError:
            pass
    raise PluginError(f"{cls.__name__}: decorate it with @attrs.frozen")


def check_component(found: object) -> str:
    """Kind of a component class.

    Raises PluginError saying what the author must mend: not a concrete class of exactly one
    kind, a class attribute missing, not a frozen attrs class, options not made by ``option``,
    no docstring, or a name that cannot be a section.
    """
    if not (isinstance(found, type) and issubclass(found, Component)):
        raise PluginError(f"{found!r} is not a Component class")
    where, kinds = found.__name__, _kinds(found)
    if len(kinds) != 1:
        raise PluginError(f"{where}: derive it from one of {', '.join(KINDS)}")
    abstract = sorted(getattr(found, "__abstractmethods__", ()))
    if abstract:
        raise PluginError(f"{where}: does not implement {', '.join(abstract)}")
    for base in (Component, KINDS[kinds[0]]):
        for attribute in inspect.get_annotations(base):
            if not hasattr(found, attribute):
                raise PluginError(f"{where}: lacks the class attribute {attribute!r}")
    _check_name(found)
    _check_frozen(found)
    if not _summary(found):
        raise PluginError(f"{where}: line 1 of its docstring is its listing, and it has none")
    return kinds[0]


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


def _entry_points() -> list[tuple[_Source, metadata.EntryPoint]]:
    """Entry points of the group: the built-ins first, then by name."""
    found = []
    for point in metadata.entry_points(group=GROUP):
        dist = point.dist
        source = _Source(point.name, dist.name if dist else "", dist.version if dist else "")
        found.append((source, point))
    found.sort(key=lambda pair: (pair[0].distribution != BUILT_IN, pair[0].plugin, str(pair[0])))
    return found


class Registry:
    """The components at hand, by kind and name.

    plugins: modules that implement the hook. :meth:`load` adds those that are installed.
    """

    def __init__(self, *plugins: ModuleType) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._found: dict[tuple[str, str], type[Component]] = {}
        self._origin: dict[tuple[str, str], _Source] = {}
        self._entries: list[Entry] = []
        self._quarantined: dict[str, str] = {}
        self._add(*plugins)

    @classmethod
    def load(cls, *plugins: ModuleType) -> Registry:
        """All installed plugins, the built-ins first, and then the modules given."""
        registry = cls()
        for source, point in _entry_points():
            registry._admit(source, point.load)
        registry._add(*plugins)
        return registry

    def find(self, kind: str, name: str) -> type[Component]:
        """The class of a component.

        Raises UsageError for an unknown name, PluginError for one of a quarantined plugin.
        """
        if (kind, name) in self._found:
            return self._found[kind, name]
        for entry in self._entries:
            if (entry.kind, entry.name) == (kind, name):
                raise PluginError(f"{kind} {name!r} cannot be used: {entry.problem}")
        if name in self._quarantined:
            raise PluginError(f"{kind} {name!r} cannot be used: {self._quarantined[name]}")
        known = [each for each_kind, each in self._found if each_kind == kind]
        missing = ", ".join(self._quarantined)
        note = f" (plugins not loaded: {missing}; see 'advrepair plugins')" if missing else ""
        raise UsageError(f"unknown {kind} {name!r}: {suggestion(name, known)}{note}")

    def named(self, name: str) -> tuple[type[Component], ...]:
        """Classes of that name, of whatever kind."""
        return tuple(cls for (_, each), cls in self._found.items() if each == name)

    def listing(self) -> list[Entry]:
        """Everything found, by kind and name; what cannot be used carries its problem."""
        order = [*KINDS, _PLUGIN]
        return sorted(self._entries, key=lambda entry: (order.index(entry.kind), entry.name))

    def _add(self, *plugins: ModuleType) -> None:
        for plugin in plugins:
            self._admit(_Source(plugin.__name__), partial(_itself, plugin))

    def _admit(self, source: _Source, load: Callable[[], object]) -> None:
        """Take a plugin in, or quarantine it: whatever it does, the others go on."""
        classes: list[object] = []
        try:
            classes = self._collect(source, load())
            kinds = [check_component(found) for found in classes]
        except (Exception, SystemExit) as error:
            self._quarantine(source, classes, _reason(error))
            return
        for kind, found in zip(kinds, classes, strict=True):
            self._accept(source, kind, found)  # type: ignore[arg-type]

    def _collect(self, source: _Source, plugin: object) -> list[object]:
        """What the plugin's hook returns."""
        if not isinstance(plugin, ModuleType):
            raise PluginError("the entry point must name a module")
        key = f"{source.distribution}:{source.plugin}"
        manager = self._manager
        try:
            manager.register(plugin, key)
            manager.check_pending()
            if not manager.get_hookcallers(plugin):
                raise PluginError("implements no hook; it needs advrepair_components")
            others = [each for each in manager.get_plugins() if each is not plugin]
            answers = manager.subset_hook_caller("advrepair_components", others)()
            return [found for answer in answers for found in answer]
        except BaseException:
            if manager.get_plugin(key) is plugin:
                manager.unregister(name=key)
            raise

    def _accept(self, source: _Source, kind: str, found: type[Component]) -> None:
        key, problem = (kind, found.name), None
        if key in self._found:
            problem = f"the name is taken by {self._origin[key]}"
        else:
            self._found[key], self._origin[key] = found, source
        self._entries.append(_entry(source, kind, found, describe(found), problem))

    def _quarantine(self, source: _Source, classes: list[object], reason: str) -> None:
        """Record the plugin, and those of its classes that have a kind and a name."""
        problem = f"plugin {source.plugin!r} ({source}) is quarantined: {reason}"
        self._quarantined[source.plugin] = problem
        named = [
            (_kinds(found)[0], found)
            for found in classes
            if isinstance(found, type)
            and _kinds(found)
            and isinstance(getattr(found, "name", None), str)
        ]
        for kind, found in named:
            self._entries.append(_entry(source, kind, found, (), problem))
        if not named:
            lost = Entry(
                _PLUGIN, source.plugin, source.distribution, source.version, problem=problem
            )
            self._entries.append(lost)


def _entry(
    source: _Source,
    kind: str,
    found: type[Component],
    options: tuple[Option, ...],
    problem: str | None,
) -> Entry:
    return Entry(
        kind=kind,
        name=found.name,
        distribution=source.distribution,
        version=source.version,
        summary=_summary(found),
        options=options,
        problem=problem,
    )
