"""The comparison over several networks: means for MNIST, and ACAS Xu in two tables."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from advrepair.core.comparison_table import columns, percent
from benchmarks.comparison_cells import Cell
from benchmarks.comparison_paper import figures, marks
from benchmarks.comparison_rows import METRICS, beside, reasons
from benchmarks.comparison_text import SHORT
from benchmarks.tables_page import table

Record = dict[str, Any]
Records = Mapping[Cell, Record]
_BRIEF = {
    "In the balls": ("RSR", "DSR", "certified"),
    "Elsewhere": ("DD", "DGSR-query", "DGSR-certified"),
}


def _rows(records: Records, method: str) -> list[tuple[Cell, Record]]:
    """The rows of a method, one for each cell."""
    found = []
    for asked, record in records.items():
        found += [(asked, r) for r in record["comparison"]["rows"] if r["method"] == method]
    return found


def _methods(records: Records) -> list[str]:
    rows = [row for record in records.values() for row in record["comparison"]["rows"]]
    return list(dict.fromkeys(row["method"] for row in rows))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return percent(mean(known)) if known else "-"


def in_short(records: Records) -> Iterator[str]:
    """Means over the networks for MNIST, by radius and number of balls."""
    labelled = {c: r for c, r in records.items() if c.radius}
    groups: dict[tuple[int, str], dict[Cell, Record]] = {}
    for asked in sorted(labelled, key=lambda c: (c.count, float(c.radius))):
        groups.setdefault((asked.count, asked.radius), {})[asked] = labelled[asked]
    if not groups:
        return
    yield SHORT
    for what, metrics in _BRIEF.items():
        yield f"{what}: {' / '.join(metrics)}."
        rows = [
            [method, *(_brief(_rows(part, method), metrics) for part in groups.values())]
            for method in _methods(labelled)
        ]
        yield table(["method", *(f"r {radius}, n {count}" for count, radius in groups)], rows)
    many = (f"{len(part)} (r {r}, n {n})" for (n, r), part in groups.items())
    yield f"Networks: {', '.join(many)}."


def _brief(rows: Sequence[tuple[Cell, Record]], metrics: Sequence[str]) -> str:
    """Means of those that have a model; and how many have none."""
    known = [row["figures"] for _, row in rows if row["figures"]["RSR"] is not None]
    if not known:
        return f"none of {len(rows)}"
    shown = " / ".join(_mean([found[metric] for found in known]) for metric in metrics)
    return shown + (f" ({len(known)} of {len(rows)})" if len(known) < len(rows) else "")


_HEAD = ("method", "repaired", "scope", "certified", "RSR", "RGR", "FDD in", "FDD out", "DSR", "s")


def acasxu(records: Records) -> Iterator[str]:
    """Means over the networks of ACAS Xu, then each."""
    if not records:
        return
    yield f"## ACAS Xu, property 2, {len(records)} networks"
    yield "Means; in parentheses the paper's over the same networks."
    rows = [_means(method, _rows(records, method)) for method in _methods(records)]
    yield table((*_HEAD, "notes"), rows)
    yield _allreasons(records)
    yield "### Each network"
    yield "RSR / RGR / FDD in / FDD out (the paper's FDD), or the status of what has no figures."
    methods = [m for m in _methods(records) if m != "none"]
    each = [
        [_named(asked), *(_row(asked, record, m) for m in methods)]
        for asked, record in records.items()
    ]
    yield table(("network", *methods), each)


def _allreasons(records: Records) -> str:
    """Each reason once, with the networks if these are not all."""
    found: dict[str, list[str]] = {}
    for asked, record in records.items():
        for line in filter(None, reasons(record).split("\n")):
            found.setdefault(line, []).append(_named(asked))
    some = {k: f" ({', '.join(v)})" if len(v) < len(records) else "" for k, v in found.items()}
    return "\n".join(line + where for line, where in some.items())


def _named(asked: Cell) -> str:
    return "N" + asked.network.replace("_", ",")


def _means(method: str, rows: Sequence[tuple[Cell, Record]]) -> list[str]:
    """Of one method over the networks."""
    printed = [figures(asked, method) for asked, _ in rows]
    shown = []
    for title, metric in zip(_HEAD[4:9], ("RSR", "RGR", "fidelity", "FDD", "DSR"), strict=True):
        values = [row["figures"].get(metric) for _, row in rows]
        if title == "FDD in":
            values = [None if value is None else 1 - value for value in values]
        shown.append(_mean(values) + beside(_over(printed), METRICS.get(title, title)))
    proved = [row["figures"]["certified"] for _, row in rows]
    known = [value for value in proved if value is not None]
    spent = mean(row["seconds"]["repair"] for _, row in rows)
    return [
        method,
        f"{sum(row['status'] == 'repaired' for _, row in rows)}/{len(rows)}",
        ", ".join(dict.fromkeys(row["scope"] for _, row in rows)),
        f"{sum(value == 1 for value in known)}/{len(rows)}" if known else "-",
        *shown,
        f"{spent:.1f}" + beside(_over(printed), "Time"),
        " ".join(marks(method, printed[0])),
    ]


def _over(printed: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The paper's means over the networks that it has."""
    metrics = dict.fromkeys(metric for each in printed for metric in each)
    found: dict[str, float | None] = {}
    for metric in metrics:
        values = [v for each in printed if (v := each.get(metric)) is not None]
        found[metric] = mean(values) if values else None
    return found


def _row(asked: Cell, record: Record, method: str) -> str:
    whole = record["comparison"]
    row = next((r for r in whole["rows"] if r["method"] == method), None)
    if row is None or row["figures"]["RSR"] is None:
        return "-" if row is None else str(row["status"])
    known = {column.title: column.value(row) for column in columns(whole)}
    shown = " / ".join(percent(known[t]) for t in ("RSR", "RGR", "FDD in", "FDD out"))
    return shown + beside(figures(asked, method), "FDD")
