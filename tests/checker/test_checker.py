"""The checker agrees with what the repair certifies, and with nothing else."""

import ast
import io
import json
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from folders import edited, repaired, verdict
from problems import SPLITTING, a_registry, configure, write_inputs

import advrepair
from advrepair import checker
from advrepair.cli import main
from advrepair.core import pipeline
from advrepair.testing.networks import NETWORKS

PACKAGE = Path(checker.__file__).parent
DATA = os.environ.get("ADVREPAIR_DATA")


def run(tmp_path: Path, *layers: dict) -> Path:
    registry = a_registry()
    configuration = configure(registry, *write_inputs(tmp_path), *layers)
    pipeline.run(configuration, registry, tmp_path / "run")
    return tmp_path / "run"


def test_it_imports_numpy_and_the_standard_library_only():
    known = {*sys.stdlib_module_names, "numpy"}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            for name in names:
                assert name.startswith("advrepair.checker") or name.split(".")[0] in known


def code_lines(path: Path) -> int:
    """Lines with a token of code: no blank lines, comments or docstrings."""
    text, lines = path.read_text(encoding="utf-8"), set()
    none = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*none, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_it_can_be_read_in_one_sitting():
    assert sum(code_lines(path) for path in PACKAGE.glob("*.py")) < 800


def test_it_loads_no_torch():
    code = "import sys, advrepair.checker; print('torch' in sys.modules or 'attrs' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


CASES = [
    ["--indicator", "property-guided"],
    ["--indicator", "untargeted-label"],
    ["--indicator", "targeted-label", "--set", "patch.hidden=[8]"],
    ["--set", "patch.hidden=[16,8]"],
    ["--level", "real"],
    ["--level", "deployed-float64"],
]


@pytest.mark.parametrize("flags", CASES, ids=" ".join)
def test_the_demo_is_valid(flags, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["run", "--out", out, "--count", "12", "--json", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["check", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["level"]) == ("VALID", report["problem"]["level"])
    assert found["certified"] == report["properties"]["certified"] > 0
    assert found["margin"] > 0


def test_both_ways_in_say_the_same(tmp_path, capsys):
    folder = repaired(tmp_path / "run")
    assert main(["check", str(folder)]) == 0
    line = capsys.readouterr().out
    assert line == "VALID: 6 properties certified at level deployed-float32\n"
    call = [sys.executable, "-m", "advrepair.checker", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (line, "", 0)
    with open(folder / "repaired.safetensors", "ab") as file:
        file.write(b"!")
    assert main(["check", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("INVALID: repaired.safetensors: its SHA-256")
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1


def test_nothing_to_check_is_one_line(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    call = [sys.executable, "-m", "advrepair.checker", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_splits(tmp_path):
    folder = run(tmp_path, SPLITTING, {"problem": {"count": 12}})
    nodes = folders.read(folder, "certificate.safetensors")[0]["tree.dim"]
    assert (nodes >= 0).any()
    assert verdict(folder).word == "VALID"


def test_unknown_properties_are_ignored(tmp_path):
    quick = {"epochs": 1, "rounds": 1, "fallback": False}
    folder = run(tmp_path, SPLITTING, {"training": quick, "problem": {"count": 12}})
    found = verdict(folder)
    assert found.word == "VALID", found.line
    assert found.ignored > 0
    assert found.line.endswith(f"; {found.ignored} not certified and ignored")


@pytest.mark.parametrize("level", ["real", "deployed-float32", "deployed-float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_operation(name, level, tmp_path):
    network = NETWORKS[name](0)
    x = torch.rand(6, *network.input_shape, generator=torch.Generator().manual_seed(0))
    y = (network(x).argmax(1) + 1) % network.outputs  # so all of it is wrong
    settings = {"certification": {"level": level}, "evaluation": {"samples": 1}}
    advrepair.repair(network, x, y, x_adv=x, epsilon=0.05, settings=settings).save(tmp_path)
    found = verdict(tmp_path)
    assert (found.word, found.certified > 0) == ("VALID", True), found.line


def test_no_certified_property(tmp_path):
    def nothing(claim, proof, stored):
        for each in claim["properties"]:
            each["status"] = "unknown"

    found = verdict(edited(repaired(tmp_path / "a"), tmp_path / "b", nothing))
    assert found.line.startswith("VALID: 0 properties certified at level deployed-float32; 6 not")


def overlap(claim, proof, stored):
    """Property 1 gets the box and the demand of property 0, but another patch."""
    for name in ("box.lower", "box.upper", "C", "d", "group", "tree.slope", "piece.slope"):
        proof[name][1] = proof[name][0]
    claim["properties"][1]["label"] = claim["properties"][0]["label"]
    for name in ("lower", "upper"):
        stored[f"region/{name}"][1] = stored[f"region/{name}"][0]
    stored["centres/label"][1] = stored["centres/label"][0]
    for name in list(stored):
        if name.startswith("patch/"):
            stored[name][1] = stored[name][0]
    margin = min(each["margin"] for each in claim["properties"][:2])
    proof["piece.margin"][:2] = margin
    claim["properties"][0]["margin"] = claim["properties"][1]["margin"] = margin


def test_of_overlapping_boxes_the_first_must_be_proved(tmp_path):
    folder = repaired(tmp_path / "a")

    def unproved(claim, proof, stored):
        overlap(claim, proof, stored)
        claim["properties"][0]["status"] = "unknown"

    def one_patch(claim, proof, stored):
        unproved(claim, proof, stored)
        claim["properties"][0]["patch"] = stored["centres/patch"][0] = 1
        stored["region/patch"][0] = 1

    assert verdict(edited(folder, tmp_path / "both", overlap)).word == "VALID"
    found = verdict(edited(folder, tmp_path / "one", unproved))
    assert found.word == "INVALID"
    assert "property 1 is certified, but property 0 overlaps it" in found.line
    assert verdict(edited(folder, tmp_path / "same", one_patch)).word == "VALID"


def test_an_operation_without_a_rule_is_named(tmp_path):
    def change(claim, proof, stored):
        stored["header"]["base"]["operations"][1]["kind"] = "swish"

    found = verdict(edited(repaired(tmp_path / "a"), tmp_path / "b", change))
    assert found.word == "INCOMPLETE"
    assert "'swish'" in found.line
    assert "node" in found.line


def test_what_is_not_proved_again_is_incomplete(tmp_path):
    def weaker(claim, proof, stored):
        """Every patch adds nothing, and tiny margins are claimed."""
        for name in stored:
            if name.startswith("patch/"):
                stored[name][:] = 0
        proof["piece.margin"][:] = 1e-300
        for each in claim["properties"]:
            each["margin"] = 1e-300

    found = verdict(edited(repaired(tmp_path / "a"), tmp_path / "b", weaker))
    assert found.word in ("INCOMPLETE", "INVALID")
    assert "property 0, piece 0: margin 1e-300 is claimed" in found.line


def test_a_claim_beyond_what_holds_is_incomplete(tmp_path):
    def more(claim, proof, stored):
        proof["piece.margin"] += 1e3
        for each in claim["properties"]:
            each["margin"] += 1e3
        for index, each in enumerate(claim["properties"]):
            each["margin"] = float(proof["piece.margin"][index])

    found = verdict(edited(repaired(tmp_path / "a"), tmp_path / "b", more))
    assert found.word == "INCOMPLETE"
    assert "is claimed, " in found.line and found.line.endswith("was found (and 5 more)")


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no data to repair on")
@pytest.mark.parametrize("network", ["fnn_small", "fnn_big", "cnn"])
def test_mnist(network, tmp_path, capsys):
    folder = Path(DATA or ".") / "mnist"
    out = str(tmp_path / "run")
    net = str(folder / "nets" / f"{network}.onnx")
    flags = ["--epsilon", "0.1", "--count", "8", "--data", str(folder / "mnist.npz")]
    assert main(["run", net, *flags, "--out", out, "--set", "evaluation.samples=1"]) == 0
    found = verdict(Path(out))
    assert (found.word, found.certified) == ("VALID", 8), found.line
    assert np.isfinite(found.margin)


def test_slopes_of_the_nodes_above_serve_their_pieces(tmp_path):
    """Where the slopes of a piece's own node do not do, those of a node above it may."""
    folder = run(tmp_path, SPLITTING, {"problem": {"count": 12}})

    def poor(leaves):
        def edit(claim, proof, stored):
            nodes = proof["tree.parent"] >= 0 if leaves else proof["tree.parent"] < 3000
            proof["tree.slope"][nodes] = 128

        return edit

    some = verdict(edited(folder, tmp_path / "some", poor(True)))
    none = verdict(edited(folder, tmp_path / "none", poor(False)))
    assert not some.invalid and not none.invalid
    assert len(some.incomplete) < len(none.incomplete)
