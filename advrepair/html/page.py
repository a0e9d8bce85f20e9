"""The page: everything that is said in it, and the template that says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from advrepair.core.types import Status
from advrepair.html import figures, gallery, metrics, routing, words
from advrepair.html.folder import RunFolder
from advrepair.html.outside import outside

ROWS = 1000  # of the table of properties


def render(run: RunFolder) -> str:
    """The page as text; the same folder gives the same text."""
    return filled("page.html", _context(run))


def filled(template: str, context: Mapping[str, Any]) -> str:
    """A template with its words; what is in them is text, never markup."""
    environment = Environment(
        loader=PackageLoader("advrepair.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def _context(run: RunFolder) -> dict[str, Any]:
    report, certificate = run.report, run.certificate
    charts, spreads = figures.margins(run)
    flow, flow_table, tried = routing.flows(run) or (None, [], "")
    rows = metrics.rows(report)
    return {
        "words": words,
        "network": str(report["network"].get("name", "a network")),
        "headline": words.headline(report["problem"], report["properties"], certificate["level"]),
        "level": words.level(certificate["level"]),
        "problem": report["problem"],
        "counts": report["properties"],
        "status": figures.status(report["properties"]),
        "sentences": {each.value: each.sentence for each in Status},
        "rows": rows,
        "has_intervals": any(row.interval != words.DASH for row in rows),
        "has_counts": any(row.count != words.DASH for row in rows),
        "outside": outside(report),
        "flags": [_flag(flag) for flag in report["flags"]],
        "notes": [str(note) for note in report["notes"]],
        "demands": report.get("demands") or [],
        "screening": figures.screening(report.get("screening")),
        "margins": charts,
        "spreads": spreads,
        "training": figures.training(run),
        "gallery": gallery.gallery(run),
        "flow": flow,
        "flow_table": flow_table,
        "ways": routing.WAYS,
        "routing": report["routing"],
        "tried": tried,
        "certificate": certificate,
        "certifier": _certifier(certificate["certifier"]),
        "properties": run.properties[:ROWS],
        "hidden": len(run.properties) - ROWS,
        "configuration": run.configuration,
        "times": figures.times(report["seconds"]),
        "size": _size(report),
        "machine": _machine(run.manifest, certificate),
    }


def _flag(flag: object) -> tuple[str, str]:
    """Name and text of a flag, whatever it was written as."""
    if isinstance(flag, Mapping):
        return str(flag.get("name", "flag")), str(flag.get("text", ""))
    return "flag", str(flag)


def _certifier(source: Mapping[str, Any]) -> str:
    """``deeppoly (advrepair 0.1.0; lower_slope = area)``."""
    options = source.get("options")
    given = options if isinstance(options, Mapping) else {}
    origin = f"{source.get('distribution', '')} {source.get('version') or ''}".strip()
    more = "; ".join([origin or "of unknown origin", *(f"{k} = {v}" for k, v in given.items())])
    return f"{source.get('name', '')} ({more})"


def _size(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was added, and what it took."""
    patches, facts = report["patches"], []
    number = {key: words.number(value) for key, value in patches.items()}
    if (parameters := number.get("parameters")) is not None:
        facts.append(("numbers in the patches", f"{parameters:,.0f}"))
    if (count := number.get("count")) is not None:
        facts.insert(0, ("patches", f"{count:,.0f}"))
    if (constant := report["properties"].get("constant")) is not None:
        facts.append(("properties served by a constant patch", f"{constant:,}"))
    if (bytes_ := number.get("bytes")) is not None:
        facts.append(("size of the patches", words.size(bytes_)))
    if (ratio := number.get("ratio_to_network")) is not None:
        facts.append(("patches to network, in numbers", f"{ratio:.3g} to 1"))
    if (peak := words.number(report.get("peak_memory_bytes"))) is not None:
        facts.append(("peak memory", words.size(peak)))
    return facts


def _machine(
    manifest: Mapping[str, Any], certificate: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Versions, hardware, inputs: what the run ran on, as far as it is known."""
    tables = {
        "Versions": manifest.get("versions") or certificate["versions"],
        "Hardware": manifest.get("hardware"),
        "SHA-256 of what was read": manifest.get("inputs"),
    }
    return [
        (title, [(str(key), str(value)) for key, value in sorted(table.items())])
        for title, table in tables.items()
        if isinstance(table, Mapping)
    ]
