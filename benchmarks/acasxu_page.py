"""The ACAS Xu results as one Markdown page, from the cells that are there."""

from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

from benchmarks.acasxu_cells import OUTCOMES, REFINERS, contradicts, outcome, seconds
from benchmarks.acasxu_paper import METHODS, METRICS, printed
from benchmarks.acasxu_text import (
    LIMITS,
    NOT_REPAIRED,
    PAIRS,
    PLOT,
    PRINTED,
    READING,
    TABLE_2,
    TITLE,
)
from benchmarks.acasxu_text import (
    REFINERS as REFINERS_TEXT,
)
from benchmarks.tables_page import percent, table

TABLE_2_NETWORKS = [f"{i}_{j}" for i in range(2, 6) for j in range(1, 10)]
Record = dict[str, Any]


def troubles(records: Sequence[Record]) -> list[str]:
    """Repairs that failed, certificates that are not VALID, answers that are contradicted."""
    lines = []
    for record in records:
        name = _name(record)
        if "failed" in record:
            lines.append(f"{name}: failed: {record['failed']['said']}")
        if _invalid(record):
            lines.append(f"{name}: the checker says {_reason(record['check'])}")
        if contradicts(record):
            lines.append(f"{name}: {outcome(record)}, but VNN-COMP: {record['verdict']}")
    return lines


def _invalid(record: Record) -> bool:
    return record.get("check", {}).get("verdict", "VALID") != "VALID"


def _reason(check: Record) -> str:
    """The verdict with the first of its reasons."""
    reasons = [*check.get("invalid", []), *check.get("incomplete", [])]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{check['verdict']}: {reasons[0]}{more}" if reasons else str(check["verdict"])


def page(records: Sequence[Record], drawing: str) -> tuple[str, list[str]]:
    """The whole page, and what is wrong with the results. drawing: file name of the plot."""
    own = [r for r in records if r["cell"]["refiner"] == REFINERS[0]]
    second = [r for r in own if r["cell"]["property"] == "prop_2"]
    asked = [r for r in second if r["cell"]["network"] in TABLE_2_NETWORKS]
    bad = troubles(records)
    parts = [TITLE, _made(records), READING]
    if asked:
        parts += [TABLE_2 + _means(asked), *_table_2(asked), NOT_REPAIRED, PRINTED + _printed()]
    if any(r["cell"]["property"] != "prop_2" for r in own):
        parts += [PAIRS + _summary(own), "### Each pair", _pairs(own)]
    chosen = _compared(records)
    if chosen:
        parts += [REFINERS_TEXT + _refiners(chosen)]
    if second:
        parts += [PLOT.format(drawing)]
    said = "\n".join(f"- {line}" for line in bad) if bad else "Nothing went wrong."
    parts += ["## What went wrong", said, LIMITS]
    return "\n\n".join(part.strip() for part in parts if part) + "\n", bad


def _name(record: Record) -> str:
    cell = record["cell"]
    return f"{_network(record)} {cell['property']} {cell['refiner']}"


def _network(record: Record) -> str:
    return "N" + record["cell"]["network"].replace("_", ",")


def _made(records: Sequence[Record]) -> str:
    """Dates, machine and versions as the cells state them, and the commands."""
    done = [r for r in records if "manifest" in r]
    if not done:
        return "No cell is there."

    def listed(key: str) -> list[str]:
        values = [r["manifest"][key] for r in done]
        return [", ".join(f"{k} {v}" for k, v in each.items()) for each in values]

    loads = [r["load"] for r in records]
    said = {
        "date": [r["date"] for r in records],
        "hardware": listed("hardware"),
        "versions": listed("versions"),
        "seed": [str(r["manifest"]["seed"]) for r in done],
        "load at the start": [f"{min(loads):.1f} to {max(loads):.1f}"],
        "cells": [str(len(records))],
    }
    rows = [[key, "; ".join(dict.fromkeys(values))] for key, values in said.items()]
    commands = "python -m benchmarks.acasxu --pairs --refiners --page docs/acasxu.md"
    one = records[0]["command"]
    return (
        table(("made", "with"), rows)
        + f"\n\nAll of it is one command, which goes on where it stopped:\n\n    {commands}\n\n"
        + "A cell is two commands, such as\n\n"
        + f"    {one}\n    advrepair check FOLDER"
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _means(records: Sequence[Record]) -> str:
    """Our repair beside what the paper prints for every method, on the average."""
    repaired = [r for r in records if outcome(r) == "repaired"]
    rows = []
    if repaired:
        shares = [[r["report"]["metrics"][m] for r in repaired] for m in METRICS[:3]]
        rates = [percent(mean(each)) for each in shares]
        rows.append(
            [f"this repair ({len(repaired)})", *rates, _number(mean(map(seconds, repaired)))]
        )
    for method in reversed(METHODS):
        rows.append([f"paper: {method}", *(_number(printed()["mean", method, m]) for m in METRICS)])
    return "\n" + table(("of", "RSR", "RGR", "FDD", "s"), rows) + _spread(repaired)


def _spread(repaired: Sequence[Record]) -> str:
    """How far the repaired networks are apart in what the rates do not say."""
    if not repaired:
        return ""
    valid = sum("check" in r and not _invalid(r) for r in repaired)
    lines = [f"The checker confirms {valid} of the {len(repaired)} certificates."]
    named = {"touched": "Touched", "order": "Ranking kept there", "intrusion": "Intrusion"}
    for key, name in named.items():
        known = [r["measured"].get(key) for r in repaired]
        found = sorted(each for each in known if each is not None) or [0.0]
        parts = (percent(each) for each in (median(found), found[0], found[-1]))
        lines.append("{}: median {} %, from {} % to {} %.".format(name, *parts))
    return "\n\n" + "\n".join(lines)


def _table_2(records: Sequence[Record]) -> list[str]:
    """Rates of every network, and what they cost."""
    rates, costs = [], []
    for record in records:
        if "failed" in record:
            continue
        found = outcome(record)
        rates.append([_network(record), found, *_rates(record, found)])
        costs.append([_network(record), *_costs(record), _theirs(record)])
    first = ("network", "outcome", "RSR (of)", "RGR (of)", "FDD", "fidelity", "of constant-bias")
    first += ("touched", "decisions kept", "ranking kept", "intrusion")
    note = "All in per cent; the last three columns are about where the patch is on."
    second = (*_COSTS, "paper's method, s")
    return ["### Rates", note, table(first, rates), "### Costs", table(second, costs)]


def _rates(record: Record, found: str) -> list[str]:
    metrics, measured = record["report"]["metrics"], record["measured"]
    counts, trivial = measured["counterexamples"], record["report"]["baseline"]["constant-bias"]
    if found in ("proved", "unknown"):
        return ["-"] * 9
    return [
        *(f"{percent(metrics[m])} ({n})" for m, n in zip(METRICS[:2], counts, strict=True)),
        percent(metrics["FDD"]),
        *(percent(each["fidelity"]) for each in (metrics, trivial)),
        _fine(measured["touched"]),
        percent(measured.get("kept")),
        percent(measured.get("order")),
        percent(measured.get("intrusion")),
    ]


def _fine(share: float) -> str:
    """A share that may be small, in per cent."""
    return f"{100 * share:.2f}" if share >= 1e-4 or not share else f"{100 * share:.1e}"


_COSTS = ("network", "pieces", "regions", "repair, s", "process, s", "CPU, s", "MiB", "checker")
_COSTS += ("checker, s",)


def _costs(record: Record) -> list[str]:
    report, check, found = record["report"], record.get("check", {}), outcome(record)
    story = report["screening"]
    return [
        str(story["pieces"][-1]) if story else "1",
        str(story["regions"]) if story else "-",
        _number(seconds(record)),
        _number(record["run"]["wall"]),
        _number(record["run"]["cpu"]),
        f"{report['peak_memory_bytes'] / 2**20:.0f}",
        check.get("verdict", "-") if found in ("repaired", "proved") else "-",
        _number(check.get("times", {}).get("wall")),
    ]


def _theirs(record: Record) -> str:
    return _number(printed().get((record["cell"]["network"], "AdvRepair", "Time")))


def _printed() -> str:
    networks = dict.fromkeys(network for network, _, _ in printed())
    rows = [
        [
            network if network == "mean" else "N" + network.replace("_", ","),
            *(" / ".join(_number(printed()[network, m, x]) for x in METRICS) for m in METHODS),
        ]
        for network in networks
    ]
    return "\n" + table(("network", *METHODS), rows)


def _summary(records: Sequence[Record]) -> str:
    """Pairs by property: what they are said to be, and what became of them."""
    head = ["property", "pairs", "violated", *OUTCOMES[:2], "holds", *OUTCOMES[2:], "contradicted"]
    head += ["VALID", "repair, s: median", "most", "MiB: most"]
    names = list(dict.fromkeys(r["cell"]["property"] for r in records))
    groups = [(name, [r for r in records if r["cell"]["property"] == name]) for name in names]
    return "\n" + table(head, [_group(*each) for each in [*groups, ("all", records)]])


def _group(name: str, group: Sequence[Record]) -> list[str]:
    def count(which: Callable[[Record], bool]) -> str:
        return str(sum(map(which, group)))

    done = [r for r in group if "failed" not in r]
    spent = [seconds(r) for r in done] or [0.0]
    memory = [r["report"]["peak_memory_bytes"] / 2**20 for r in done] or [0.0]
    found = {each: count(lambda r, each=each: outcome(r) == each) for each in OUTCOMES}
    return [
        name,
        str(len(group)),
        count(lambda r: r["verdict"] == "violated"),
        found["repaired"],
        found["not certified"],
        count(lambda r: r["verdict"] == "holds"),
        found["proved"],
        found["unknown"],
        found["failed"],
        count(contradicts),
        count(lambda r: bool(r.get("check", {}).get("certified")) and not _invalid(r)),
        _number(median(spent)),
        _number(max(spent)),
        f"{max(memory):.0f}",
    ]


def _pairs(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        name = [_network(record), record["cell"]["property"], record["verdict"], outcome(record)]
        if "failed" in record:
            rows.append([*name, *["-"] * 10])
            continue
        measured, metrics = record["measured"], record["report"]["metrics"]
        kept = [percent(metrics["fidelity"]), percent(measured.get("order"))]
        if not record["report"]["patches"]["count"]:
            kept = ["-", "-"]
        rows.append([*name, _fine(measured["touched"]), *kept, *_costs(record)[:-1]])
    head = ("network", "property", "VNN-COMP", "outcome", "touched, %", "fidelity", "ranking kept")
    return table((*head, *_COSTS[1:-1]), rows)


def _compared(records: Sequence[Record]) -> list[Record]:
    """The networks that were repaired with another refiner than the usual one."""
    others = {r["cell"]["network"] for r in records if r["cell"]["refiner"] != REFINERS[0]}
    chosen = [r for r in records if r["cell"]["network"] in others and "failed" not in r]
    return [r for r in chosen if r["cell"]["property"] == "prop_2"]


def _refiners(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        measured, report = record["measured"], record["report"]
        story = report["screening"]
        rows.append(
            [
                _network(record),
                record["cell"]["refiner"],
                outcome(record),
                str(story["pieces"][-1]) if story else "1",
                _fine(1 - story["proved"][-1]) if story else "100.00",
                _fine(measured["touched"]),
                _number(measured.get("largest"), 3),
                percent(report["metrics"]["fidelity"]),
                percent(measured.get("order")),
                _number(report["seconds"]["screening"]),
                _number(seconds(record)),
            ]
        )
    head = ("network", "refiner", "outcome", "pieces", "open, %", "touched, %", "largest")
    head += ("fidelity", "ranking kept", "cutting, s", "repair, s")
    return "\n" + table(head, rows)
