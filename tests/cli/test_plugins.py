import json
import subprocess
import sys
from types import ModuleType
from typing import ClassVar

import attrs
import pytest

from advrepair.cli import main
from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Refiner
from advrepair.core.options import describe, option
from advrepair.core.registry import Registry
from advrepair.core.sections import SECTIONS


@attrs.frozen
class Thirds(Refiner):
    """Cuts in thirds."""

    name: ClassVar[str] = "thirds"
    depth: int = option(4, "how deep", at_least=1)
    sizes: tuple[float, ...] = option((0.5, 0.25), "how large")

    def choose(self, box, margin, slope, budget): ...


class Unfinished(Refiner):
    name: ClassVar[str] = "unfinished"


def _module(name, *classes):
    module = ModuleType(name)

    @hookimpl
    def advrepair_components():
        return classes

    module.advrepair_components = advrepair_components
    return module


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    found = Registry(_module("fake_thirds", Thirds), _module("fake_broken", Unfinished))
    monkeypatch.setattr(Registry, "load", lambda: found)


def test_the_listing(capsys):
    assert main(["plugins"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert any(line.split()[:2] == ["refiner", "thirds"] for line in out.splitlines())
    assert "Cuts in thirds." in out
    assert "refiner unfinished" in out.split("Cannot be used:")[1]
    assert "does not implement choose" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_the_options_of_a_component(capsys):
    assert main(["plugins", "thirds"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert out.startswith("thirds (refiner, -): Cuts in thirds.\n")
    assert ["depth", "int", "4", "how", "deep", "(at", "least", "1)"] in rows
    assert ["sizes", "list", "of", "float", "[0.5,", "0.25]", "how", "large"] in rows


@pytest.mark.parametrize("name", SECTIONS)
def test_the_options_of_a_section(name, capsys):
    assert main(["plugins", name]) == 0
    out = capsys.readouterr().out
    assert all(each.name in out for each in describe(SECTIONS[name]))


def test_why_a_component_cannot_be_used(capsys):
    assert main(["plugins", "unfinished"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "cannot be used: plugin 'fake_broken' (fake_broken) is quarantined" in out


def test_json(capsys):
    assert main(["plugins", "--json"]) == 0
    thirds, unfinished = json.loads(capsys.readouterr().out)
    assert (thirds["kind"], thirds["name"], thirds["problem"]) == ("refiner", "thirds", None)
    assert thirds["options"][1] == {
        "name": "sizes",
        "type": "list of float",
        "default": [0.5, 0.25],
        "help": "how large",
        "limits": "",
    }
    assert "quarantined" in unfinished["problem"]


# Of the built-ins alone: what else is installed may import what it likes.
LISTING = """
import sys
from advrepair.cli import main
from advrepair.core import registry
built_in = [each for each in registry._entry_points() if each[0].distribution == registry.BUILT_IN]
registry._entry_points = lambda: built_in
assert main(sys.argv[1:]) == 0
print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [(), ("--json",), ("training",), ("deeppoly",)])
def test_the_built_in_components_are_listed_without_torch(arguments):
    def listed(code):
        command = [sys.executable, "-c", code, "plugins", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout, done.stderr

    out, err = listed(LISTING)
    assert err == "False\n" and out
    assert listed("import torch\n" + LISTING) == (out, "True\n")


def test_json_of_one(capsys):
    assert main(["plugins", "thirds", "--json"]) == 0
    (thirds,) = json.loads(capsys.readouterr().out)
    assert thirds["name"] == "thirds"


def test_an_unknown_name(capsys):
    assert main(["plugins", "third"]) == 2
    assert capsys.readouterr() == ("", "error: unknown component 'third': did you mean 'thirds'?\n")
