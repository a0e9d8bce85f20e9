"""The table of a comparison: its columns, what stands in each cell, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from advrepair.core.tasks import MethodStatus, Scope

_CSV = ("method", "distribution", "status", "scope", "seconds", "peak_memory_bytes", "reason")


@frozen
class Column:
    """A figure of the table. lower: whether less is better. of: what the title stands for."""

    title: str
    metric: str
    definition: str
    lower: bool = False

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The figure of a row, as a share; None where it was not measured."""
        found: float | None = row["figures"].get(self.metric)
        if found is not None and self.title == "FDD in":
            return 1 - found
        return found


_LABELLED = (
    Column("RSR", "RSR", "counterexamples that were given and are right now"),
    Column("RGR", "RGR", "other counterexamples from the same regions that are right now"),
    Column("DD", "DD", "accuracy lost on test data; less than 0 is a gain", lower=True),
)
_ATTACKED = (
    Column("DSR", "DSR", "regions in which no attack finds a counterexample"),
    Column(
        "DGSR-query", "DGSR-query", "unseen inputs that are right, and stay so under every attack"
    ),
    Column("DGSR-certified", "DGSR-certified", "unseen inputs whose whole ball is proved"),
    Column(
        "DGSR-oracle",
        "DGSR-oracle",
        "the paper's protocol, where patches are fixed by the clean input: not robustness",
    ),
)
_REGIONS = (
    Column(
        "FDD in",
        "fidelity",
        "decisions that changed in the regions, of those that were right",
        lower=True,
    ),
    Column("FDD out", "FDD", "decisions that changed around the regions", lower=True),
)
_PROVED = Column("certified", "certified", "properties that the core has proved of the model")


def columns(whole: Mapping[str, Any]) -> tuple[Column, ...]:
    """The figures that some row has, in their order; the first of them always stand there."""
    regions = any(row["figures"].get("fidelity") is not None for row in whole["rows"])
    fixed = (_PROVED, *_LABELLED[:2], *(_REGIONS if regions else _LABELLED[2:]))
    more = (*(_LABELLED[2:] if regions else ()), *_ATTACKED)
    seen = [c for c in more if any(c.value(row) is not None for row in whole["rows"])]
    return (*fixed, *seen)


def percent(value: float | None) -> str:
    """Per cent; what is not all is not shown as all."""
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}".replace("-0.0", "0.0")
    return "99.9" if shown == "100.0" and value < 1 else shown


def cell(column: Column, row: Mapping[str, Any], count: int) -> str:
    """What stands in a cell; proved properties are counted."""
    value = column.value(row)
    if column is _PROVED and value is not None:
        return f"{round(value * count)}/{count}"
    return percent(value)


def cost(row: Mapping[str, Any]) -> tuple[str, str]:
    """Seconds of the repair, and mebibytes of its process at most."""
    seconds, peak = row["seconds"]["repair"], row["peak_memory_bytes"]
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}", f"{peak / 2**20:.0f}"


def lines(whole: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every row, in cells: method, status, scope, the figures, seconds, memory."""
    count, chosen = whole["problem"]["count"], columns(whole)
    for row in whole["rows"]:
        cells = (cell(column, row, count) for column in chosen)
        yield (row["method"], row["status"], row["scope"], *cells, *cost(row))


def head(whole: Mapping[str, Any]) -> tuple[str, ...]:
    """The titles of :func:`lines`."""
    titles = (column.title for column in columns(whole))
    return ("method", "status", "scope", *titles, "s", "MiB")


def notes(whole: Mapping[str, Any]) -> list[str]:
    """Why a method has no figures, what it tripped, and what was left out."""
    found = []
    for row in whole["rows"]:
        if row["reason"]:
            found.append(f"{row['method']}: {row['status']}: {row['reason']}")
        if row["evidence"].get("collapsed"):
            found.append(f"{row['method']}: its network predicts one class for nearly everything")
        found += [f"{row['method']}: flag: {each['name']}: {each['text']}" for each in row["flags"]]
    return [*found, *whole["notes"]]


def legend(whole: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What every title, status and scope that occurs means."""
    said = [(column.title, column.definition) for column in columns(whole)]
    said += [(s.value, s.sentence) for s in MethodStatus if _occurs(whole, "status", s.value)]
    said += [(f"scope {s.value}", s.sentence) for s in Scope if _occurs(whole, "scope", s.value)]
    limits = whole["limits"]
    return [
        *said,
        ("s", f"seconds of the repair alone; {limits['seconds']:g} at most"),
        ("MiB", f"memory of its process by then; {limits['memory_gib']:g} GiB at most"),
    ]


def headline(whole: Mapping[str, Any]) -> str:
    """What was compared on what."""
    problem, done, count = whole["problem"], len(whole["rows"]), len(whole["methods"])
    what = f"{problem['count']} propert{'y' if problem['count'] == 1 else 'ies'}"
    if problem["epsilon"] is not None:
        what = f"{problem['count']} balls of radius {problem['epsilon']:g}"
    many = f"{done} repair methods" if done == count else f"{done} of {count} repair methods"
    return f"{many} on {whole['network']}, {what}"


def protocol(whole: Mapping[str, Any]) -> str:
    """How it was measured, in a sentence."""
    asked, count = whole["evaluation"], whole["problem"]["counterexamples"]
    text = f"{count} counterexamples were given"
    if asked["scope"] != "full":
        return f"{text}; nothing was attacked afterwards."
    text += f"; the results were attacked with {asked['attack']} in up to {asked['limit']} regions"
    if any(row["figures"].get("DGSR-query") is not None for row in whole["rows"]):
        text += f" and as many unseen inputs, at radius {asked['epsilon']:g}"
    return f"{text}."


def as_csv(whole: Mapping[str, Any]) -> str:
    """A line for each method; shares from 0 to 1, empty where nothing was measured."""
    text, chosen = io.StringIO(), columns(whole)
    write = csv.writer(text, lineterminator="\n")
    write.writerow([*_CSV[:4], *(column.title for column in chosen), *_CSV[4:]])
    for row in whole["rows"]:
        figures = ["" if (v := c.value(row)) is None else v for c in chosen]
        spent = [round(row["seconds"]["repair"], 3), row["peak_memory_bytes"], row["reason"] or ""]
        write.writerow([*(row[name] for name in _CSV[:4]), *figures, *spent])
    return text.getvalue()


def as_markdown(whole: Mapping[str, Any]) -> str:
    """The table as a page of its own; figures in per cent."""
    parts = [f"# {headline(whole)}", protocol(whole), _table([head(whole), *lines(whole)])]
    if said := notes(whole):
        parts.append("\n".join(f"- {each}" for each in said))
    parts.append("\n".join(f"- **{name}**: {text}" for name, text in legend(whole)))
    known = ", ".join(f"{key} {value}" for key, value in whole["hardware"].items())
    parts.append(f"Seed {whole['seed']}; {known}; advrepair {whole['versions']['advrepair']}.")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    every = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in every)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _occurs(whole: Mapping[str, Any], key: str, value: str) -> bool:
    return any(row[key] == value for row in whole["rows"])
