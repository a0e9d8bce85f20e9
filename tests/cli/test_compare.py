"""``advrepair compare``: what it prints, what it refuses, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from problems import entries, write_inputs

from advrepair.cli import main

DATA = os.environ.get("ADVREPAIR_DATA")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two methods on the demo, and what was printed."""
    folder = tmp_path_factory.mktemp("compare") / "cmp"
    asked = ["--methods", "none,advrepair", "--count", "5", "--limit", "10", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "advrepair", "compare", *asked], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_prints_one_table(compared) -> None:
    folder, shown = compared
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    (ours,) = [line for line in lines if line.startswith(" advrepair")]
    assert ours.split()[:4] == ["advrepair", "repaired", "region", "5/5"]
    assert "2 repair methods on digits, 5 balls of radius 0.1" in shown
    assert lines[-1] == f"files: {folder}" and "More: docs/compare.md." in " ".join(lines)
    assert (folder / "comparison.html").exists()


def test_going_on_needs_no_other_flag(compared, capsys) -> None:
    folder, shown = compared
    assert main(["compare", "--resume", "--out", str(folder)]) == 0
    table = shown[shown.index("2 repair methods") :]
    assert capsys.readouterr().out == table


def test_json_is_alone_on_stdout(compared, capsys) -> None:
    folder, _ = compared
    assert main(["compare", "--resume", "--out", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "comparison.json").read_text())
    assert found["evaluation"]["limit"] == 10


REFUSED = [
    (["--methods", "advrepiar"], "unknown method 'advrepiar'"),
    (["--force", "--resume"], "exclude each other"),
    (["--seconds", "-1"], "comparison.seconds is '-1'"),
    (["--set", "comparison.memory=none"], "comparison.memory is 'none'"),
    (["--count", "100000"], "the attack finds"),
    (["no.onnx", "--data", "data.npz"], "no.onnx: no such file"),
    (["--evaluation-attack", "nothing"], "unknown attack 'nothing'"),
    (["--resume", "--out", "nothing"], "holds nothing to go on with"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments, message, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    before = entries(tmp_path)
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and message in captured.err
    assert entries(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interruption_keeps_what_is_done(tmp_path) -> None:
    """SIGTERM while a method is at work; the one before it is kept."""
    folder = tmp_path / "cmp"
    asked = ["--methods", "none,advrepair", "--count", "30", "--limit", "500", "--out", str(folder)]
    program = subprocess.Popen(
        [sys.executable, "-m", "advrepair", "compare", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not (folder / "methods" / "advrepair").exists():
        assert time.monotonic() < end and program.poll() is None
        time.sleep(0.02)
    program.send_signal(signal.SIGTERM)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 143 and "interrupted: go on with --resume" in said
    kept = json.loads((folder / "comparison.json").read_text())
    assert [row["method"] for row in kept["rows"]] == ["none"]
    assert not Path(f"{folder}.lock").exists()


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no data to repair on")
def test_a_property_of_acas_xu(tmp_path, capsys) -> None:
    files = Path(DATA or ".") / "acasxu"
    network = files / "onnx" / "ACASXU_run2a_2_1_batch_2000.onnx"
    asked = ["compare", str(network), "--property", str(files / "vnnlib" / "prop_2.vnnlib")]
    asked += ["--decision", "argmin", "--methods", "none,advrepair", "--json"]
    assert main([*asked, "--out", str(tmp_path / "cmp"), "--limit", "10"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    ours, none = rows["advrepair"]["figures"], rows["none"]["figures"]
    assert (ours["certified"], ours["RSR"], ours["RGR"], ours["FDD"]) == (1.0, 1.0, 1.0, 0.0)
    assert ours["fidelity"] >= 0.99 and (none["RSR"], none["DSR"]) == (0.0, 0.0)
    assert "FDD in" in (tmp_path / "cmp" / "comparison.csv").read_text()
