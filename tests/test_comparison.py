"""The benchmark of repair methods: what is asked, what is kept, what is said about it."""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from attrs import asdict

from advrepair.core.reporting import METRICS
from benchmarks import comparison, comparison_cells, comparison_paper
from benchmarks.cells import NETWORKS, RADII
from benchmarks.comparison_cells import ACASXU, CELLS, Cell
from benchmarks.comparison_page import page

SMALL, SECOND = Cell("fnn_small", "0.1", 50), Cell("2_1")


def row(method: str, status: str = "repaired", scope: str = "none", **figures: float) -> Any:
    """A method's row; figures with ``_`` for ``-`` in their names, none for one that failed."""
    return {
        "method": method,
        "status": status,
        "scope": scope,
        "reason": None if figures else "it was ended: it did not stop within 120 s",
        "evidence": {},
        "figures": {name: figures.get(name.replace("-", "_")) for name in METRICS},
        "flags": [],
        "seconds": {"repair": 1.5, "evaluation": 2.0},
        "peak_memory_bytes": 2**28,
    }


def record(asked: Cell, *rows: Any) -> dict[str, Any]:
    """A cell as it is kept."""
    count = asked.count or 1
    return {
        "cell": asdict(asked),
        "command": "advrepair compare N --out FOLDER",
        "date": "2026-01-01",
        "load": 0.5,
        "comparison": {
            "problem": {"epsilon": 0.1, "count": count, "counterexamples": 50},
            "evaluation": {
                "scope": "full",
                "attack": "pgd",
                "limit": 100,
                "options": {"steps": 20},
            },
            "limits": {"seconds": 120.0, "memory_gib": 4.0},
            "hardware": {"cores": 2},
            "versions": {"advrepair": "0"},
            "seed": 0,
            "rows": list(rows),
        },
    }


BALLS = dict(RSR=1.0, RGR=0.5, DD=0.001, DSR=0.25, DGSR_query=0.03, certified=0.98)
REGION = dict(RSR=1.0, RGR=0.5, FDD=0.1, DSR=1.0, certified=1.0, fidelity=0.97)


@pytest.fixture
def balls() -> dict[str, Any]:
    ours = row("advrepair", scope="region", **BALLS, DGSR_oracle=0.97)
    flagged = row("trades", "not_repaired", **BALLS)
    flagged["flags"] = [{"name": "constant predictor", "text": "trades: 100%"}]
    return record(SMALL, ours, row("art", "timeout"), row("aprnn", **BALLS), flagged)


# What is asked -----------------------------------------------------------------------------


def test_cells_are_named_by_patterns() -> None:
    assert comparison.parse_cells("fnn_small-0.1-50") == [SMALL]
    assert comparison.parse_cells("*-prop_2") == ACASXU
    assert comparison.parse_cells("cnn-*-200") == [
        Cell("cnn", r, 200) for r in ("0.1", "0.05", "0.3")
    ]
    assert comparison.parse_cells("all") == CELLS
    with pytest.raises(argparse.ArgumentTypeError, match=r"'vgg' is none of fnn_small-0\.1-50, "):
        comparison.parse_cells("vgg")


def test_every_cell_is_there_once_and_in_the_paper() -> None:
    places = {Cell(*each) for each in product(NETWORKS, RADII, (50, 200))}
    assert len(CELLS) == len(set(CELLS)) == len(places) + len(ACASXU) == 28
    assert places == {cell for cell in CELLS if cell.radius}
    for cell in CELLS:
        assert len(comparison_paper.figures(cell, "art")) == (6 if cell.radius else 4)
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_commands_name_cell_and_limits() -> None:
    text = " ".join(comparison_cells.command(SMALL, "D"))
    assert text == (
        "advrepair compare D/mnist/nets/fnn_small.onnx --data D/mnist/mnist.npz --epsilon 0.1 "
        "--count 50 --methods all --seconds 120 --memory 4 --limit 100 --out"
    )
    text = " ".join(comparison_cells.command(SECOND, "D"))
    assert "ACASXU_run2a_2_1_batch_2000.onnx --property D/acasxu/vnnlib/prop_2.vnnlib" in text
    assert "--decision argmin" in text and "--epsilon" not in text


# What is kept ------------------------------------------------------------------------------


def test_what_is_there_stays_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    asked, done = [SMALL, SECOND], []

    def compute(cell: Cell, folder: Path) -> dict[str, Any]:
        assert folder == tmp_path / cell.name
        done.append(cell)
        if len(done) == 1:
            raise RuntimeError("no")
        return record(cell)

    def fill() -> list[str]:
        return [said for _, said in comparison_cells.fill(asked, tmp_path, compute)]

    assert fill() == ["failed: no", "done"]
    assert fill() == ["done", "there"]
    assert done == [SMALL, SECOND, SMALL]
    assert list(comparison_cells.read_all(tmp_path)) == [SMALL, SECOND]


def test_a_cell_is_run_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["advrepair", "compare", "--count", "2", "--limit", "2", "--methods", "none"]
    monkeypatch.setattr(comparison_cells, "command", lambda cell, data: [*asked, "--out"])
    found = comparison_cells.compute(SMALL, tmp_path, tmp_path / "cell")
    asked[-1] = "none,constant-bias"
    more = comparison_cells.compute(SMALL, tmp_path, tmp_path / "cell")
    assert more["comparison"]["rows"][0] == found["comparison"]["rows"][0]
    text = page({SMALL: more})
    assert "| none | not_repaired | none | 0/2 | 0.0 |" in text
    assert "| constant-bias | repaired | region | 2/2 | 100.0 |" in text
    asked.append("--nonsense")
    with pytest.raises(RuntimeError, match="nonsense"):
        comparison_cells.compute(SMALL, tmp_path, tmp_path / "cell")


def test_the_command_line_writes_the_page(tmp_path: Path, balls: dict[str, Any]) -> None:
    (tmp_path / f"{SMALL.name}.json").write_text(json.dumps(balls))
    asked = [sys.executable, "-m", "benchmarks.comparison", "--out", str(tmp_path)]
    subprocess.run(asked, check=True, cwd=Path(__file__).parent.parent)
    assert (tmp_path / "comparison.md").read_text() == page({SMALL: balls})


def test_comparison_on_the_page_is_the_records() -> None:
    text = (Path(__file__).parents[1] / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert page(comparison_cells.read_all(comparison._RECORDS)) == text


# The transcription -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "method", "metric", "value"),
    [
        (SMALL, "art", "RSR", 14.0),
        (SMALL, "care", "Time", 2.2),
        (SMALL, "advrepair", "DGSR", 96.3),
        (SMALL, "prdnn", "DD", 71.3),
        (Cell("fnn_small", "0.05", 50), "trades", "RGR", 80.0),
        (Cell("fnn_small", "0.05", 50), "art", "RGR", None),
        (Cell("fnn_small", "0.3", 200), "aprnn", "DD", 54.2),
        (Cell("fnn_big", "0.1", 50), "reassure", "DSR", None),
        (Cell("fnn_big", "0.3", 200), "reassure", "Time", 5186.7),
        (Cell("cnn", "0.05", 50), "trades", "DSR", 100.0),
        (Cell("cnn", "0.3", 200), "art", "DGSR", 8.9),
        (SECOND, "care", "FDD", 39.1),
        (Cell("3_1"), "reassure", "RGR", 99.2),
    ],
)
def test_figures_are_as_printed(cell: Cell, method: str, metric: str, value: float | None) -> None:
    assert comparison_paper.figures(cell, method)[metric] == value


def test_the_transcription_is_complete() -> None:
    lost = 0
    for cell, method in product(CELLS, comparison_paper.NAMES):
        found = comparison_paper.figures(cell, method)
        assert all(value is None or value >= -5 for value in found.values())
        lost += sum(value is None for value in found.values())
        if not cell.radius:
            assert bool(found) == (method not in ("aprnn", "trades"))
    assert lost == 35
    for method in ("none", "constant-bias", "another"):
        assert not comparison_paper.figures(SMALL, method)


# What is said ------------------------------------------------------------------------------


def test_artefacts_of_the_paper_are_marked() -> None:
    def marks(cell: Cell, method: str) -> list[str]:
        return comparison_paper.marks(method, comparison_paper.figures(cell, method))

    labelled = [cell for cell in CELLS if cell.radius]
    assert all("a" in marks(cell, "art") for cell in labelled)
    assert not any("a" in marks(cell, "art") for cell in ACASXU)
    collapsed = {cell for cell in labelled if "b" in marks(cell, "trades")}
    small = {cell for cell in labelled if cell.network == "fnn_small"}
    assert collapsed == small - {Cell("fnn_small", "0.05", 50)}
    failed = {cell for cell in labelled if "c" in marks(cell, "aprnn")}
    assert failed == {cell for cell in small if cell.count == 200}
    assert marks(SMALL, "advrepair") == ["d"] and marks(SECOND, "advrepair") == []
    assert marks(SECOND, "reassure") == ["e"] and marks(SMALL, "reassure") == []
    assert marks(Cell("fnn_big", "0.1", 50), "care") == ["f"]
    assert marks(SMALL, "care") == marks(SMALL, "none") == []


def test_the_paper_stands_beside_ours(balls: dict[str, Any]) -> None:
    text = page({SMALL: balls})
    assert (
        "| advrepair | repaired | region | 49/50 | 100.0 (100.0) | 50.0 (100.0) | 0.1 (0.0) | "
        "25.0 (100.0) | 3.0 | 97.0 (96.3) | 1.5 (15.5) | d |"
    ) in text
    assert (
        "| aprnn | repaired | none | 49/50 | 100.0 (100.0) | 50.0 (32.0) | 0.1 (50.9) | "
        "25.0 (0.0) | 3.0 (0.0) | - | 1.5 (3.8) |  |"
    ) in text
    assert "| art | timeout | none | - | - (14.0) | - (14.0) |" in text
    assert "- art: timeout: it was ended: it did not stop within 120 s" in text
    assert "| 3.0 (9.8) | - | 1.5 (8.2) | b C |" in text
    for mark in "abdC":
        assert f"- **{mark}**: " in text
    assert "- **c**: " not in text and "- **e**: " not in text
    assert "Of the 4 rows of the paper beside ours, 2 carry a, b or c" in text


def test_what_rates_do_not_show_is_said() -> None:
    art = row("art", "not_repaired", **BALLS)
    art["evidence"] = {"cells": 9, "cells proved": 4, "epochs": 3}
    some = row("reassure", "not_repaired", "region", **BALLS)
    some["evidence"] = {"regions": 5, "solved": 1, "unsolved": {"the time was up": 4}}
    same = row("trades", "not_repaired", **BALLS)
    same["evidence"] = {"epoch": 0}
    text = page({SMALL: record(SMALL, art, some, same)})
    assert "- art: 4 of 9 cells were proved after 3 epochs" in text
    assert "- reassure: 1 of 5 regions were solved; 4 the time was up" in text
    assert "- trades: no epoch kept the accuracy within a point" in text
    art["scope"], same["evidence"]["epoch"], some["evidence"]["unsolved"] = "region", 7, {}
    text = page({SMALL: record(SMALL, art, some, same)})
    assert "cells were proved" not in text and "regions were solved" not in text
    assert "no epoch kept" not in text


def test_means_leave_out_what_left_no_model(balls: dict[str, Any]) -> None:
    other = Cell("cnn", "0.1", 50)
    art = row("art", **BALLS | {"RSR": 0.5})
    text = page({SMALL: balls, other: record(other, art, row("aprnn", **BALLS | {"RSR": 0.0}))})
    assert "| art | 50.0 / 25.0 / 98.0 (1 of 2) |" in text
    assert "| aprnn | 50.0 / 25.0 / 98.0 |" in text
    assert "| art | none of 1 |" in page({SMALL: balls})
    assert "Networks: 2 (r 0.1, n 50)." in text


def test_networks_of_acas_xu_share_a_table() -> None:
    care, late = row("care", **REGION), row("reassure", "timeout")
    several = {SECOND: record(SECOND, care, late), Cell("2_2"): record(Cell("2_2"), care)}
    text = page(several)
    assert (
        "| care | 2/2 | none | 2/2 | 100.0 (63.1) | 50.0 (62.8) | 3.0 | 10.0 (47.8) | 100.0 | "
        "1.5 (25.9) |  |"
    ) in text
    assert "| N2,1 | 100.0 / 50.0 / 3.0 / 10.0 (39.1) | timeout |" in text
    assert "within 120 s (N2,1)" in text
    assert "| N2,2 | 100.0 / 50.0 / 3.0 / 10.0 (56.5) | - |" in text


def test_what_was_not_run_is_named() -> None:
    text = page({})
    assert (
        "No cell is there." in text and "0 of 28 cells were run. Not run: fnn_small-0.1-50" in text
    )
    every = {
        cell: record(cell, row("none", **(BALLS if cell.radius else REGION))) for cell in CELLS
    }
    assert "All 28 cells were run." in page(every)
