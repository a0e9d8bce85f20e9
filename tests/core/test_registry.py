"""The registry meets installed distributions that are broken in every way."""

import sys
import textwrap
from types import ModuleType

import attrs
import pytest

from advrepair.core.errors import PluginError, UsageError
from advrepair.core.interfaces import Allocator, Indicator, Refiner
from advrepair.core.options import option
from advrepair.core.registry import KINDS, RESERVED, Registry, check_component
from advrepair.core.sections import ROLES, SECTIONS

PREAMBLE = """
from __future__ import annotations
from typing import ClassVar
from attrs import define, field, frozen
from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component, Indicator, Refiner
from advrepair.core.options import option

@frozen
class Good(Refiner):
    '''Cuts nothing.'''
    name: ClassVar[str] = "good-NAME"
    steps: int = option(3, "how often", at_least=1)
    def choose(self, box, margin, slope, budget): ...
"""
HOOK = """
@hookimpl
def advrepair_components():
    return [{}]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution advrepair-NAME with an entry point NAME."""
    monkeypatch.syspath_prepend(tmp_path)

    def _install(name, code, value=None):
        module = f"advrepair_fake_{name}"
        source = PREAMBLE.replace("NAME", name) + textwrap.dedent(code)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"advrepair_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: advrepair-{name}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[advrepair]\n{name} = {value or module}\n")

    yield _install
    for module in [each for each in sys.modules if each.startswith("advrepair_fake_")]:
        del sys.modules[module]


def _entries(registry, name):
    return [entry for entry in registry.listing() if entry.name == name]


def test_a_good_plugin(install):
    install("a", HOOK.format("Good"))
    registry = Registry.load()
    found = registry.find("refiner", "good-a")
    assert issubclass(found, Refiner)
    assert found().steps == 3
    (entry,) = _entries(registry, "good-a")
    assert (entry.kind, entry.distribution, entry.version) == ("refiner", "advrepair-a", "1.2")
    assert (entry.summary, entry.problem) == ("Cuts nothing.", None)
    assert [each.name for each in entry.options] == ["steps"]


CLASSES = {
    "not-a-component": ("class X: name = 'x'", "is not a Component class"),
    "instance": ("X = 3", "3 is not a Component class"),
    "no-kind": (
        "@frozen\nclass X(Component):\n    '''X.'''\n    name = 'x'",
        "X: derive it from one of verifier, indicator",
    ),
    "abstract": ("@frozen\nclass X(Refiner):\n    '''X.'''\n    name = 'x'", "implement choose"),
    "no-name": (
        "@frozen\nclass X(Refiner):\n    '''X.'''\n    def choose(self): ...",
        "X: lacks the class attribute 'name'",
    ),
    "no-constant": (
        "@frozen\nclass X(Indicator):\n    '''X.'''\n    name = 'x'\n    def assign(self): ...",
        "X: lacks the class attribute 'allocator'",
    ),
    "bad-name": (
        "@frozen\nclass X(Refiner):\n    '''X.'''\n    name = 'a b'\n    def choose(self): ...",
        "name 'a b' may hold only letters",
    ),
    "reserved": (
        "@frozen\nclass X(Refiner):\n    '''X.'''\n    name = 'run'\n    def choose(self): ...",
        "'run' is a section of advrepair's own",
    ),
    "not-attrs": (
        "class X(Refiner):\n    '''X.'''\n    name = 'x'\n    def choose(self): ...",
        "X: decorate it with @attrs.frozen",
    ),
    "inherited-attrs": (
        "class X(Good):\n    '''X.'''\n    name = 'x'",
        "X: decorate it with @attrs.frozen",
    ),
    "not-frozen": (
        "@define\nclass X(Refiner):\n    '''X.'''\n    name = 'x'\n    def choose(self): ...",
        "X: decorate it with @attrs.frozen",
    ),
    "no-docstring": (
        "@frozen\nclass X(Refiner):\n    name = 'x'\n    def choose(self): ...",
        "X: line 1 of its docstring",
    ),
    "plain-field": (
        "@frozen\nclass X(Refiner):\n    '''X.'''\n    name = 'x'\n    k: int = field(default=1)\n"
        "    def choose(self): ...",
        "X.k: declare it with option",
    ),
    "unresolved-type": (
        "@frozen\nclass X(Refiner):\n    '''X.'''\n    name = 'x'\n    k: Missing = option(1, '')\n"
        "    def choose(self): ...",
        "NameError: name 'Missing' is not defined",
    ),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_bad_class_quarantines_its_plugin(install, case):
    code, reason = CLASSES[case]
    install("bad", code + "\n" + HOOK.format("Good, X"))
    install("z", HOOK.format("Good"))
    registry = Registry.load()
    assert registry.find("refiner", "good-z")
    with pytest.raises(PluginError, match="'good-bad' cannot be used") as caught:
        registry.find("refiner", "good-bad")
    assert reason in str(caught.value)
    assert "'bad' (advrepair-bad 1.2) is quarantined" in str(caught.value)
    (entry,) = _entries(registry, "good-bad")
    assert reason in entry.problem


PLUGINS = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "exit": ("raise SystemExit('bye')", "SystemExit: bye"),
    "no-hook": ("", "implements no hook"),
    "misnamed-hook": (
        "@hookimpl\ndef advrepair_component(): return []",
        "unknown hook 'advrepair_component'",
    ),
    "wrong-signature": (
        "@hookimpl\ndef advrepair_components(config): return []",
        "are declared in the hookimpl but can not be found in the hookspec",
    ),
    "not-iterable": ("@hookimpl\ndef advrepair_components(): return 3", "TypeError: 'int'"),
    "raises": ("@hookimpl\ndef advrepair_components(): return 1 / 0", "ZeroDivisionError"),
    "raises-midway": (
        "@hookimpl\ndef advrepair_components():\n    yield Good\n    raise OSError('a\\nb')",
        "OSError: a b",
    ),
}


@pytest.mark.parametrize("case", PLUGINS)
def test_a_bad_plugin_stops_nothing(install, case):
    code, reason = PLUGINS[case]
    install("bad", code)
    install("z", HOOK.format("Good"))
    registry = Registry.load()
    assert registry.find("refiner", "good-z")
    (entry,) = _entries(registry, "bad")
    assert entry.kind == "plugin"
    assert reason in entry.problem
    assert "\n" not in entry.problem
    with pytest.raises(PluginError, match="verifier 'bad' cannot be used"):
        registry.find("verifier", "bad")
    with pytest.raises(UsageError, match=r"unknown verifier 'zzz': .*plugins not loaded: bad"):
        registry.find("verifier", "zzz")


def test_an_entry_point_must_name_a_module(install):
    install("bad", HOOK.format("Good"), value="advrepair_fake_bad:Good")
    (entry,) = _entries(Registry.load(), "bad")
    assert "must name a module" in entry.problem


def test_a_clash_refuses_the_later_class_only(install):
    twin = "@frozen\nclass Twin(Good):\n    '''Twin.'''\n    name: ClassVar[str] = '{}'\n"
    install("a", HOOK.format("Good"))
    install("b", twin.format("good-a") + HOOK.format("Twin, Good"))
    registry = Registry.load()
    assert registry.find("refiner", "good-a").__name__ == "Good"
    assert registry.find("refiner", "good-b")
    first, second = _entries(registry, "good-a")
    assert first.problem is None
    assert second.problem == "the name is taken by advrepair-a 1.2"


def test_a_built_in_name_cannot_be_taken(install):
    code = "@frozen\nclass X(Good):\n    '''X.'''\n    name: ClassVar[str] = 'widest'\n"
    install("a", code + HOOK.format("X"))
    registry = Registry.load()
    assert registry.find("refiner", "widest").__module__.startswith("advrepair.plugins")
    assert [entry.problem for entry in _entries(registry, "widest")] == [
        None,
        f"the name is taken by advrepair {_entries(registry, 'widest')[0].version}",
    ]


@attrs.frozen
class Here(Refiner):
    """Made here."""

    name = "here"
    k: int = option(1, "a number")

    def choose(self, box, margin, slope, budget): ...


@attrs.frozen
class Elsewhere(Allocator):
    """Same name, another kind."""

    name = "here"

    def allocate(self, x, logits, centres): ...


def _module(*classes):
    from advrepair.core.hookspecs import hookimpl

    module = ModuleType("made_here")

    @hookimpl
    def advrepair_components():
        return classes

    module.advrepair_components = advrepair_components
    return module


def test_modules_given_in_python():
    registry = Registry(_module(Here, Elsewhere))
    assert registry.find("refiner", "here") is Here
    assert set(registry.named("here")) == {Here, Elsewhere}
    assert registry.named("nowhere") == ()
    assert [entry.kind for entry in registry.listing()] == ["allocator", "refiner"]
    with pytest.raises(UsageError, match=r"^unknown refiner 'heer': did you mean 'here'\?$"):
        registry.find("refiner", "heer")
    with pytest.raises(UsageError, match=r"^unknown attack 'pgd': there is none to choose from$"):
        registry.find("attack", "pgd")


def test_a_module_given_twice_is_refused_once():
    module = _module(Here)
    registry = Registry(module, module)
    assert registry.find("refiner", "here") is Here
    assert sum(entry.problem is not None for entry in registry.listing()) == 1


def test_registries_share_nothing():
    Registry(_module(Here))
    with pytest.raises(UsageError):
        Registry().find("refiner", "here")


def test_check_component_gives_the_kind():
    assert check_component(Here) == "refiner"
    with pytest.raises(PluginError):
        check_component(Indicator)


def test_a_class_of_two_kinds_is_refused():
    @attrs.frozen
    class Both(Here, Allocator):
        """Both."""

        def allocate(self, x, logits, centres): ...

    with pytest.raises(PluginError, match="derive it from one of"):
        check_component(Both)


def test_the_built_ins_are_sound_and_complete():
    registry = Registry.load()
    entries = [entry for entry in registry.listing() if entry.distribution == "advrepair"]
    assert [entry.problem for entry in entries if entry.problem] == []
    assert {entry.kind for entry in entries} == set(KINDS)


def test_the_core_sections_are_reserved():
    assert set(RESERVED) == {*SECTIONS, *ROLES}
