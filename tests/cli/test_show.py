import io

import pytest
from rich.console import Console

from advrepair.cli import show
from advrepair.core.options import Option
from advrepair.core.registry import Entry

LONG = "a-very-long-name-" * 12


def _report(**changes):
    rates = {"RSR": 1.0, "RGR": 0.998, "DD": -0.002}
    report = {
        "network": {"name": "digits", "parameters": 1000},
        "problem": {"epsilon": 0.1, "count": 50, "level": "deployed-float32"},
        "properties": {"total": 50, "certified": 50, "falsified": 0, "unknown": 0, "constant": 3},
        "metrics": rates,
        "baseline": {
            "constant-bias": {"RSR": 1.0, "RGR": None, "DD": 0.5, "certified": 1.0},
            "none": {"RSR": 0.0, "RGR": 0.1, "DD": 0.0, "certified": 0},
        },
        "seconds": {"attack": 1.25, "bounds": 0.5, "total": 2.0},
        "peak_memory_bytes": 3 * 2**29,
        "patches": {"count": 50, "parameters": 32500, "bytes": 130000, "ratio_to_network": 32.5},
        "notes": ["inputs outside the balls are not covered by the proof"],
        "folder": "runs/digits",
    }
    return {**report, **changes}


def _printed(function, *arguments, width=None, terminal=False, encoding=None):
    stream = io.StringIO()
    if encoding:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    screen = show.console(stream)
    if terminal:
        screen = Console(file=stream, force_terminal=True, width=width, color_system=None)
    function(*arguments, screen)
    stream.seek(0)
    return stream.read()


def test_the_report():
    text = _printed(show.print_report, _report())
    assert text.startswith(
        "50 of 50 properties certified (deployed-float32); every input within 0.1 of the 50 centres"
    )
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["repair"] == ["50/50", "100.0", "%", "99.8", "%", "-0.2", "%"]
    assert rows["constant-bias"] == ["50/50", "100.0", "%", "-", "50.0", "%"]
    assert rows["unrepaired"] == ["0/50", "0.0", "%", "10.0", "%", "0.0", "%"]
    assert "patches: 50 with 32500 parameters, 127.0 KiB, 32.5 x the network" in text
    assert "constant for 3 properties" in text
    assert "seconds: attack 1.2, bounds 0.5, total 2.0" in text
    assert "peak memory: 1.5 GiB" in text
    assert "note: inputs outside the balls" in text
    assert text.endswith("files: runs/digits\n")


def test_what_is_not_certified_is_said():
    counts = {"total": 50, "certified": 47, "falsified": 1, "unknown": 2, "constant": 0}
    text = " ".join(_printed(show.print_report, _report(properties=counts)).split())
    assert text.startswith("47 of 50 properties certified")
    assert "of those 47 centres keeps its label; 1 falsified, 2 unknown" in text


def test_nothing_certified_promises_nothing():
    counts = {"total": 2, "certified": 0, "falsified": 0, "unknown": 2, "constant": 0}
    text = _printed(show.print_report, _report(properties=counts))
    assert text.startswith("0 of 2 properties certified (deployed-float32); 2 unknown\n")


def test_missing_figures_are_dashes():
    text = _printed(show.print_report, _report(metrics=dict.fromkeys(show.RATES), baseline={}))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["repair"] == ["50/50", "-", "-", "-"]
    assert rows["constant-bias"] == rows["unrepaired"] == ["-", "-", "-", "-"]


def test_almost_all_is_not_all():
    metrics = {"RSR": 0.9999, "RGR": 1.0, "DD": None}
    text = _printed(show.print_report, _report(metrics=metrics))
    (line,) = [line for line in text.splitlines() if line.strip().startswith("repair ")]
    assert line.split()[2:] == ["99.9", "%", "100.0", "%", "-"]


@pytest.mark.parametrize(("terminal", "width"), [(False, None), (True, 60), (True, 300)])
def test_a_report_is_never_too_wide(terminal, width):
    report = _report(notes=[LONG, "word " * 100], folder=f"runs/{LONG}")
    text = _printed(show.print_report, report, terminal=terminal, width=width)
    assert max(map(len, text.splitlines())) <= min(width or show.WIDTH, show.WIDTH)


def _entries():
    option = Option("steps" + LONG, "int", (1, 2), "[bold]how often[/] :smile: " + LONG, at_least=1)
    return [
        Entry("attack", "pgd", "advrepair", "0.1.0", "Descends [cosine].", (option,)),
        Entry("attack", LONG, LONG, "1.0", LONG),
        Entry("plugin", "bad", "advrepair-bad", "2.0", problem=f"ImportError: {LONG}"),
    ]


@pytest.mark.parametrize(("terminal", "width"), [(False, None), (True, 60), (True, 300)])
def test_a_listing_is_never_too_wide(terminal, width):
    entries = _entries()
    text = _printed(show.print_listing, entries, terminal=terminal, width=width)
    for entry in entries:
        text += _printed(show.print_options, entry, terminal=terminal, width=width)
    assert max(map(len, text.splitlines())) <= min(width or show.WIDTH, show.WIDTH)


def test_a_listing_takes_words_as_they_are():
    text = _printed(show.print_listing, iter(_entries()))
    assert "Descends [cosine]." in text
    assert "Cannot be used:\n  plugin bad (advrepair-bad 2.0): ImportError:" in text
    text = _printed(show.print_options, _entries()[0])
    assert "[bold]how often[/] :smile:" in text
    assert "[1, 2]" in text
    assert "(at least 1)" in text.replace("\n", "")


def test_a_listing_fits_an_ascii_pipe():
    assert _printed(show.print_listing, _entries(), encoding="ascii").isascii()


def test_options_of_a_component_without_any():
    entry = Entry("refiner", "none", "advrepair", "0.1.0", "Never splits.")
    assert _printed(show.print_options, entry).endswith("no options\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")],
)
def test_seconds(value, text):
    assert show.seconds(value) == text
