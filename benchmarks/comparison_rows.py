"""What is said of one method in one comparison: beside the paper's figures, and in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from advrepair.core.comparison_table import cell, columns, cost
from benchmarks.comparison_cells import Cell
from benchmarks.comparison_paper import figures, marks
from benchmarks.tables_page import FLAGS, table

Record = dict[str, Any]
# Titles of ours with the paper's metric; its DGSR tells the network the clean input where there
# are patches to choose, so that for its own method it is our DGSR-oracle.
METRICS = {"DGSR-query": "DGSR", "FDD out": "FDD", "s": "Time"}
OWN = METRICS | {"DGSR-query": "", "DGSR-oracle": "DGSR"}


def rates(asked: Cell, record: Record) -> str:
    """Every method in a row, with the paper's figures in parentheses."""
    whole = record["comparison"]
    chosen = columns(whole)
    rows = []
    for row in whole["rows"]:
        printed = figures(asked, row["method"])
        names = OWN if row["method"] == "advrepair" else METRICS
        shown = {c.title: cell(c, row, whole["problem"]["count"]) for c in chosen}
        shown["s"] = cost(row)[0]
        shares = [value + beside(printed, names.get(t, t)) for t, value in shown.items()]
        said = " ".join([*marks(row["method"], printed), *flags(row)])
        rows.append([row["method"], row["status"], row["scope"], *shares, said])
    head = ("method", "status", "scope", *(c.title for c in chosen), "s", "notes")
    return table(head, rows)


def flags(row: Record) -> list[str]:
    """Letters of what a row tripped."""
    names = {flag["name"] for flag in row["flags"]}
    collapsed = {"constant predictor"} if row["evidence"].get("collapsed") else set()
    return [letter for name, letter in FLAGS.items() if name in names | collapsed]


def beside(printed: Mapping[str, float | None], metric: str) -> str:
    """The paper's figure, if it has one; a question mark if it is lost."""
    if metric not in printed:
        return ""
    value = printed[metric]
    return " (?)" if value is None else f" ({value:.1f})"


def reasons(record: Record) -> str:
    """Why a method has no figures, is not what it said, or did not finish."""
    rows = record["comparison"]["rows"]
    return "\n".join(f"- {r['method']}: {said}" for r in rows for said in remarks(r))


def remarks(row: Record) -> Iterator[str]:
    """What a row does not show, in words."""
    known = row["evidence"]
    if row["reason"]:
        yield f"{row['status']}: {row['reason']}"
    if known.get("unsolved"):
        why = ", ".join(f"{number} {text}" for text, number in known["unsolved"].items())
        yield f"{known['solved']} of {known['regions']} regions were solved; {why}"
    if row["method"] == "art" and row["scope"] == "none" and "cells" in known:
        done = f"after {known['epochs']} epochs"
        yield f"{known['cells proved']} of {known['cells']} cells were proved {done}"
    if row["method"] == "trades" and known.get("epoch") == 0:
        yield "no epoch kept the accuracy within a point and repaired more: the network as it was"
