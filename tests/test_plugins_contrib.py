"""Every folder of plugins_contrib/, from its own wheel: listed, chosen, and its own tests pass."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import advrepair

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "plugins_contrib").glob("*/pyproject.toml"))
EXAMPLE = ROOT / "plugins_contrib" / "advrepair-example-verifier"
TUTORIAL = ROOT / "docs" / "writing-a-verifier.md"
# Libraries that a folder adapts and does not require: without them it is listed all the same.
ADAPTED = {"advrepair-autolirpa": "auto_LiRPA"}

pytestmark = pytest.mark.skipif(not FOLDERS, reason="no checkout: no plugins_contrib/")


@frozen
class Installed:
    """A folder of plugins_contrib, installed from its wheel beside nothing but its own files.

    site: what goes on PYTHONPATH. tests: a copy of its tests, away from its sources.
    """

    project: dict[str, Any]
    wheel: Path
    site: Path
    tests: Path

    @property
    def lacks(self) -> list[str]:
        """Distributions that it requires and this environment does not have."""
        required = [re.split(r"[^\w.-]", each)[0] for each in self.project["dependencies"]]
        return [name for name in required if not any(metadata.distributions(name=name))]

    @property
    def waits_for(self) -> str | None:
        """The library that it adapts, if this environment does not have it."""
        module = ADAPTED.get(self.project["name"])
        return module if module and importlib.util.find_spec(module) is None else None

    def python(self, *arguments: str | Path, code: int = 0) -> str:
        """What ``python ARGUMENTS`` prints; it starts where no sources lie."""
        return python(*arguments, cwd=self.tests.parent, path=self.site, code=code)


def python(*arguments: str | Path, cwd: Path, path: Path | None = None, code: int = 0) -> str:
    """What a new Python prints, with path on PYTHONPATH: stdout, or stderr if it fails with code.

    Any other exit code is a failure that shows both.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{arguments} did not end\n{late.stdout!r}\n{late.stderr!r}")
    shown = f"{arguments} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, shown
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """Built from a copy: a build leaves files in the folder that a later one would take up."""
    folder: Path = request.param
    top = tmp_path_factory.mktemp("plugin")
    source, wheels, site, away = (top / name for name in ("source", "wheels", "site", "away"))
    ignore = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".*")
    shutil.copytree(folder, source, ignore=ignore)
    shutil.copytree(source / "tests", away / "tests")
    pip = ("-m", "pip", "--isolated", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    python(*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, source, cwd=top)
    (wheel,) = wheels.iterdir()
    python(*pip, "install", *offline, "--target", site, wheel, cwd=top)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Installed(project, wheel, site, away / "tests")


@pytest.fixture
def usable(installed: Installed) -> Installed:
    if installed.lacks:
        # Where the library is meant to be there, passing over its tests would hide that it is not.
        assert not os.environ.get("ADVREPAIR_CONTRIB"), f"not installed: {installed.lacks}"
        pytest.skip(f"not installed: {', '.join(installed.lacks)}")
    return installed


def entries(plugin: Installed) -> list[dict[str, Any]]:
    """What ``advrepair plugins`` lists of it."""
    listing = json.loads(plugin.python("-m", "advrepair", "plugins", "--json"))
    return [each for each in listing if each["distribution"] == plugin.project["name"]]


def test_the_wheel_is_named_like_the_folder_and_holds_no_tests(installed: Installed) -> None:
    name, version, *_ = installed.wheel.stem.split("-")
    assert (name.replace("_", "-"), version) == (
        installed.project["name"],
        installed.project["version"],
    )
    assert not (installed.site / "tests").exists()
    assert not (installed.site / "advrepair").exists()


def test_it_is_listed_without_a_problem(usable: Installed) -> None:
    found = entries(usable)
    assert found
    for entry in found:
        assert entry["problem"] is None
        assert entry["version"] == usable.project["version"]
        assert entry["summary"]


def test_its_verifiers_repair_the_demo(usable: Installed, tmp_path: Path) -> None:
    for name in [entry["name"] for entry in entries(usable) if entry["kind"] == "verifier"]:
        out = tmp_path / name
        run = ("-m", "advrepair", "run", "--verifier", name, "--count", "5", "--out", out)
        if missing := usable.waits_for:
            assert f"needs {missing}" in " ".join(usable.python(*run, code=2).split())
            pytest.skip(f"not installed: {missing}")
        usable.python(*run)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert report["problem"]["verifier"] == name
        assert report["problem"]["certifier"] == "deeppoly"  # none of them is rigorous
        assert report["properties"]["certified"] == report["properties"]["total"] == 5


def test_its_executors_repair_the_demo(usable: Installed, tmp_path: Path) -> None:
    found = [entry["name"] for entry in entries(usable) if entry["kind"] == "executor"]
    run = ("-m", "advrepair", "run", "--count", "20", "--out")
    for name in found:
        usable.python(*run, tmp_path / "here")
        usable.python(*run, tmp_path / name, "--executor", name)
        written = tomllib.loads((tmp_path / name / "run.toml").read_text(encoding="utf-8"))
        assert written["plan"]["executor"] == name
        for file in ("certificate.json", "certificate.safetensors", "repaired.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_its_methods_are_compared_on_the_demo(usable: Installed, tmp_path: Path) -> None:
    names = [entry["name"] for entry in entries(usable) if entry["kind"] == "method"]
    if not names:
        return
    out, asked = tmp_path / "cmp", ["--count", "3", "--epsilon", "0.05", "--limit", "5"]
    compare = ("-m", "advrepair", "compare", "--methods", ",".join(names), *asked, "--out", out)
    usable.python(*compare)
    whole = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    ends = {row["method"]: (row["status"], row["reason"]) for row in whole["rows"]}
    assert list(ends) == names
    broken = {name: end for name, end in ends.items() if end[0] in ("failed", "refused")}
    assert not broken
    assert {row["distribution"] for row in whole["rows"]} == {
        f"{usable.project['name']} {usable.project['version']}"
    }


def test_its_own_tests_pass(usable: Installed) -> None:
    pytest_alone = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    shown = usable.python(*pytest_alone, usable.tests)
    assert re.search(r"^\d+ passed", shown, re.M), shown
    # What needs the library that it adapts is passed over without it, and nothing else is.
    assert ("skipped" in shown) == (usable.waits_for is not None), shown


def test_it_imports_what_a_third_party_may(installed: Installed) -> None:
    """Names that docs/index.md promises, and advrepair.testing."""
    for path in [*installed.site.rglob("*.py"), *installed.tests.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                assert not any(name.startswith("advrepair.") for name in names), path.name
            elif isinstance(node, ast.ImportFrom) and node.module == "advrepair":
                assert {alias.name for alias in node.names} <= set(advrepair.__all__), path.name
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("advrepair."):
                assert (node.module or "").startswith("advrepair.testing"), path.name


# Pages ---------------------------------------------------------------------------------


def test_every_folder_is_in_the_table() -> None:
    text = (ROOT / "plugins_contrib" / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        assert f"| [{folder.name}]({folder.name}/README.md) |" in text


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "plugins_contrib" / "README.md", *(f / "README.md" for f in FOLDERS)):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.parent.name}: {target}"


def test_the_tutorial_ends_with_the_example() -> None:
    """The page shows every file of the folder, word for word."""
    text = TUTORIAL.read_text(encoding="utf-8")
    shown = re.findall(r"^```(?:toml|python)\n(.*?)^```$", text, re.M | re.S)
    files = ("pyproject.toml", "advrepair_example_verifier.py", "tests/test_conformance.py")
    for name, block in zip(files, shown, strict=True):
        assert (EXAMPLE / name).read_text(encoding="utf-8") == block, f"{TUTORIAL.name}: {name}"
        assert f"`{name}`" in text
