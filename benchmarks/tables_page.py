"""The results as one Markdown page and as CSV, from the cells that are there."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from attrs import astuple, fields

from advrepair.core.statistics import Share
from benchmarks import paper
from benchmarks.cells import COUNTS, NETWORKS, RADII, Cell, Settings
from benchmarks.notes import RULES, marks
from benchmarks.tables_text import CASE, LIMITS, OWN, READING, TITLE

SUBJECTS = {"repair": "repair", "constant-bias": "constant-bias", "none": "unrepaired"}
METRICS = ("certified", "RSR", "RGR", "DD", "DSR", "DGSR-query", "DGSR-oracle")
FLAGS = {
    "weak attack": "W",
    "not image dependent": "I",
    "not monotone": "M",
    "black box better than white box": "B",
    "constant predictor": "C",
    "predictions independent of the image": "P",
}
_STAGES = ("bounds", "training", "certification", "branch and bound")
_CASE = Cell("fnn_small", "0.1", 1000)
_HEAD = ("r", "n", "patch", "attack", "of", *METRICS, "repair, s", "evaluation, s", "notes")
_FIELDS = [field.name for kind in (Cell, Settings) for field in fields(kind)]
_FIELDS += ["subject", "metric", "value"]
Record = dict[str, Any]
Row = Sequence[str]


def page(records: Sequence[Record]) -> str:
    """The whole page."""
    own = [r for r in records if r["cell"]["variant"] == "own"]
    labels = [r for r in records if r["cell"]["variant"] != "own"]
    parts = [TITLE, _made(records), READING, _case(own), OWN]
    parts += [*_by_network(own), "## Table 5", _patches(), *_by_network(labels)]
    parts += [_legend(records), LIMITS + _computed(records)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_network(records: Sequence[Record]) -> Iterator[str]:
    for network in NETWORKS:
        rows = [row for r in records if r["cell"]["network"] == network for row in cell_rows(r)]
        if rows:
            kept = [i for i, _ in enumerate(_HEAD) if any(row[i] for row in rows)]
            yield f"### {network}"
            yield table([_HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows])


def cell_rows(record: Record) -> list[Row]:
    """The rows of one cell: the paper, where it has one, then every subject."""
    cell, attack = Cell(**record["cell"]), record["settings"]["attack"]
    printed = paper.figures(cell.network, cell.radius, cell.count, cell.variant)
    kind = "" if cell.variant == "own" else cell.variant
    name, rows = [cell.radius, str(cell.count), kind], []
    if printed:
        rows.append([*name, "", "paper", *_printed(printed), " ".join(marks(record, printed))])
    for subject, title in SUBJECTS.items():
        seconds, said = ["", ""], _flags(record, subject)
        if subject == "repair":
            inside = record["report"]["seconds"]
            spent = (sum(inside[s] for s in _STAGES), record["seconds"]["evaluation"])
            seconds = [f"{each:.1f}" for each in spent]
        rates = [percent(value) for value in _rates(record, subject)]
        rows.append([*name, attack, title, *rates, *seconds, said])
    return rows


def _printed(printed: Mapping[str, float | None]) -> list[str]:
    """The paper's figures in our columns; its DGSR tells the network the clean input."""
    names = {"DGSR-oracle": "DGSR"}
    shown = [printed.get(names.get(metric, metric)) for metric in METRICS]
    time = printed.get("Time")
    known = ["-" if value is None else f"{value:.1f}" for value in shown]
    return [*known, "" if time is None else f"{time:.1f}", ""]


def _rates(record: Record, subject: str) -> list[float | None]:
    report = record["report"]
    found = report["metrics"] if subject == "repair" else report["baseline"][subject]
    return [found[metric] for metric in METRICS]


def percent(value: float | None) -> str:
    """A share in per cent, to one decimal, as the paper prints it."""
    return "-" if value is None else f"{100 * value + 0.0:.1f}".replace("-0.0", "0.0")


def _flags(record: Record, subject: str) -> str:
    """Letters of the flags that a subject tripped; one that names nobody is about the repair."""
    names = set()
    for flag in record["report"]["flags"]:
        named = flag["text"].split(":")[0]
        if (named if named in SUBJECTS else "repair") == subject:
            names.add(flag["name"])
    return " ".join(letter for name, letter in FLAGS.items() if name in names)


def _case(records: Sequence[Record]) -> str:
    """The largest repair of one network: what a deployed network has of it."""
    rows = []
    for record in records:
        if Cell(**record["cell"]) != _CASE:
            continue
        counts, attack = record["report"]["counts"], record["settings"]["attack"]
        for subject in ("none", "constant-bias", "repair"):
            found = dict(zip(METRICS, _rates(record, subject), strict=True))
            shown = [_with_interval(found[m], counts[m]) for m in METRICS[-2:]]
            rows.append([attack, SUBJECTS[subject], percent(found["certified"]), *shown])
    if not rows:
        return ""
    theirs = paper.figures(_CASE.network, _CASE.radius, _CASE.count, _CASE.variant)["DGSR"]
    return CASE.format(theirs) + "\n" + table(("attack", "of", "certified", *METRICS[-2:]), rows)


def _with_interval(value: float | None, count: int) -> str:
    if value is None:
        return "-"
    low, high = Share(round(value * count), count).interval or (0.0, 1.0)
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def _patches() -> str:
    names = ", ".join(f"{key}: {text}" for key, text in paper.PATCHES.items())
    return (
        f"{names}. TS, a small patch for every pair of label and attacked label, is none of the "
        "paper's. Small is three hidden layers of 64, 64 and 16, large of 256, 256 and 64."
    )


def _legend(records: Sequence[Record]) -> str:
    """The footnotes and flags that occur."""
    rows = [row for record in records for row in cell_rows(record)]
    used = {mark for row in rows for mark in row[-1].split()}
    notes = [f"- **{mark}**: {text}" for mark, (_, text) in RULES.items() if mark in used]
    flags = [f"- **{letter}**: {name}" for name, letter in FLAGS.items() if letter in used]
    intro = "Small letters stand beside the paper's row, capital ones at who tripped the flag."
    link = "Flags, explained in [metrics.md](metrics.md#flags):"
    parts = ["## Notes", intro, "\n".join(notes)]
    return "\n\n".join(parts + ([link, "\n".join(flags)] if flags else []))


def _made(records: Sequence[Record]) -> str:
    """Dates, machine, versions and commands, as the cells state them."""
    if not records:
        return "No cell is there."
    said = {
        "date": [r["date"] for r in records],
        "hardware": [_listed(r["manifest"]["hardware"]) for r in records],
        "versions": [_listed(r["manifest"]["versions"]) for r in records],
        "evaluation": [_evaluation(r) for r in records],
        "regions attacked for DSR": [_regions(r) for r in records],
        "preset": [r["settings"]["preset"] for r in records],
        "seed": [str(r["manifest"]["seed"]) for r in records],
    }
    rows = [[key, "; ".join(dict.fromkeys(values))] for key, values in said.items()]
    command = "\n".join(f"    {line}" for line in records[0]["commands"])
    return table(("made", "with"), rows) + "\n\nA cell is two commands, such as\n\n" + command


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _evaluation(record: Record) -> str:
    attack, limit = record["report"]["evaluation"]["attack"], record["settings"]["limit"]
    return f"{attack['name']} ({_listed(attack['options'])}) on the first {limit} test inputs"


def _regions(record: Record) -> str:
    attacked, count = record["report"]["counts"]["DSR"], record["cell"]["count"]
    return "all" if attacked == count else f"the first {attacked} of {count}"


def _computed(records: Sequence[Record]) -> str:
    """How many of the paper's cells were computed."""
    kinds = {"Tables 1 and 3": ("own",), "Table 5": tuple(paper.PATCHES)}
    lines = []
    for title, variants in kinds.items():
        every = {Cell(*each) for each in product(NETWORKS, RADII, COUNTS, variants)}
        there = every & {Cell(**r["cell"]) for r in records}
        lines.append(f"- {title}: {len(there)} of {len(every)} cells were computed.")
    return "\n".join(lines)


def as_csv(records: Sequence[Record]) -> str:
    """Every figure in a row of its own; shares from 0 to 1, the paper's too."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_FIELDS)
    for record in records:
        name = [*astuple(Cell(**record["cell"])), *astuple(Settings(**record["settings"]))]
        printed = paper.figures(*name[:4])
        for metric, value in printed.items():
            scaled = value if metric == "Time" or value is None else round(value / 100, 6)
            rows.writerow([*name, "paper", metric, scaled])
        for subject, title in SUBJECTS.items():
            for metric, value in zip(METRICS, _rates(record, subject), strict=True):
                rows.writerow([*name, title, metric, value])
        for stage, seconds in record["seconds"].items():
            rows.writerow([*name, "repair", f"{stage} seconds", round(seconds, 1)])
    return text.getvalue()
