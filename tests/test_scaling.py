"""The benchmarks of speed, growth and estimates run, and say whether their targets are met."""

import os
import sys
from pathlib import Path

import pytest

from advrepair.core.memory import peak_memory
from benchmarks import estimates, limits, scale, table1

DATA = os.environ.get("ADVREPAIR_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: nothing to repair")


def printed(monkeypatch, capsys, program, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    program.main()
    return capsys.readouterr().out


@needs_data
def test_a_cell_of_table_1_stands_beside_the_papers_seconds(monkeypatch, capsys):
    shown = printed(monkeypatch, capsys, table1, "--cells", "fnn_small:0.05:50")
    assert "14.3" in shown and "100.0%" in shown
    assert "target 180 s" in shown and "target below 4 GiB" in shown


@needs_data
def test_growth_is_measured_from_outside(monkeypatch, capsys):
    shown = printed(monkeypatch, capsys, scale, "--counts", "3,6", "--set", "evaluation.samples=1")
    assert "6/6" in shown
    assert "seconds a ball, 6 balls to 3" in shown


@needs_data
def test_fewer_are_repaired_where_the_attack_finds_fewer(monkeypatch):
    found = scale.measure(Path(DATA), 60_000, "fnn_small", "0.0001", ["--set", "pgd.steps=1"])
    assert 0 < found.count < 60_000
    assert found.report["properties"]["total"] == found.count
    assert "of 60,000 asked for" in scale.line(60_000, found)


@needs_data
def test_each_step_stands_beside_its_two_limits(monkeypatch, capsys):
    arguments = ("--networks", "fnn_small", "--counts", "4", "--hidden", "")
    shown = printed(monkeypatch, capsys, limits, *arguments)
    assert all(word in shown for word in ("rows", "epoch", "rest", "Gflop/s", "target 4"))


@needs_data
def test_estimates_stand_beside_what_was_measured(monkeypatch, capsys):
    arguments = ("--networks", "fnn_small", "--counts", "4", "--hidden", "")
    shown = printed(monkeypatch, capsys, estimates, *arguments)
    assert "fnn_small [] 4" in shown and "target 1.5" in shown


def test_the_memory_of_a_process_is_seen_from_outside(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1000))
    watched = scale.Watched()
    watched.look(os.getpid(), tmp_path)
    assert watched.disk == 1000
    if sys.platform.startswith("linux"):
        assert 0 < watched.files < watched.memory
        assert watched.memory == pytest.approx(peak_memory(), rel=0.1)


def test_a_process_that_is_gone_counts_nothing(tmp_path):
    watched = scale.Watched()
    watched.look(2**22 + 1, tmp_path)
    assert (watched.memory, watched.files, watched.disk) == (0, 0, 0)


def run(count, seconds, memory=2**30):
    report = {"seconds": {"total": seconds}}
    return scale.Measured(count, seconds, report, scale.Watched(memory=memory), 0)


@pytest.mark.parametrize(("last", "word"), [(14.9, "met"), (15.1, "missed")])
def test_growth_is_judged_from_a_thousand_on(last, word):
    lines = list(scale.verdict([run(50, 10.0), run(1000, 10.0), run(10_000, 10 * last)]))
    assert word in lines[0]
    assert "met" in lines[1]


def test_too_much_memory_is_said():
    assert "missed" in list(scale.verdict([run(10_000, 1.0, 5 * 2**30)]))[1]
