"""The figures of the table, each with its definition: the one place that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from advrepair.html.words import DASH, number, points, share

_UNKNOWN = "a figure that this version does not know"


@frozen
class Metric:
    """A figure of the table. definition: one line. lower: whether less is better."""

    name: str
    definition: str
    lower: bool = False


METRICS = (
    Metric("certified", "share of the properties that are proved for every input of their box"),
    Metric("RSR", "share of the adversarial examples to repair that are right now"),
    Metric("RGR", "share of other adversarial examples from the same boxes that are right now"),
    Metric("DD", "accuracy lost on test data; less than 0 is a gain", lower=True),
    Metric(
        "FDD",
        "share of test inputs, or of random inputs around the regions of property files, on which "
        "the repair changes the decision",
        lower=True,
    ),
    Metric(
        "fidelity",
        "share of random inputs in the regions of property files, of those that were right, on "
        "which the decision is as before",
    ),
    Metric("DSR", "share of the repaired boxes in which an attack finds no counterexample"),
    Metric(
        "DGSR-query",
        "share of unseen inputs on which the deployed network is right, and stays right under "
        "attack",
    ),
    Metric(
        "DGSR-certified",
        "share of unseen inputs for which it is proved that the deployed network is right on every "
        "input of their ball",
    ),
    Metric(
        "DGSR-oracle",
        "the same with the patches fixed by the clean input, which no deployed network knows: "
        "not robustness",
    ),
)
_KNOWN = {metric.name: metric for metric in METRICS}


@frozen
class Row:
    """A line of the table, ready to be shown."""

    metric: Metric
    measured: bool
    repair: str
    trivial: str
    none: str
    difference: str
    verdict: str
    interval: str
    count: str


def rows(report: Mapping[str, Any]) -> list[Row]:
    """Every known metric, then those of the report that have no definition here."""
    metrics = dict(report["metrics"])
    properties = report["properties"]
    if "certified" not in metrics and properties["total"]:
        metrics["certified"] = properties["certified"] / properties["total"]
    others = sorted(metrics.keys() - _KNOWN.keys())
    found = [*METRICS, *(Metric(name, _UNKNOWN) for name in others)]
    return [_row(metric, metrics.get(metric.name), report) for metric in found]


def _row(metric: Metric, value: object, report: Mapping[str, Any]) -> Row:
    baseline = report.get("baseline", {})
    trivial, none = (_of(baseline.get(who), metric.name) for who in ("constant-bias", "none"))
    ours, theirs = number(value), number(trivial)
    interval = _interval(_of(report.get("intervals"), metric.name))
    difference = verdict = DASH
    if ours is not None and theirs is not None:
        difference = points(ours - theirs)
        verdict = _verdict(ours, theirs, metric, interval)
    return Row(
        metric,
        ours is not None,
        share(ours),
        share(trivial),
        share(none),
        difference,
        verdict,
        DASH if interval is None else f"{share(interval[0])} to {share(interval[1])}",
        _count(_of(report.get("counts"), metric.name)),
    )


def _of(table: object, name: str) -> object:
    return table.get(name) if isinstance(table, Mapping) else None


def _verdict(
    ours: float, theirs: float, metric: Metric, interval: tuple[float, float] | None
) -> str:
    difference = ours - theirs
    if metric.definition == _UNKNOWN:
        return DASH
    if abs(difference) < 5e-4:  # shown as 0.0
        return "no better"
    if interval is not None and interval[0] <= theirs <= interval[1]:
        return "not clearly better" if (difference < 0) == metric.lower else "not clearly worse"
    return "better" if (difference < 0) == metric.lower else "worse"


def _interval(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else (low, high)


def _count(value: object) -> str:
    """``42``, ``42 of 50`` from a pair, or the items of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_count(item)}" for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return " of ".join(_count(item) for item in value)
    return DASH if value is None else f"{value:,}" if isinstance(value, int) else str(value)
