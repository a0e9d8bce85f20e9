"""The documentation says everything the code can do, and nothing in it leads nowhere."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import advrepair
from advrepair.cli import app, main, verify
from advrepair.core import config, errors, sections
from advrepair.core.files import read_tensors
from advrepair.core.options import Option, describe
from advrepair.core.registry import BUILT_IN, KINDS, Entry, Registry
from advrepair.testing import conformance

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "advrepair"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
INSTALL = "pip install . && advrepair run"
TEST = 'pip install ".[dev]" && python -m pytest -n 2'

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="no checkout: no docs/")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """From a heading to the next one of its level or above; empty if there is none."""
    level = heading.split(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S
    )
    return found.group(1) if found else ""


def first_cells(text: str) -> list[str]:
    """The names in code in the first cell of every row of every table."""
    cells = re.findall(r"^\s*\| (`[^|]*`) \|", text, re.M)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "runs" / "digits"
    assert main(["run", "--count", "3", "--json", "--out", str(folder)]) == 0
    return folder


# Components and options ----------------------------------------------------------------


def built_ins() -> list[Entry]:
    return [entry for entry in Registry.load().listing() if entry.distribution == BUILT_IN]


def option_row(option: Option) -> str:
    limits = f" ({option.limits})" if option.limits else ""
    default = json.dumps(option.default)
    return f"| `{option.name}` | {option.type} | `{default}` | {option.help}{limits} |"


def options_by_heading() -> dict[str, tuple[Option, ...]]:
    known = {f"### {name}": describe(cls) for name, cls in sections.SECTIONS.items()}
    return known | {f"### {e.name} ({e.kind})": e.options for e in built_ins()}


@pytest.mark.parametrize("heading", options_by_heading())
def test_options_are_documented_as_they_are(heading: str) -> None:
    options = options_by_heading()[heading]
    text = section(page("docs/options.md"), heading)
    assert text, f"docs/options.md lacks the heading {heading!r}"
    for option in options:
        assert option_row(option) in text, f"docs/options.md, {heading}: add\n{option_row(option)}"
    assert first_cells(text) == [option.name for option in options]


def test_options_page_has_no_other_headings() -> None:
    found = re.findall(r"^### .*$", page("docs/options.md"), re.M)
    assert sorted(found) == sorted(options_by_heading())


def test_presets_are_documented() -> None:
    text = section(page("docs/options.md"), "## Presets")
    for preset, layer in sections.PRESETS.items():
        assert f"`{preset}`" in text
        for name, options in layer.items():
            for option, value in options.items():
                row = f"| `{name}.{option}` | `{json.dumps(value)}` |"
                assert row in text, f"docs/options.md, Presets: add\n{row}"


@pytest.mark.parametrize("kind", KINDS)
def test_components_are_listed_by_kind(kind: str) -> None:
    text = section(page("docs/plugins.md"), f"## {kind}")
    entries = [entry for entry in built_ins() if entry.kind == kind]
    assert sorted(first_cells(text)) == sorted(entry.name for entry in entries)
    for entry in entries:
        shown = entry.summary.replace("|", "\\|")
        assert shown in text, f"docs/plugins.md, {kind} {entry.name}: its line is {shown!r}"


# Commands and errors -------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command by how it is called, the program itself included."""
    group: Any = typer.main.get_command(app)
    return {"advrepair": group} | {f"advrepair {n}": c for n, c in group.commands.items()}


@pytest.mark.parametrize("name", commands())
def test_flags_are_documented(name: str) -> None:
    text = section(page("docs/commands.md"), f"## {name}")
    assert text, f"docs/commands.md lacks the heading '## {name}'"
    options = [p for p in commands()[name].params if p.param_type_name == "option"]
    flags = {flag for option in options for flag in option.opts} | {"--help"}
    assert set(first_cells(text)) == flags


def test_arguments_are_documented() -> None:
    for name, command in commands().items():
        for argument in (p for p in command.params if p.param_type_name == "argument"):
            word = argument.name.upper()
            assert word in section(page("docs/commands.md"), f"## {name}"), f"{name} {word}"


def exceptions() -> list[type[errors.AdvrepairError]]:
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, errors.AdvrepairError)]


def test_errors_are_documented_with_their_exit_code() -> None:
    text = page("docs/errors.md")
    for error in exceptions():
        row = f"| `{error.__name__}` | {error.exit_code} |"
        assert row in text, f"docs/errors.md: add a row {row} ..."


def test_exit_codes_are_documented() -> None:
    text = section(page("docs/commands.md"), "## Exit codes")
    found = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)}
    assert found == {0, verify.UNKNOWN, 130, 143} | {error.exit_code for error in exceptions()}


# The run folder ------------------------------------------------------------------------


def keys(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all leaves; ``[]`` stands for the items of a list of objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from keys(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from keys(item, prefix + "[]")
    else:
        yield prefix


@pytest.mark.parametrize("name", ["report.json", "certificate.json", "manifest.json"])
def test_keys_of_the_run_folder_are_documented(name: str, demo_run: Path) -> None:
    written = set(keys(json.loads((demo_run / name).read_text())))
    documented = first_cells(section(page("docs/report.md"), f"## {name}"))
    assert set(documented) == written
    assert len(documented) == len(set(documented))


def test_arrays_are_documented(demo_run: Path) -> None:
    for name in ("certificate.safetensors", "repaired.safetensors"):
        tensors, header = read_tensors(demo_run / name)
        text = section(page("docs/report.md"), f"## {name}")
        patterns = [cell.replace("NAME", "*") for cell in first_cells(text)]
        for tensor in tensors:
            assert any(fnmatch.fnmatch(tensor, p) for p in patterns), f"{name}: {tensor}"
        for pattern in patterns:
            assert fnmatch.filter(tensors, pattern), f"{name} has no {pattern}"
        for key in header:
            assert key in text, f"{name}: header {key}"


def test_files_are_documented(demo_run: Path) -> None:
    table = page("docs/report.md").split("## ")[0]
    written = {path.name for path in demo_run.iterdir()}
    assert set(first_cells(table)) == written
    assert set(first_cells(section(page("README.md"), "## The run folder"))) == written


# Names, modules, shapes ----------------------------------------------------------------


def test_public_names_are_documented() -> None:
    text = section(page("docs/index.md"), "## What may be imported from `advrepair`")
    assert sorted(first_cells(text)) == sorted(advrepair.__all__)


def test_every_module_of_the_core_is_on_the_map() -> None:
    text = section(page("docs/index.md"), "## The tree is the flow of the data")
    rows = [re.findall(r"`core/([\w*]+\.py)`", line) for line in text.splitlines()]
    patterns = [pattern for row in rows for pattern in row]
    modules = [path.name for path in (PACKAGE / "core").glob("[!_]*.py")]
    for name in modules:
        assert any(fnmatch.fnmatch(name, p) for p in patterns), f"docs/index.md: core/{name}"
    for pattern in patterns:
        assert fnmatch.filter(modules, pattern), f"docs/index.md: core/{pattern} is gone"


def docstrings() -> Iterator[tuple[str, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield str(path.relative_to(ROOT)), text


def test_letters_of_shapes_are_defined() -> None:
    table = set(re.findall(r"^\| \*\*(\*?\w)\*\* \|", page("docs/shapes.md"), re.M))
    assert {"P", "Q", "B", "N", "*S", "K", "M"} <= table
    letter = r"(?:\*?[A-Za-z]|\d+|[A-Za-z]\*[A-Za-z]|B or 1|\*shape|\*input shape)"
    for where, text in docstrings():
        for shape in re.findall(rf"(?<!\w)\[({letter}(?:, ?{letter})*)\]", text):
            if "C" in shape:  # channels of an image: C, H, W
                continue
            used = set(re.findall(r"(?<![\w*])\*?[A-Za-z](?!\w)", shape.replace("B or 1", "B")))
            unknown = {each for each in used if each not in table}
            assert not unknown, f"{where}: [{shape}] uses {unknown}; define it in docs/shapes.md"


# Links, paths, snippets ----------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{path.name}: {target}"


RECORDS = sorted((ROOT / "benchmarks" / "records").rglob("*.json"))


@pytest.mark.parametrize("path", [*PAGES, *RECORDS], ids=lambda path: path.name)
def test_no_paths_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.:/])/(?:home|work|tmp|root|opt|usr|Users|mnt)/\S*", text)
    assert not found
    assert not re.search(r"\b[A-Z]:\\", text)


def test_every_page_is_on_the_map() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert f"({path.name})" in page("docs/index.md") or path.name == "index.md", path.name


def test_readme_has_its_two_commands_once_and_as_single_lines() -> None:
    lines = [line.strip() for line in page("README.md").splitlines()]
    assert lines.count(INSTALL) == 1
    assert lines.count(TEST) == 1
    assert sum(line.startswith("pip install") for line in lines) == 2


def test_readme_shows_what_the_demo_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == 0

    def stable(text: str) -> list[str]:
        """Words, line by line as they fall, without times, memory and padding."""
        text = re.sub(r"^(estimate|seconds|peak memory): .*$", r"\1", text, flags=re.M)
        return text.split()

    (shown,) = code_blocks(page("README.md"), "text")
    assert stable(capsys.readouterr().out) == stable(shown), "paste the new output into README.md"


def test_python_of_the_readme_runs(
    demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_run, tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in code_blocks(page("README.md"), "python"):
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    saved = advrepair.load("runs/python")
    x = names["result"].problem.x_adv
    assert saved(x).equal(names["result"].network(x))


def test_the_verifier_of_the_tutorial_works(tmp_path: Path) -> None:
    """The module on the page is a plugin that passes the checks and repairs the demo."""
    source, _ = code_blocks(page("docs/writing-a-verifier.md"), "python")
    module = types.ModuleType("advrepair_mine")
    exec(compile(source, "advrepair_mine.py", "exec", dont_inherit=True), vars(module))
    registry = Registry.load(module)
    assert [entry.problem for entry in registry.listing() if entry.name == "mine"] == [None]
    assert conformance(registry.find("verifier", "mine")()) == []  # type: ignore[arg-type]
    asked = {"plan": {"verifier": "mine"}, "problem": {"count": 3}, "mine": {"slack": "0.01"}}
    configuration = config.resolve(registry, [asked])
    from advrepair.core import pipeline

    report = pipeline.run(configuration, registry, tmp_path / "run")
    assert report["properties"]["certified"] == 3
    assert report["problem"]["certifier"] == "deeppoly"


def test_messages_quoted_in_the_docs_exist() -> None:
    """A message that the code no longer gives helps nobody."""
    tables = section(page("docs/errors.md"), "## UsageError") + section(
        page("docs/writing-a-verifier.md"), "## 5. When it does not show up"
    )
    source = " ".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    # Strings are put together again where a line ends inside one.
    source = re.sub(r'"\s+f?"', "", source)
    for quoted in first_cells(tables):
        if quoted.startswith(("ModuleNotFoundError", "unknown hook")):  # Python's, pluggy's
            continue
        parts = [
            part.strip(" '[]") for part in re.split(r"\.\.\.|'[\w ]*'|advrepair 0.1.0", quoted)
        ]
        for part in (part for part in parts if len(part) > 3):
            assert part in source, f"{quoted!r}: the code does not say {part!r}"
