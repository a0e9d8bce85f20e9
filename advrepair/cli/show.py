"""What a terminal shows at the end: the table of a run, the listing of plugins.

Nothing here is wider than :data:`WIDTH`, in a terminal or a pipe.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from advrepair.core.options import Option
from advrepair.core.registry import Entry

if TYPE_CHECKING:
    from advrepair.core.guarantees import Guarantee

WIDTH = 100
RATES = ("RSR", "RGR", "DD")
ATTACKED = (
    "FDD",
    "fidelity",
    "DSR",
    "DGSR-query",
    "DGSR-certified",
    "DGSR-oracle",
)  # shown if measured
LEGEND = (
    "RSR: repaired examples now right; RGR: other adversarial examples in their balls now right; "
    "DD: accuracy lost on test data; -: not measured."
)
STAGES = (
    "screening", "attack", "bounds", "training", "certification", "branch and bound",
    "evaluation", "total",
)  # fmt: skip
RARE = ("screening", "branch and bound")  # shown where they took time
ATTACKED_LEGEND = (
    "Of the deployed function: FDD: decisions that changed on test data, or around the regions of "
    "property files; fidelity: decisions kept inside these, of those that were right; DSR: balls "
    "in which no attack succeeds; DGSR-query: unseen inputs that stay right under the worst "
    "attack; DGSR-certified: those whose whole ball is proved. DGSR-oracle: the paper's protocol, "
    "where the network is told the clean input. More: docs/metrics.md."
)


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout, or on the stream, of at most WIDTH columns."""
    made = Console(file=stream, highlight=False, emoji=False, markup=False)
    made.width = min(made.width, WIDTH) if made.is_terminal else WIDTH
    return made


def seconds(value: float) -> str:
    """A time for people: ``0.4 s``, ``12 s``, ``3 min 20 s``."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _bytes(value: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def print_guarantees(found: Sequence["Guarantee"], to: Console) -> None:
    """What is proved of unseen inputs, a row a radius."""
    table = Table(box=SIMPLE_HEAD, show_edge=True)
    table.add_column("radius", justify="right")
    for name in ("repaired", "unrepaired"):
        table.add_column(name, justify="right")
        table.add_column("95 %", justify="right")
    for each in found:
        cells = [f"{each.epsilon:g}"]
        for share in (each.repaired, each.unrepaired):
            low, high = share.interval or (None, None)
            cells += [_rate(share.value), f"{_rate(low)} to {_rate(high)}"]
        table.add_row(*cells)
    to.print(table)
    count = found[0].repaired.count if found else 0
    to.print(
        f"Of {count} unseen inputs: share that gets its label, with every input within the radius."
    )


def _rate(value: float | None) -> str:
    """Per cent; what is not all is not shown as all."""
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}"
    return "99.9 %" if shown == "100.0" and value < 1 else f"{shown} %"


def _headline(report: Mapping[str, Any]) -> str:
    problem, counts = report["problem"], report["properties"]
    certified, total = counts["certified"], counts["total"]
    line = f"{certified} of {total} properties certified ({problem['level']})"
    if report.get("demands"):
        line += "; their demands stand below"
    elif problem.get("epsilon") is not None and certified:
        which = "the" if certified == total else ("that" if certified == 1 else "those")
        centres = f"{certified} centre" + ("" if certified == 1 else "s")
        near = f"within {problem['epsilon']:g} of {which} {centres}"
        bounds = problem.get("input_range")
        within = f" and in [{bounds[0]:g}, {bounds[1]:g}]" if bounds else ""
        line += f"; every input {near}{within} keeps its label"
    rest = [
        f"{counts[key]} {key}" for key in ("empirical", "falsified", "unknown") if counts.get(key)
    ]
    return f"{line}; {', '.join(rest)}" if rest else line


def _rates(report: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the table: the rates of every run, and those of an attack that was made."""
    return (*RATES, *(each for each in ATTACKED if report["metrics"].get(each) is not None))


def _demands(report: Mapping[str, Any]) -> Iterable[str]:
    """What property files demand, and what became of it."""
    for each in report.get("demands") or ():
        before = "no counterexample before" if each["held"] else "violated before"
        alone = "" if each["patched"] else ", left alone"
        yield f"{each['name']}: {each['status']} ({before}{alone}): {each['demand']}"


def _rows(report: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    total, baseline = report["properties"]["total"], report.get("baseline", {})
    repair = {**report["metrics"], "certified": report["properties"]["certified"]}
    named = {
        "repair": repair,
        "constant-bias": baseline.get("constant-bias"),
        "unrepaired": baseline.get("none"),
    }
    for name, figures in named.items():
        figures = figures or {}
        certified = figures.get("certified")
        if isinstance(certified, float):  # a share of the properties
            certified = round(certified * total)
        shown = "-" if certified is None else f"{certified}/{total}"
        yield (name, shown, *(_rate(figures.get(rate)) for rate in _rates(report)))


def _facts(report: Mapping[str, Any]) -> Iterable[str]:
    patches, spent = report["patches"], report["seconds"]
    constant = report["properties"].get("constant", 0)
    yield (
        f"patches: {patches['count']} with {patches['parameters']} parameters, "
        f"{_bytes(patches['bytes'])}, {patches['ratio_to_network']:.3g} x the network; "
        f"constant for {constant} properties"
    )
    # A search that was not asked for took no time at all.
    order = [name for name in STAGES if name in spent]
    ran = {k: spent[k] for k in order if spent[k] is not None and (spent[k] or k not in RARE)}
    times = (f"{stage} {value:.1f}" for stage, value in ran.items())
    yield f"seconds: {', '.join(times)}"
    yield f"peak memory: {_bytes(report['peak_memory_bytes'])}"
    if asked := report.get("evaluation"):
        low, high = report["intervals"]["DGSR-query"]
        yield (
            f"attacked: {report['counts']['DGSR-query']} unseen inputs at radius "
            f"{asked['epsilon']:g} with {asked['attack']['name']}; 95 % interval of DGSR-query: "
            f"{_rate(low)} to {_rate(high)}"
        )
    yield from (f"flag: {each['name']}: {each['text']}" for each in report.get("flags", ()))
    yield from (f"note: {note}" for note in report.get("notes", ()))
    yield f"files: {report['folder']}"


def print_report(report: Mapping[str, Any], screen: Console) -> None:
    """The headline, the table with the trivial baseline, what it cost, what is not proved."""
    _say(screen, _headline(report))
    for line in _demands(report):
        _say(screen, line)
    columns = _rates(report)
    _table(screen, ("", "certified", *columns), _rows(report), right=True)
    _say(screen, LEGEND)
    if columns != RATES:
        _say(screen, ATTACKED_LEGEND)
    for line in _facts(report):
        _say(screen, line)


def print_comparison(whole: Mapping[str, Any], folder: Path, screen: Console) -> None:
    """The table of a comparison, why some cells are empty, and where it all lies."""
    from advrepair.core import comparison_table as table

    _say(screen, f"{table.headline(whole)}. {table.protocol(whole)}")
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(table.head(whole)):
        right, two_lines = index > 2, title.replace("-", "\n", 1).replace("certified", "cert.")
        shown.add_column(two_lines, justify="right" if right else "left", no_wrap=not right)
    for cells in table.lines(whole):
        shown.add_row(*(Text("100" if cell == "100.0" else cell) for cell in cells))
    screen.print(shown, width=min(screen.width, WIDTH))
    said = "; ".join(f"{column.title}: {column.definition}" for column in table.columns(whole))
    _say(screen, f"Per cent. {said}. More: docs/compare.md.")
    for note in table.notes(whole):
        _say(screen, f"note: {note}")
    _say(screen, f"files: {folder}")


def print_estimate(
    lines: Iterable[str], rows: Iterable[tuple[str, str, str]], screen: Console
) -> None:
    """What a run would take, stage by stage."""
    _table(screen, ("", "about", "operations, bytes moved"), rows, right=True)
    for line in lines:
        _say(screen, line)


def print_listing(entries: Iterable[Entry], screen: Console) -> None:
    """Components by kind, then what cannot be used, each with its reason."""
    entries = list(entries)
    usable = [entry for entry in entries if entry.problem is None]
    rows = [(each.kind, each.name, _origin(each), each.summary) for each in usable]
    _table(screen, ("kind", "name", "distribution", "summary"), rows)
    broken = [entry for entry in entries if entry.problem is not None]
    if broken:
        _say(screen, "Cannot be used:")
        for each in broken:
            _say(screen, f"  {each.kind} {each.name} ({_origin(each)}): {each.problem}")


def print_options(entry: Entry, screen: Console) -> None:
    """A component and its options."""
    _say(screen, f"{entry.name} ({entry.kind}, {_origin(entry)}): {entry.summary}")
    if entry.problem is not None:
        _say(screen, f"cannot be used: {entry.problem}")
    elif not entry.options:
        _say(screen, "no options")
    else:
        _table(screen, ("option", "type", "default", "help"), map(_option, entry.options))


def _origin(entry: Entry) -> str:
    return f"{entry.distribution} {entry.version}".strip() or "-"


def _option(each: Option) -> tuple[str, ...]:
    limits = f" ({each.limits})" if each.limits else ""
    return each.name, each.type, json.dumps(each.default, ensure_ascii=False), each.help + limits


def _say(screen: Console, line: str) -> None:
    screen.print(Text(line, overflow="fold"), width=min(screen.width, WIDTH))


def _table(
    screen: Console, head: Iterable[str], rows: Iterable[tuple[str, ...]], right: bool = False
) -> None:
    """A table whose long cells fold; right: all but the first column to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(head):
        table.add_column(title, overflow="fold", justify="right" if right and index else "left")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    screen.print(table, width=min(screen.width, WIDTH))
