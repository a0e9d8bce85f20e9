"""The page of a comparison: the table, and for each figure the methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advrepair.core import comparison_table as table
from advrepair.html import svg, words
from advrepair.html.figures import Figure
from advrepair.html.page import filled


def render_comparison(whole: Mapping[str, Any]) -> str:
    """The page as text; the same comparison gives the same text."""
    rows = list(zip(whole["rows"], table.lines(whole), strict=True))
    return filled(
        "comparison.html",
        {
            "headline": table.headline(whole),
            "protocol": table.protocol(whole),
            "network": str(whole["network"]),
            "head": table.head(whole),
            "rows": [
                {"cells": cells, "absent": all(v is None for v in row["figures"].values())}
                for row, cells in rows
            ],
            "notes": table.notes(whole),
            "legend": table.legend(whole),
            "charts": charts(whole),
            "evidence": [_evidence(row) for row in whole["rows"]],
            "machine": _machine(whole),
        },
    )


def charts(whole: Mapping[str, Any]) -> list[Figure]:
    """A chart for each figure; a method without the figure has a dash and no bar."""
    found = []
    for column in table.columns(whole):
        values = [(row["method"], column.value(row)) for row in whole["rows"]]
        bars = [(name, max(0.0, value or 0.0), words.share(value)) for name, value in values]
        better = "Less is better." if column.lower else "More is better."
        best = _best(values, column.lower)
        caption = f"{column.definition[:1].upper()}{column.definition[1:]}. {better}{best}"
        found.append(Figure(svg.bars(bars, column.title, caption, high=1.0), caption))
    return found


def _best(values: list[tuple[str, float | None]], lower: bool) -> str:
    """Who is best, for those who cannot see the bars."""
    known = {name: value for name, value in values if value is not None}
    if len(known) < 2:
        return ""
    least = min(known.values()) if lower else max(known.values())
    names = [name for name, value in known.items() if value == least]
    if len(names) == len(known):
        return " All are equal."
    return f" Best: {words.listed(names)}, {words.share(least)}."


def _evidence(row: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """What a method says of itself, its options, and where its model is."""
    facts = [("distribution", row["distribution"])]
    facts += [(f"option {key}", _shown(value)) for key, value in row["options"].items()]
    facts += [(key, _shown(value)) for key, value in row["evidence"].items()]
    model = row["model"] or f"none: {row.get('model_reason', 'nothing was applied')}"
    return row["method"], [*facts, ("model", model)]


def _machine(whole: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    named = {"Versions": "versions", "Hardware": "hardware", "SHA-256 of what was read": "inputs"}
    return [
        (title, [(str(k), str(v)) for k, v in sorted(whole[key].items())])
        for title, key in named.items()
    ]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return words.plain(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return words.DASH if value is None else str(value)
