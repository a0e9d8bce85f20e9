"""The benchmark of the paper's tables: what is asked, what is kept, what is said about it."""

import argparse
import json
import re
from itertools import product
from pathlib import Path

import pytest

from benchmarks import cells, notes, paper, tables, tables_page
from benchmarks.cells import COUNTS, NETWORKS, RADII, Cell, Settings


def record(cell=None, **changes):
    """A cell as it is kept; changes: rates of a subject, with ``_`` for ``-`` in its name."""
    whole = dict.fromkeys(("certified", "RSR", "RGR", "DSR", "DGSR-oracle"), 1.0)
    whole |= {"DD": 0.0, "FDD": 0.0, "DGSR-query": 0.02}
    rates = {"repair": dict(whole), "constant-bias": dict(whole)}
    rates["none"] = dict.fromkeys(whole, 0.0) | {"DGSR-query": 0.02}
    for subject, other in changes.items():
        rates[subject.replace("_", "-")] |= other
    return {
        "cell": cells.asdict(cell or Cell("fnn_big", "0.1", 50)),
        "settings": cells.asdict(Settings()),
        "commands": ["advrepair run FOLDER", "advrepair evaluate FOLDER"],
        "date": "2026-01-01",
        "manifest": {"hardware": {"cores": 2}, "versions": {"advrepair": "0"}, "seed": 0},
        "seconds": {"repair": 1.0, "evaluation": 2.0},
        "report": {
            "metrics": rates.pop("repair"),
            "baseline": rates,
            "counts": dict.fromkeys(whole, 200) | {"DSR": 20},
            "flags": [],
            "seconds": dict.fromkeys(("bounds", "training", "certification"), 0.1)
            | {"branch and bound": 0.0},
            "evaluation": {"attack": {"name": "pgd", "options": {"steps": 20}}},
        },
    }


# What is asked ---------------------------------------------------------------------------


def test_cells_are_products_of_lists():
    assert cells.parse_cells("fnn_small:0.1:50,100") == [
        ("fnn_small", "0.1", 50),
        ("fnn_small", "0.1", 100),
    ]
    assert cells.parse_cells("cnn::200") == [("cnn", radius, 200) for radius in RADII]
    assert cells.parse_cells("") == list(product(NETWORKS, RADII, COUNTS))
    assert len(cells.parse_cells("fnn_big")) == 15


@pytest.mark.parametrize("text", ["vgg", "cnn:0.2", "cnn:0.1:7", "cnn:0.1:50:1", "cnn:0.1:50,"])
def test_other_cells_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cells.parse_cells(text)


def test_tables_share_their_cells():
    one = [[("cnn", "0.1", 50)]]
    assert tables.asked_cells(["1", "3"], one, None) == [Cell("cnn", "0.1", 50, "own")]
    kinds = [cell.variant for cell in tables.asked_cells(["5"], one, None)]
    assert kinds == list(paper.PATCHES)
    assert [c.variant for c in tables.asked_cells(["5"], one, ["TS"])] == ["TS"]


def test_commands_name_cell_and_settings():
    settings = Settings("autoattack", 7, "paper")
    repair, evaluate = cells.commands(Cell("cnn", "0.3", 200, "LL"), settings, "D")
    assert repair[:5] == [
        "advrepair",
        "run",
        "D/mnist/nets/cnn.onnx",
        "--data",
        "D/mnist/mnist.npz",
    ]
    text = " ".join(repair)
    for part in (
        "--epsilon 0.3",
        "--count 200",
        "--preset paper",
        "untargeted-label",
        "256,256,64",
    ):
        assert part in text
    assert " ".join(evaluate) == "advrepair evaluate --attack autoattack --limit 7"


# What is kept ------------------------------------------------------------------------------


def test_a_cell_that_is_there_is_not_computed_again(tmp_path):
    asked, done = [Cell("cnn", "0.1", 50), Cell("cnn", "0.1", 100)], []

    def compute(cell):
        done.append(cell)
        return record(cell)

    def fill(settings, force):
        return [found is not None for _, found in cells.fill(*settings, tmp_path, force, compute)]

    assert fill((asked[:1], Settings()), False) == [True]
    assert fill((asked, Settings()), False) == [False, True]
    assert done == asked
    assert fill((asked, Settings()), True) == [True, True]
    assert fill((asked, Settings(limit=7)), False) == [True, True]
    assert len(cells.read_all(tmp_path)) == 4


def test_a_cell_that_fails_leaves_nothing(tmp_path):
    def compute(cell):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        list(cells.fill([Cell("cnn", "0.1", 50)], Settings(), tmp_path, False, compute))
    assert list(tmp_path.iterdir()) == []


def test_cells_are_read_in_the_order_of_the_paper(tmp_path):
    order = [Cell("fnn_small", "0.3", 1000), Cell("cnn", "0.05", 50), Cell("cnn", "0.05", 100)]
    for cell in reversed(order):
        Settings().path(tmp_path, cell).write_text(json.dumps(record(cell)))
    assert [Cell(**found["cell"]) for found in cells.read_all(tmp_path)] == order


# The transcription ------------------------------------------------------------------------


def test_the_transcription_is_complete():
    places = list(product(NETWORKS, RADII, COUNTS))
    indicators = {1: ("PS",), 3: ("PS",), 5: tuple(paper.PATCHES)}
    assert set(paper.printed()) == {
        (table, *place, indicator, metric)
        for table, metrics in paper.METRICS.items()
        for place in places
        for indicator in indicators[table]
        for metric in metrics
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((1, "fnn_small", "0.3", 50, "PS", "RSR"), 94.0),
        ((1, "fnn_small", "0.05", 50, "PS", "Time"), 14.3),
        ((1, "fnn_big", "0.3", 1000, "PS", "Time"), 1246.4),
        ((1, "cnn", "0.05", 500, "PS", "DD"), None),
        ((1, "cnn", "0.3", 1000, "PS", "Time"), 1282.6),
        ((3, "fnn_small", "0.1", 1000, "PS", "DGSR"), 96.5),
        ((3, "fnn_small", "0.3", 50, "PS", "RGR"), 94.8),
        ((3, "fnn_big", "0.3", 1000, "PS", "DSR"), 99.9),
        ((3, "cnn", "0.1", 500, "PS", "DSR"), 99.8),
        ((5, "fnn_small", "0.05", 50, "LL", "RSR"), 99.3),
        ((5, "fnn_small", "0.3", 50, "LS", "DGSR"), 44.6),
        ((5, "fnn_small", "0.3", 200, "PL", "DSR"), 99.0),
        ((5, "cnn", "0.3", 1000, "LL", "DGSR"), 98.3),
    ],
)
def test_figures_are_as_printed(key, value):
    assert paper.printed()[key] == value


def test_table_5_repeats_tables_1_and_3():
    for place in product(NETWORKS, RADII, COUNTS):
        own, small = paper.figures(*place, "own"), paper.figures(*place, "PS")
        assert small == {metric: own[metric] for metric in small}
        assert len(own) == 6
    assert paper.figures("cnn", "0.1", 50, "TS") == {}


# What is said ------------------------------------------------------------------------------


def marks(printed, **changes):
    return notes.marks(record(**changes), printed)


def test_notes_on_defence():
    assert {"a", "b"} <= set(marks({"DGSR": 97.0}))
    assert "b" not in marks({"DGSR": 97.0}, constant_bias={"DGSR-oracle": 0.5})
    query = {"DGSR-query": 0.9}
    assert not {"a", "b"} & set(marks({"DGSR": 97.0}, repair=query))
    assert "c" in marks({"DGSR": 97.0}, repair={"DGSR-oracle": 0.5})
    assert "l" in marks({"DGSR": 97.0}) and "l" not in marks({"DGSR": 99.0})
    assert "e" in marks({}, repair={"DGSR-query": 0.0}) and "e" not in marks({})
    assert "f" in marks({}, constant_bias=query) and "f" not in marks({})


def test_notes_on_proof_and_on_the_trivial_repair():
    assert marks({}) == ["d"]
    assert marks({}, constant_bias={"RGR": 0.9}) == []
    assert marks({}, constant_bias={"DD": 0.1}) == []
    assert "g" in marks({}, repair={"certified": 0.98})
    assert "h" in marks({"RSR": 94.0}) and "h" not in marks({"RSR": 100.0})
    assert "h" not in marks({"RSR": 94.0}, repair={"certified": 0.98})


def test_notes_on_what_the_paper_prints():
    swapped = notes.marks(record(Cell("cnn", "0.1", 50)), {"DGSR": 98.3})
    assert "i" in swapped and "i" not in marks({"DGSR": 98.3})
    assert "j" in marks({"RSR": 99.3}) and "j" not in marks({"RSR": 98.0})
    assert "k" in marks({"DD": None}) and "k" not in marks({"DD": 0.0})
    assert paper.possible(99.9, 1000) and not paper.possible(99.9, 500)


def test_the_page_explains_every_mark_and_never_shows_the_oracle_alone():
    broken = record(repair={"DGSR-query": 0.0})
    broken["report"]["flags"] = [
        {"name": "not image dependent", "text": "constant-bias: 99 %"},
        {"name": "weak attack", "text": "the attack is weak"},
    ]
    assert [row[-1] for row in tables_page.cell_rows(broken)][1:] == ["W", "I", ""]
    text = tables_page.page([broken, record(Cell("fnn_small", "0.1", 1000))])
    for mark in ("a", "b", "d", "e", "I", "W"):
        assert f"- **{mark}**: " in text
    assert "- **P**: " not in text and "- **k**: " not in text
    heads = [line for line in text.splitlines() if "DGSR-oracle |" in line and "---" not in line]
    assert len(heads) == 3 and all("DGSR-query" in line for line in heads)
    assert "a DGSR of 96.5 %" in text
    assert "| regions attacked for DSR | the first 20 of 50; the first 20 of 1000 |" in text
    assert "Tables 1 and 3: 2 of 45 cells were computed." in text


def test_the_page_of_nothing():
    assert "No cell is there." in tables_page.page([])


def test_rows_of_a_cell():
    rows = tables_page.cell_rows(record(repair={"DD": -0.0001}))
    assert [row[4] for row in rows] == ["paper", "repair", "constant-bias", "unrepaired"]
    assert rows[0][5:12] == ["-", "100.0", "100.0", "0.0", "100.0", "-", "97.1"]
    assert rows[1][5:12] == ["100.0", "100.0", "100.0", "0.0", "100.0", "2.0", "100.0"]


def test_csv_has_every_figure():
    lines = tables_page.as_csv([record()]).splitlines()
    assert lines[0] == ("network,radius,count,variant,attack,limit,preset,subject,metric,value")
    assert "fnn_big,0.1,50,own,pgd,200,default,paper,DGSR,0.971" in lines
    assert "fnn_big,0.1,50,own,pgd,200,default,repair,DGSR-query,0.02" in lines
    assert len(lines) == 1 + 6 + 3 * 7 + 2


def test_the_page_has_a_letter_for_every_flag():
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+)` \|", text.split("## Flags")[1].split("\n## ")[0], re.M)
    assert set(named) == set(tables_page.FLAGS)
