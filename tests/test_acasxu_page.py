"""The benchmark on ACAS Xu: what is asked, what is kept, what is said about it."""

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import asdict

from advrepair.core.box import Box
from benchmarks import acasxu, acasxu_cells, acasxu_page
from benchmarks.acasxu_cells import OUTCOMES, REFINERS, REPAIR, Cell, Pair
from benchmarks.acasxu_plot import plot

PAIR = Pair("2_1", "prop_2", "onnx/a.onnx", "vnnlib/prop_2.vnnlib", "violated")


def record(
    cell: Cell | None = None, verdict: str = "violated", said: str = "VALID", **changes: Any
) -> dict[str, Any]:
    """A cell as it is kept; changes: what became of its one property."""
    demand = {"status": "certified", "held": False, "patched": True} | changes
    metrics = {"RSR": 1.0, "RGR": 1.0, "FDD": 0.0, "fidelity": 0.998, "certified": 1.0}
    return {
        "cell": asdict(cell or Cell("2_1", "prop_2")),
        "verdict": verdict,
        "command": "advrepair run N --out FOLDER",
        "date": "2026-01-01",
        "load": 0.5,
        "run": {"wall": 4.0, "cpu": 3.0},
        "check": {"verdict": said, "certified": 1, "invalid": [], "incomplete": ["piece 7", "b"]}
        | {"times": {"wall": 2.5, "cpu": 2.0}},
        "manifest": {"hardware": {"cores": 2}, "versions": {"advrepair": "0"}, "seed": 0},
        "measured": {"counterexamples": [500, 4999], "boxes": 1, "touched": 0.037}
        | {"intrusion": 1.96, "largest": 0.047, "right": 4000, "kept": 1.0, "order": 0.446},
        "report": {
            "metrics": metrics,
            "baseline": {"constant-bias": metrics | {"fidelity": 0.951}},
            "demands": [demand],
            "patches": {"count": int(demand["patched"])},
            "screening": {"pieces": [1, 10, 4000], "proved": [0.0, 0.5, 0.963], "regions": 130}
            | {"seconds": [0.1, 0.2, 2.0]},
            "seconds": dict.fromkeys((*REPAIR, "evaluation"), 0.5),
            "peak_memory_bytes": 350 * 2**20,
        },
    }


def failed(cell: Cell | None = None) -> dict[str, Any]:
    whole = record(cell)
    for key in ("report", "measured", "manifest", "check"):
        del whole[key]
    return whole | {"failed": {"exit": 1, "said": "RuntimeError: no"}}


LEFT = {"held": True, "patched": False}
UNKNOWN = {**LEFT, "status": "unknown"}


# What is asked -----------------------------------------------------------------------------


def test_networks_are_listed_with_commas() -> None:
    assert acasxu.parse_networks("2_1,5_9,2_1") == ["2_1", "5_9"]
    for text in ("", "6_1", "2_0", "2,1"):
        with pytest.raises(argparse.ArgumentTypeError):
            acasxu.parse_networks(text)


def test_cells_are_asked_for_once() -> None:
    index = {(n, p): PAIR for n in ("1_1", "2_1") for p in ("prop_1", "prop_2")}
    plain = acasxu.asked_cells(index, None, False, False)
    assert len(plain) == 36 and plain[0] == Cell("2_1", "prop_2") and plain[-1].network == "5_9"
    pairs = acasxu.asked_cells(index, None, True, False)
    assert len(pairs) == 36 + 3 and len(set(pairs)) == len(pairs)
    one = acasxu.asked_cells(index, ["2_1"], True, False)
    assert one == [Cell("2_1", "prop_2"), Cell("2_1", "prop_1")]
    several = acasxu.asked_cells(index, None, False, True)
    assert {each.refiner for each in several} == set(REFINERS)
    assert {each.network for each in several} == set(acasxu.COMPARED)


def test_the_index_is_read(tmp_path: Path) -> None:
    (tmp_path / "acasxu").mkdir()
    text = (
        "network,property,onnx_path,nnet_path,vnnlib_path,vnncomp2021_verdict,verdict_tools\n"
        '"N2,1",prop_2,onnx/a.onnx,nnet/a.nnet,vnnlib/prop_2.vnnlib,violated,7\n'
    )
    (tmp_path / "acasxu" / "index.csv").write_text(text)
    assert acasxu_cells.read_index(tmp_path) == {("2_1", "prop_2"): PAIR}


def test_the_command_names_network_property_and_refiner() -> None:
    text = " ".join(acasxu_cells.command(Cell("2_1", "prop_2", "widest"), PAIR, "D"))
    assert text == (
        "advrepair run D/acasxu/onnx/a.onnx --property D/acasxu/vnnlib/prop_2.vnnlib "
        "--decision argmin --refiner widest --out"
    )
    assert "--refiner" not in acasxu_cells.command(Cell("2_1", "prop_2"), PAIR, "D")


# What is kept ------------------------------------------------------------------------------


def test_cells_that_are_there_are_not_computed_again(tmp_path: Path) -> None:
    cells, done = [Cell("2_1", "prop_2"), Cell("2_2", "prop_2")], []

    def compute(cell: Cell) -> dict[str, Any]:
        done.append(cell)
        return failed(cell) if cell.network == "2_2" and len(done) == 2 else record(cell)

    def fill(check: bool = True, force: bool = False) -> list[bool]:
        found = acasxu_cells.fill(cells, tmp_path, check, force, compute)
        return [each is not None for _, each in found]

    assert fill() == [True, True]
    assert fill() == [False, True]  # what failed is tried again
    assert fill() == [False, False]
    assert fill(force=True) == [True, True]
    path = tmp_path / f"{cells[0].name}.json"
    known = json.loads(path.read_text())
    del known["check"]
    path.write_text(json.dumps(known))
    assert fill(check=False) == [False, False]
    assert fill() == [True, False]
    assert [each["cell"]["network"] for each in acasxu_cells.read_all(tmp_path)] == ["2_1", "2_2"]


class Patched:
    """Two regions with a patch, one without."""

    patch = torch.tensor([0, 0, -1])
    box = Box(torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]), torch.ones(3, 2))

    def __init__(self) -> None:
        self.box.upper[0] = torch.tensor([0.5, 0.25])


def test_the_volume_that_is_touched() -> None:
    boxes = Box(torch.tensor([[0.0, 0.0], [4.0, 4.0]]), torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    assert acasxu_cells.touched(boxes[:1], Patched()) == pytest.approx(0.125 + 0.25)
    assert acasxu_cells.touched(boxes, Patched()) == pytest.approx(0.375 / 2)
    x, owner = acasxu_cells.inside(boxes, Patched())
    assert bool((owner == 0).all())
    low = (x <= Patched().box.upper[0]).all(1)
    assert bool((low | (x >= 0.5).all(1)).all())
    assert float(low.double().mean()) == pytest.approx(1 / 3, abs=0.03)


# What is said ------------------------------------------------------------------------------


def test_outcomes() -> None:
    found = [
        record(),
        record(status="unknown"),
        record(**LEFT),
        record(**UNKNOWN),
        failed(),
    ]
    assert tuple(map(acasxu_cells.outcome, found)) == OUTCOMES
    both = record(**LEFT)
    both["report"]["demands"].append({"status": "certified", "held": False, "patched": True})
    assert acasxu_cells.outcome(both) == "repaired"


@pytest.mark.parametrize(
    ("verdict", "wrong"),
    [
        ("holds", (True, True, False, False, False)),
        ("violated", (False, False, True, False, False)),
    ],
)
def test_contradictions(verdict: str, wrong: tuple[bool, ...]) -> None:
    kinds: list[dict[str, Any]] = [{}, {"status": "unknown"}, LEFT, UNKNOWN]
    found = [record(verdict=verdict, **each) for each in kinds]
    found.append(failed() | {"verdict": verdict})
    assert tuple(map(acasxu_cells.contradicts, found)) == wrong


def test_what_went_wrong_is_on_the_page() -> None:
    bad = [record(verdict="holds"), record(said="INCOMPLETE"), failed(Cell("5_9", "prop_1"))]
    text, troubles = acasxu_page.page(bad, "a.svg")
    assert len(troubles) == 3
    for line in troubles:
        assert f"- {line}\n" in text
    assert "INCOMPLETE: piece 7 (and 1 more)" in troubles[1]
    text, troubles = acasxu_page.page([record(), record(verdict="holds", **LEFT)], "a.svg")
    assert troubles == [] and "Nothing went wrong." in text


def test_rows_of_table_2() -> None:
    text, _ = acasxu_page.page([record(), record(Cell("3_3", "prop_2"), "holds", **UNKNOWN)], "p")
    assert "| N2,1 | repaired | 100.0 (500) | 100.0 (4999) | 0.0 | 99.8 | 95.1 | 3.70 |" in text
    assert "| 3.70 | 100.0 | 44.6 | 196.0 |" in text
    assert "| N3,3 | unknown | - | - | - | - | - | - | - | - | - |" in text
    assert "| N2,1 | 4000 | 130 | 3.0 | 4.0 | 3.0 | 350 | VALID | 2.5 | 25.3 |" in text
    assert "| N3,3 | 4000 | 130 | 3.0 | 4.0 | 3.0 | 350 | - | 2.5 | 18.5 |" in text
    assert "| this repair (1) | 100.0 | 100.0 | 0.0 | 3.0 |" in text
    assert "| paper: REASSURE | 100.0 | 92.2 | 85.1 | 540.9 |" in text
    assert "## All pairs" not in text and "## Refiners" not in text


def test_pairs_are_counted_by_property() -> None:
    cells = [
        record(),
        record(Cell("1_1", "prop_1"), "holds", **LEFT),
        record(Cell("1_2", "prop_1"), "holds", **UNKNOWN),
        failed(Cell("1_3", "prop_1")),
    ]
    text, _ = acasxu_page.page(cells, "p")
    assert "| prop_1 | 3 | 1 | 0 | 0 | 2 | 1 | 1 | 1 | 0 | 2 | 3.0 | 3.0 | 350 |" in text
    assert "| all | 4 | 2 | 1 | 0 | 2 | 1 | 1 | 1 | 0 | 3 | 3.0 | 3.0 | 350 |" in text
    assert "| N1,3 | prop_1 | violated | failed | - |" in text


def test_refiners_are_compared() -> None:
    cells = [record(Cell("2_1", "prop_2", refiner)) for refiner in REFINERS]
    uncut = cells[-1]["report"]
    uncut["screening"] = None
    text, _ = acasxu_page.page(cells, "p")
    shown = "3.70 | 0.047 | 99.8 | 44.6 | 0.5 | 3.0 |"
    assert f"| N2,1 | widest | repaired | 4000 | 3.70 | {shown}" in text
    assert f"| N2,1 | none | repaired | 1 | 100.00 | {shown}" in text


def test_the_page_of_nothing() -> None:
    text, troubles = acasxu_page.page([], "p")
    assert "No cell is there." in text and troubles == []


def test_small_shares_are_told_from_none() -> None:
    text, _ = acasxu_page.page([record() | {"measured": record()["measured"]}], "p")
    tiny = record()
    tiny["measured"]["touched"] = 3.2e-6
    assert "| 3.2e-04 |" in acasxu_page.page([tiny], "p")[0] and "e-0" not in text


# The plot and the transcription ------------------------------------------------------------


def test_the_plot_is_a_file_of_its_own() -> None:
    drawn = plot([record(), record(Cell("4_6", "prop_2")), failed(Cell("5_3", "prop_2"))])
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    paths = root.findall("{http://www.w3.org/2000/svg}path")
    assert len(paths) == 2
    assert "N2,1: 96.3% at 4000; N4,6: 96.3% at 4000" in root.attrib["aria-label"]
    assert ElementTree.fromstring(plot([])).tag == root.tag


@pytest.mark.parametrize(
    ("network", "method", "metric", "value"),
    [
        ("2_1", "CARE", "RSR", 59.2),
        ("2_1", "AdvRepair", "Time", 25.3),
        ("3_2", "PRDNN", "FDD", 12.2),
        ("3_3", "ART", "FDD", 8.3),
        ("4_7", "CARE", "RGR", 78.1),
        ("5_9", "REASSURE", "FDD", 27.0),
        ("5_9", "AdvRepair", "Time", 24.3),
    ],
)
def test_figures_are_as_printed(network: str, method: str, metric: str, value: float) -> None:
    assert acasxu_page.printed()[network, method, metric] == value


def test_the_transcription_is_complete_and_its_means_are_those_printed() -> None:
    known = acasxu_page.printed()
    networks = set(acasxu_page.TABLE_2_NETWORKS) - {"4_2"} | {"mean"}
    methods, metrics = acasxu_page.METHODS, acasxu_page.METRICS
    assert set(known) == {(n, m, x) for n in networks for m in methods for x in metrics}
    for method in methods:
        for metric in metrics:
            every = [known[n, method, metric] for n in networks - {"mean"}]
            assert sum(every) / 35 == pytest.approx(known["mean", method, metric], abs=0.0501)
