"""The comparison of repair methods as one Markdown page, from the cells that are there."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from benchmarks.comparison_cells import CELLS, Cell
from benchmarks.comparison_means import acasxu, in_short
from benchmarks.comparison_paper import RULES, artefact, figures, marks
from benchmarks.comparison_rows import flags, rates, reasons
from benchmarks.comparison_text import CHOOSING, FOUND, LIMITS, READING, TITLE
from benchmarks.tables_page import FLAGS, table

Record = dict[str, Any]
Records = Mapping[Cell, Record]


def page(records: Records) -> str:
    """The whole page."""
    parts = [TITLE, _made(records), READING, FOUND if records else "", *in_short(records)]
    labelled = {c: r for c, r in records.items() if c.radius}
    for network, cells in groupby(sorted(labelled, key=_place), key=lambda c: c.network):
        parts.append(f"## {network}")
        for each in cells:
            parts.append(f"### {each.count} balls of radius {each.radius}")
            parts += [rates(each, records[each]), reasons(records[each])]
    parts += acasxu({c: r for c, r in records.items() if not c.radius})
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


# What it means -----------------------------------------------------------------------------


def _legend(records: Records) -> str:
    """The footnotes and flags that occur, and rows of the paper that are no measurements."""
    used, bad, of = set[str](), 0, 0
    for asked, record in records.items():
        for row in record["comparison"]["rows"]:
            printed = figures(asked, row["method"])
            used |= {*marks(row["method"], printed), *flags(row)}
            bad, of = bad + artefact(row["method"], printed), of + bool(printed)
    if not used:
        return ""
    notes = [f"- **{mark}**: {text}" for mark, (_, text) in RULES.items() if mark in used]
    letters = [f"- **{letter}**: {name}" for name, letter in FLAGS.items() if letter in used]
    link = "Flags of ours, explained in [metrics.md](metrics.md#flags):"
    count = (
        f"Of the {of} rows of the paper beside ours, {bad} carry a, b or c: they show a failed run "
        "and not the method."
    )
    parts = ["## Notes", "Small letters are about the paper's figures.", "\n".join(notes), count]
    return "\n\n".join([*parts, *([link, "\n".join(letters)] if letters else [])])


def _missing(records: Records) -> str:
    """The cells that were not run."""
    left = [asked.name for asked in CELLS if asked not in records]
    if not left:
        return f"- All {len(CELLS)} cells were run."
    return f"- {len(CELLS) - len(left)} of {len(CELLS)} cells were run. Not run: {', '.join(left)}."
