"""The charts of the page, each with a sentence that says what one sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from attrs import frozen
from markupsafe import Markup

from advrepair.html import svg, words
from advrepair.html.folder import RunFolder
from advrepair.html.svg import Strip

STATUSES = ("certified", "empirical", "falsified", "unknown")


@frozen
class Figure:
    """A chart and its caption."""

    chart: Markup
    caption: str


@frozen
class Spread:
    """Numbers of a set of margins: how many are positive, and where they lie."""

    label: str
    positive: str
    low: str
    middle: str
    high: str
    missing: int


def status(counts: Mapping[str, int]) -> Figure:
    """How many properties have which status, as one bar."""
    total = max(counts["total"], 1)
    parts = [(counts[name] / total, f"s-{name}") for name in STATUSES]
    caption = words.listed([f"{counts[name]:,} {name}" for name in STATUSES]) + "."
    return Figure(svg.strip(parts, "Status of the properties", caption), caption)


def margins(run: RunFolder) -> tuple[list[Figure], list[Spread]]:
    """The proved margin on each box without and with the patches."""
    before = _finite(run.evaluation["margin"].tolist())
    after = _finite([each.get("margin") for each in run.properties])
    total = len(run.properties)
    table = [_spread("before", before, total), _spread("after", after, total)]
    if not before or not after:
        return [], table
    strips = [
        Strip("before: network alone", before, "c2"),
        Strip("after: with patches", after, "c1"),
    ]
    caption = (
        f"Right of the dotted line the margin is positive. Before, {_positive(before)} of "
        f"{total:,} boxes lie there; after, {_positive(after)}."
    )
    unit = "proved margin, both on one scale; heights count boxes"
    both = svg.histogram(strips, "Margins before and after", caption, unit)
    own = "After, on its own scale. More than 0 is enough, however little; the least is "
    own += f"{words.margin(min(after))}."
    alone = svg.histogram(
        strips[1:], "Certified margins", own, "certified margin; heights count boxes"
    )
    return [Figure(both, caption), Figure(alone, own)], table


def _finite(values: Sequence[object]) -> list[float]:
    return [found for found in map(words.number, values) if found is not None]


def _positive(values: Sequence[float]) -> int:
    return sum(value > 0 for value in values)


def _spread(label: str, values: Sequence[float], total: int) -> Spread:
    ends = [min(values), median(values), max(values)] if values else [None] * 3
    low, middle, high = map(words.margin, ends)
    return Spread(
        label, f"{_positive(values):,} of {total:,}", low, middle, high, total - len(values)
    )


def training(run: RunFolder) -> Figure | None:
    """Share of the patches that are proved, against the steps of training they took."""
    taken = run.evaluation["epochs"].tolist()
    lacking = {each["patch"] for each in run.properties if not _learned(each)}
    proved = [float(count) for patch, count in enumerate(taken) if patch not in lacking]
    if not taken:
        return None
    caption = f"{len(proved):,} of {words.many(len(taken), 'patch', 'patches')} got their proof"
    if proved:
        half, last = sorted(proved)[(len(proved) - 1) // 2], max(proved)
        if min(proved) == last:
            caption += f", each after {words.many(int(last), 'step')}"
        else:
            caption += f", half of them within {words.many(int(half), 'step')}, "
            caption += f"all of them within {words.many(int(last), 'step')}"
    caption += "."
    if lacking:
        rest = len(lacking)
        caption += f" The other {rest:,} gave up and add a constant, or are not certified."
    title, unit = "Patches proved by steps of training", "steps of training"
    return Figure(svg.steps(proved, len(taken), title, caption, unit), caption)


def _learned(each: Mapping[str, Any]) -> bool:
    return each["status"] == "certified" and not each.get("constant")


def screening(found: Mapping[str, Any] | None) -> Figure | None:
    """Volume of the boxes that N alone is proved on, against the pieces it took."""
    if not found:
        return None
    pieces, proved, seconds = (found[key] for key in ("pieces", "proved", "seconds"))
    caption = (
        f"{words.share(proved[-1])} of the volume is proved for the network alone, in "
        f"{words.many(pieces[-1], 'piece')} and {words.seconds(seconds[-1])}; the rest, in "
        f"{words.many(found['regions'], 'region')}, has patches."
    )
    points = list(zip(map(float, pieces), proved, strict=True))
    title, unit = "Volume proved without a patch", "pieces"
    return Figure(svg.curve(points, title, caption, unit), caption)


def times(seconds: Mapping[str, Any]) -> Figure | None:
    """Where the time went; a stage that took none is left out."""
    spent = {name: words.number(value) or 0.0 for name, value in seconds.items()}
    total = spent.pop("total", sum(spent.values()))
    rows = [(name, value, words.seconds(value)) for name, value in _by_time(spent) if value > 0]
    if not rows:
        return None
    caption = f"{words.seconds(total)} in total; {rows[0][0]} took longest."
    return Figure(svg.bars(rows, "Time per stage", caption), caption)


def _by_time(spent: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(spent.items(), key=lambda item: (-item[1], item[0]))
