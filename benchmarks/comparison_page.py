"""The comparison of repair methods as one Markdown page, from the cells that are there."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import mean
from typing import Any

from advrepair.core.comparison_table import cell, columns, cost, percent
from benchmarks.comparison_cells import CELLS, Cell
from benchmarks.comparison_paper import RULES, artefact, figures, marks
from benchmarks.comparison_text import CHOOSING, FOUND, LIMITS, READING, SHORT, TITLE
from benchmarks.tables_page import FLAGS, table

Record = dict[str, Any]
Records = Mapping[Cell, Record]
# Titles of ours with the paper's metric; its DGSR tells the network the clean input where there
# are patches to choose, so that for its own method it is our DGSR-oracle.
_METRICS = {"DGSR-query": "DGSR", "FDD out": "FDD", "s": "Time"}
_BRIEF = {
    "In the balls": ("RSR", "DSR", "certified"),
    "Elsewhere": ("DD", "DGSR-query", "DGSR-certified"),
}
_OWN = _METRICS | {"DGSR-query": "", "DGSR-oracle": "DGSR"}


def page(records: Records) -> str:
    """The whole page."""
    parts = [TITLE, _made(records), READING, FOUND if records else "", *_in_short(records)]
    labelled = {c: r for c, r in records.items() if c.radius}
    for network, cells in groupby(sorted(labelled, key=_place), key=lambda c: c.network):
        parts.append(f"## {network}")
        for each in cells:
            parts += [
                f"### {each.count} balls of radius {each.radius}",
                _rates(each, records[each]),
            ]
            parts.append(_reasons(records[each]))
    parts += _acasxu({c: r for c, r in records.items() if not c.radius})
    parts += [_legend(records), CHOOSING, LIMITS + _missing(records)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _place(asked: Cell) -> tuple[int, int, float]:
    networks = list(dict.fromkeys(c.network for c in CELLS))
    return networks.index(asked.network), asked.count, float(asked.radius)


def _made(records: Records) -> str:
    """Dates, machine, versions and limits, as the cells state them, and a command."""
    if not records:
        return "No cell is there."
    wholes = [r["comparison"] for r in records.values()]
    loads = [r["load"] for r in records.values()]
    said = {
        "date": [r["date"] for r in records.values()],
        "hardware": [_listed(w["hardware"]) for w in wholes],
        "versions": [_listed(w["versions"]) for w in wholes],
        "limits of a method": [_listed(w["limits"]) for w in wholes],
        "attack": [
            f"{w['evaluation']['attack']} ({_listed(w['evaluation']['options'])})" for w in wholes
        ],
        "regions and unseen inputs attacked": [
            f"{w['evaluation']['limit']} at most" for w in wholes
        ],
        "seed": [str(w["seed"]) for w in wholes],
        "load at the start": [f"{min(loads):.1f} to {max(loads):.1f}"],
    }
    rows = [[key, "; ".join(dict.fromkeys(values))] for key, values in said.items()]
    one = next(iter(records.values()))["command"]
    return table(("made", "with"), rows) + f"\n\nA cell is one command, such as\n\n    {one}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


# One comparison ----------------------------------------------------------------------------


def _rates(asked: Cell, record: Record) -> str:
    """Every method in a row, with the paper's figures in parentheses."""
    whole = record["comparison"]
    chosen = columns(whole)
    rows = []
    for row in whole["rows"]:
        printed = figures(asked, row["method"])
        names = _OWN if row["method"] == "advrepair" else _METRICS
        shown = {c.title: cell(c, row, whole["problem"]["count"]) for c in chosen}
        shown["s"] = cost(row)[0]
        rates = [value + _beside(printed, names.get(t, t)) for t, value in shown.items()]
        said = " ".join([*marks(row["method"], printed), *_flags(row)])
        rows.append([row["method"], row["status"], row["scope"], *rates, said])
    head = ("method", "status", "scope", *(c.title for c in chosen), "s", "notes")
    return table(head, rows)


def _beside(printed: Mapping[str, float | None], metric: str) -> str:
    """The paper's figure, if it has one; a question mark if it is lost."""
    if metric not in printed:
        return ""
    value = printed[metric]
    return " (?)" if value is None else f" ({value:.1f})"


def _flags(row: Record) -> list[str]:
    names = {flag["name"] for flag in row["flags"]}
    collapsed = {"constant predictor"} if row["evidence"].get("collapsed") else set()
    return [letter for name, letter in FLAGS.items() if name in names | collapsed]


def _reasons(record: Record) -> str:
    """Why a method has no figures, or is not what it said."""
    rows = record["comparison"]["rows"]
    return "\n".join(f"- {r['method']}: {r['status']}: {r['reason']}" for r in rows if r["reason"])


# Several -----------------------------------------------------------------------------------


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


def _in_short(records: Records) -> Iterator[str]:
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


def _acasxu(records: Records) -> Iterator[str]:
    """Means over the networks of ACAS Xu, then each."""
    if not records:
        return
    yield f"## ACAS Xu, property 2, {len(records)} networks"
    yield "Means; in parentheses the paper's over the same networks."
    rows = [_means(method, _rows(records, method)) for method in _methods(records)]
    yield table((*_HEAD, "notes"), rows)
    yield _all_reasons(records)
    yield "### Each network"
    yield "RSR / RGR / FDD in / FDD out (the paper's FDD), or the status of what has no figures."
    methods = [m for m in _methods(records) if m != "none"]
    each = [
        [_named(asked), *(_row(asked, record, m) for m in methods)]
        for asked, record in records.items()
    ]
    yield table(("network", *methods), each)


def _all_reasons(records: Records) -> str:
    """Each reason once, with the networks if these are not all."""
    found: dict[str, list[str]] = {}
    for asked, record in records.items():
        for line in filter(None, _reasons(record).split("\n")):
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
        shown.append(_mean(values) + _beside(_over(printed), _METRICS.get(title, title)))
    proved = [row["figures"]["certified"] for _, row in rows]
    known = [value for value in proved if value is not None]
    spent = mean(row["seconds"]["repair"] for _, row in rows)
    return [
        method,
        f"{sum(row['status'] == 'repaired' for _, row in rows)}/{len(rows)}",
        ", ".join(dict.fromkeys(row["scope"] for _, row in rows)),
        f"{sum(value == 1 for value in known)}/{len(rows)}" if known else "-",
        *shown,
        f"{spent:.1f}" + _beside(_over(printed), "Time"),
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
    return shown + _beside(figures(asked, method), "FDD")


# What it means -----------------------------------------------------------------------------


def _legend(records: Records) -> str:
    """The footnotes and flags that occur, and rows of the paper that are no measurements."""
    used, bad, of = set[str](), 0, 0
    for asked, record in records.items():
        for row in record["comparison"]["rows"]:
            printed = figures(asked, row["method"])
            used |= {*marks(row["method"], printed), *_flags(row)}
            bad, of = bad + artefact(row["method"], printed), of + bool(printed)
    if not used:
        return ""
    notes = [f"- **{mark}**: {text}" for mark, (_, text) in RULES.items() if mark in used]
    flags = [f"- **{letter}**: {name}" for name, letter in FLAGS.items() if letter in used]
    link = "Flags of ours, explained in [metrics.md](metrics.md#flags):"
    count = (
        f"Of the {of} rows of the paper beside ours, {bad} carry a, b or c: they show a failed run "
        "and not the method."
    )
    parts = ["## Notes", "Small letters are about the paper's figures.", "\n".join(notes), count]
    return "\n\n".join([*parts, *([link, "\n".join(flags)] if flags else [])])


def _missing(records: Records) -> str:
    """The cells that were not run."""
    left = [asked.name for asked in CELLS if asked not in records]
    if not left:
        return f"- All {len(CELLS)} cells were run."
    return f"- {len(CELLS) - len(left)} of {len(CELLS)} cells were run. Not run: {', '.join(left)}."
