"""What is promised to users and plugin authors, and who may import whom."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import advrepair

ROOT = Path(advrepair.__file__).parent
# Each module of the core imports only from those before it.
ORDER = [
    "errors",
    "files",
    "devices",
    "rounding",
    "box_index",
    "membership",
    "box",
    "types",
    "branches",
    "layout",
    "options",
    "graph",
    "tasks",
    "operators",
    "onnx_writer",
    "row_wise",
    "interfaces",
    "hookspecs",
    "registry",
    "sections",
    "config",
    "assembly",
    "erf_products",
    "layers",
    "nnet",
    "onnx_constants",
    "onnx_call",
    "onnx_operators",
    "onnx_import",
    "torch_operators",
    "torch_layers",
    "tracing",
    "network",
    "data",
    "formulas",
    "specification",
    "vnnlib_terms",
    "vnnlib2",
    "vnnlib",
    "compatibility",
    "properties",
    "specified",
    "paired",
    "parting",
    "patching",
    "routing_steps",
    "onnx_export",
    "torch_export",
    "relu_form",
    "agreement",
    "batches",
    "front",
    "sampling",
    "bounding",
    "shards",
    "refinement",
    "constant",
    "optimisers",
    "training",
    "detecting",
    "intrusion",
    "capping",
    "attacking",
    "covering",
    "branching",
    "proof",
    "certification",
    "evaluation",
    "preserving",
    "solving",
    "screening",
    "violations",
    "areas",
    "unseen",
    "refuting",
    "verifying",
    "artefacts",
    "shell_claims",
    "exporting",
    "locking",
    "run_folder",
    "results",
    "flat",
    "work",
    "inputs",
    "memory",
    "counting",
    "workload",
    "estimate",
    "room",
    "finding",
    "remembering",
    "statistics",
    "threats",
    "lookup",
    "assessment",
    "flags",
    "evaluating",
    "reporting",
    "pipeline",
    "methods",
    "measuring",
    "isolation",
    "comparison_rows",
    "comparison_table",
    "comparing",
    "evaluating_again",
    "guarantees",
    "verifying_files",
]
FOR_PLUGINS = {
    "interfaces",
    "box",
    "branches",
    "types",
    "tasks",
    "options",
    "hookspecs",
    "errors",
    "graph",
    "rounding",
}
CORE = sorted(path.stem for path in (ROOT / "core").glob("*.py") if path.stem != "__init__")
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules of advrepair that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "advrepair"}


def core_modules(path: Path) -> set[str]:
    """Modules of the core that a file imports."""
    parts = (name.split(".") for name in imported(path))
    return {part[2] for part in parts if part[1:2] == ["core"] and len(part) > 2} & set(CORE)


def test_every_promised_name_is_there_and_described():
    assert advrepair.__all__ == sorted(advrepair.__all__)
    assert len(set(advrepair.__all__)) == len(advrepair.__all__)
    for name in advrepair.__all__:
        found = getattr(advrepair, name)
        assert found is not None
        if inspect.isclass(found) or inspect.isfunction(found):
            assert (found.__doc__ or "").strip(), f"{name} has no docstring"
    namespace = {}
    exec("from advrepair import *", namespace)
    assert set(advrepair.__all__) <= set(namespace)


def test_what_is_promised_is_what_is_listed():
    assert set(advrepair.__all__) == {n for names in advrepair._HOMES.values() for n in names}
    assert set(dir(advrepair)) == {*advrepair.__all__, "__version__"}
    declared = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = [node for node in declared.body if isinstance(node, ast.If)]
    names = {a.name for node in typed.body for a in getattr(node, "names", ())}
    assert set(advrepair.__all__) == names


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = advrepair.nonsense


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert advrepair.__version__ == version("advrepair")


def test_importing_it_does_not_wait_for_torch():
    code = (
        "import sys, advrepair; advrepair.UsageError;"
        "from advrepair import Allocator, Attack, CompleteVerifier, Indicator, Method, Refiner;"
        "from advrepair import MethodResult, MethodStatus, Scope, Task;"
        "from advrepair import hookimpl, option;"
        "heavy = {'torch', 'numpy', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_what_attacks_get_is_on_the_page_of_plugin_authors():
    from advrepair.core import interfaces, row_wise

    assert interfaces.of_rows is row_wise.of_rows
    assert interfaces.RowWise is row_wise.RowWise
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = interfaces.nonsense


def test_the_order_names_every_module_of_the_core():
    assert sorted(ORDER) == CORE


@pytest.mark.parametrize("module", CORE)
def test_a_module_of_the_core_imports_only_from_above(module):
    path = ROOT / "core" / f"{module}.py"
    outside = {name for name in imported(path) if not name.startswith("advrepair.core")}
    assert outside <= {"advrepair", "advrepair.demo"}, outside  # the bundled demo's files
    above = set(ORDER[: ORDER.index(module)])
    assert core_modules(path) <= above, sorted(core_modules(path) - above)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plugin_imports_the_page_of_plugin_authors_and_its_own(path):
    assert core_modules(path) <= FOR_PLUGINS, sorted(core_modules(path) - FOR_PLUGINS)
    own = ("advrepair.core", "advrepair.plugins")
    assert all(name.startswith(own) for name in imported(path))


def test_nobody_imports_a_plugin_but_plugins():
    for path in ROOT.rglob("*.py"):
        if "plugins" not in path.relative_to(ROOT).parts[:1]:
            names = {n for n in imported(path) if n.startswith("advrepair.plugins")}
            assert not names, f"{path.name} imports {names}"


def test_only_the_command_line_prints_or_exits():
    for path in ROOT.rglob("*.py"):
        # The checker stands alone, its command included.
        if path.relative_to(ROOT).parts[0] in ("cli", "__main__.py") or (
            path.relative_to(ROOT).parts == ("checker", "__main__.py")
        ):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                bad = name in ("print", "exit", "quit", "sys.exit", "os._exit", "SystemExit")
                bad |= name.startswith(("sys.stdout", "sys.stderr"))
                assert not bad, f"{path.relative_to(ROOT)}:{node.lineno} calls {name}"
            if isinstance(node, ast.Raise) and node.exc is not None:
                assert "SystemExit" not in ast.unparse(node.exc), path


@pytest.mark.parametrize("module", CORE)
def test_every_module_and_class_of_the_core_is_described(module):
    tree = ast.parse((ROOT / "core" / f"{module}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), module
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_products_do_not_depend_on_where_in_memory_a_row_lies() -> None:
    code = "import os, advrepair; print(os.environ['MKL_CBWR'])"
    bare = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    for given, found in ((bare, "AUTO"), (bare | {"MKL_CBWR": "AVX2"}, "AVX2")):
        done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True)
        assert done.stdout.decode().strip() == found
