"""The tables of benchmarks.large: one of each network and radius, beside the paper's seconds."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from benchmarks.tables_page import table

BEGIN, END = "<!-- tables: python -m benchmarks.large --page -->", "<!-- end of tables -->"
STATES = ("certified", "empirical", "falsified", "unknown")
RATES = ("RSR", "RGR", "DD", "DSR", "DGSR-query", "DGSR-oracle")
COUNTS = (50, 100, 200, 500, 1000)
# Of table 4 of arXiv 2404.01642v1, for COUNTS: VGG19 at full width, 64 cores and a GPU; its radii
# are in normalised space, a fifth of these.
PAPER = {
    ("vgg19", "4/255"): (238.7, 471.6, 963.0, 2516.9, 5441.6),
    ("vgg19", "8/255"): (229.9, 470.7, 950.1, 2485.0, 5436.0),
    ("resnet18", "4/255"): (265.8, 525.1, 1050.3, 2586.4, 5262.3),
    ("resnet18", "8/255"): (264.7, 523.1, 1042.8, 2627.8, 5325.1),
}
HEAD = ["way", "n", "states", "margin", "changed", *RATES, "missed"]
HEAD += ["run s (paper)", "repair s", "check s", "GiB"]
_WAYS = ("cap", "proved", "sampled", "paper")
Record = dict[str, Any]


def filled(text: str, records: Sequence[Record]) -> str:
    """A page with the tables of all records between the two marks.

    Raises ValueError if the page lacks a mark.
    """
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"a page needs the lines {BEGIN!r} and {END!r}")
    return "\n\n".join([before + BEGIN, *sections(records), END + after])


def sections(records: Sequence[Record]) -> Iterator[str]:
    """Of every network and radius that is there, headline and table; columns in use alone."""
    places = {(r["model"], r["radius"]) for r in records}
    for model, radius in sorted(places, key=lambda place: (place[0], Fraction(place[1]))):
        chosen = [r for r in records if (r["model"], r["radius"]) == (model, radius)]
        lines = rows(chosen)
        kept = [i for i, _ in enumerate(HEAD) if any(line[i] != "-" for line in lines)]
        yield f"### {model}, {radius}"
        yield table([HEAD[i] for i in kept], [[line[i] for i in kept] for line in lines])


def rows(records: Sequence[Record]) -> list[list[str]]:
    """A row for each cell, under HEAD; ``-`` where nothing was measured."""
    ordered = sorted(records, key=lambda r: (_WAYS.index(r["way"]), r["count"]))
    return [_row(record) for record in ordered]


def _row(record: Record) -> list[str]:
    report, verdict = record["report"], record["verdict"]
    parts = report["seconds"]
    states = [f"{report['properties'][s]} {s}" for s in STATES if report["properties"][s]]
    missed = (report["features"]["missed"] or {}).get("searched")
    return [
        record["way"],
        str(record["count"]),
        ", ".join(states),
        _number(verdict["margin"] if report["properties"]["certified"] else None),
        _number(record.get("changed")),
        *(_percent(report["metrics"][name]) for name in RATES),
        _percent(missed),
        _beside_the_paper(record),
        f"{parts['bounds'] + parts['training']:.1f}",
        f"{record['seconds']['check']:.1f} {verdict['verdict']}",
        f"{report['peak_memory_bytes'] / 2**30:.1f}",
    ]


def _beside_the_paper(record: Record) -> str:
    """Seconds of the whole command, and what the paper prints for a network of that name."""
    said = f"{record['seconds']['run']:.0f}"
    for (model, radius), seconds in PAPER.items():
        if record["model"].startswith(model) and record["radius"] == radius:
            printed = dict(zip(COUNTS, seconds, strict=True)).get(record["count"])
            return said if printed is None else f"{said} ({printed:,.0f})"
    return said


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if 0.005 <= abs(value) < 100 or not value else f"{value:.1e}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
