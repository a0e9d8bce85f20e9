"""What stands outside the boxes, as tables, and only after a full evaluation."""

import json
import shutil

import pytest

from advrepair import html
from advrepair.cli import main
from advrepair.core.threats import THREATS
from advrepair.html import words
from advrepair.html.outside import LOOKUP, outside


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("outside") / "run"
    flags = ["--count", "4", "--evaluate", "full", "--set", "evaluation.limit=8"]
    assert main(["run", *flags, "--set", "pgd.steps=3", "--json", "--out", str(place)]) == 0
    return place


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_tables_are_those_of_the_report(folder):
    report = report_of(folder)
    found = outside(report)
    assert found.asked == "8 unseen inputs attacked at radius 0.1 with pgd"
    assert [row.name for row in found.threats] == sorted(THREATS)
    first = report["evaluation"]["threats"]["repair"][found.threats[0].name]
    assert found.threats[0].cells[0] == words.share(first)
    assert [row.name for row in found.radii] == ["0.05", "0.1", "0.2", "1"]
    assert found.radii[0].cells[2:] == (
        words.DASH,
        words.DASH,
    )  # the oracle was asked at two radii only
    assert [row.name for row in found.lookup] == list(LOOKUP)
    assert set(LOOKUP) == set(report["lookup"]["repair"])


def test_they_stand_on_the_page(folder):
    page = (folder / "report.html").read_text()
    assert '<section id="outside">' in page and '<a href="#outside">' in page
    for said in (*THREATS, *LOOKUP, "Query: the deployed function"):
        assert said in page


def test_without_a_full_evaluation_there_are_none(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "run")
    report = report_of(place) | {"evaluation": None, "lookup": None}
    assert outside(report) is None
    (place / "report.json").write_text(json.dumps(report))
    assert 'id="outside"' not in html.write(place).read_text()
