"""The page of a comparison says what its JSON holds, and harms nobody."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pages import Page

from advrepair.core import comparison_table
from advrepair.core.reporting import METRICS
from advrepair.html.comparison import charts, render_comparison

EVIL = "<script>alert(1)</script>\"'&--><img src=x onerror=alert(1)>"


def row(name: str, status: str, **figures: float) -> dict[str, Any]:
    return {
        "method": name,
        "distribution": "advrepair 0.1.0",
        "options": {"steps": 3},
        "status": status,
        "scope": "none",
        "reason": None if figures else "it was ended: it did not stop within 5 s",
        "evidence": {"epoch": 4, "loss": 0.123456, "last": {"share": 0.5}, "rows": [1, 2]},
        "seconds": {"repair": 1.5, "evaluation": 2.0},
        "peak_memory_bytes": 2**28,
        "figures": {name: figures.get(name.replace("-", "_")) for name in METRICS},
        "intervals": {},
        "counts": {},
        "flags": [],
        "model": None,
    }


@pytest.fixture
def whole() -> dict[str, Any]:
    rows = [
        row("none", "not_repaired", certified=0.0, RSR=0.0, RGR=0.0, DD=0.0),
        row("ours", "repaired", certified=1.0, RSR=1.0, RGR=0.5, DD=-0.02),
        row("late", "timeout"),
    ]
    return {
        "network": "net.onnx",
        "problem": {"epsilon": 0.1, "count": 4, "counterexamples": 4, "decision": "argmax"},
        "evaluation": {"scope": "quick", "attack": "pgd", "epsilon": 0.1, "limit": 10},
        "limits": {"seconds": 5.0, "memory_gib": 1.0},
        "hardware": {"cores": 2},
        "versions": {"advrepair": "0.1.0"},
        "inputs": {"network": "00ff"},
        "seed": 0,
        "notes": [],
        "methods": ["none", "ours", "late"],
        "rows": rows,
    }


def test_every_method_and_figure_is_there(whole) -> None:
    found = Page(render_comparison(whole))
    assert "3 repair methods on net.onnx, 4 balls of radius 0.1" in found.text
    for text in ("ours repaired none 4/4 100.0 50.0 -2.0 1.5 256", "late timeout none - - - -"):
        assert text in found.text
    assert "late: timeout: it was ended: it did not stop within 5 s" in found.text
    sections = [each["id"] for each in found.all("section")]
    assert sections == ["table", "notes", "charts", "methods", "machine"]
    assert {a["href"].removeprefix("#") for a in found.all("a")} == set(sections)
    assert len(found.all("svg")) == len(comparison_table.columns(whole)) == 4


def test_a_chart_says_in_words_who_is_best(whole) -> None:
    captions = [each.caption for each in charts(whole)]
    assert captions[1].endswith("More is better. Best: ours, 100.0\N{NO-BREAK SPACE}%.")
    assert "Less is better. Best: ours, \N{MINUS SIGN}2.0" in captions[3]
    alike = copy.deepcopy(whole)
    for each in alike["rows"][:2]:
        each["figures"]["RSR"] = 0.25
    assert charts(alike)[1].caption.endswith("All are equal.")


def test_what_is_not_measured_has_no_bar(whole) -> None:
    chart = str(charts(whole)[1].chart)
    assert chart.count("<rect") == 3 and chart.count('width="0"') == 2
    assert "\N{EN DASH}" in chart


def test_text_is_never_markup(whole) -> None:
    whole["network"] = EVIL
    for each in whole["rows"]:
        each["method"] = each["reason"] = each["distribution"] = EVIL
        each["evidence"] = {EVIL: EVIL}
        each["flags"] = [{"name": EVIL, "text": EVIL}]
    whole["notes"] = [EVIL]
    found = Page(render_comparison(whole))
    assert not found.all("script") and not found.all("img")
    assert EVIL in found.text


def test_the_same_comparison_gives_the_same_page(whole) -> None:
    assert render_comparison(whole) == render_comparison(copy.deepcopy(whole))
