"""``advrepair plugins``: what is installed, with its options, and what is broken and why."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advrepair.core.errors import UsageError

if TYPE_CHECKING:
    from advrepair.core.options import Option
    from advrepair.core.registry import Entry


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A component, to see its options; or a section of the configuration: "
            "problem, plan, patch, screening, training, certification, evaluation, comparison, run."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, options included, and nothing else.")
    ] = False,
) -> None:
    """List the components at hand, or the options of one of them."""
    from advrepair.cli import show
    from advrepair.core.registry import Registry

    entries = Registry.load().listing()
    if name is not None:
        entries = _named(name, entries)
    if as_json:
        print(json.dumps([_as_json(entry) for entry in entries], indent=2))
    elif name is None:
        show.print_listing(entries, show.console())
    else:
        for entry in entries:
            show.print_options(entry, show.console())


def _named(name: str, entries: "list[Entry]") -> "list[Entry]":
    """Entries of that name; a section of the core is shown like a component."""
    from advrepair.core.options import describe, suggestion
    from advrepair.core.registry import Entry
    from advrepair.core.sections import SECTIONS

    if name in SECTIONS:
        cls = SECTIONS[name]
        return [Entry("section", name, "advrepair", "", cls.__doc__ or "", describe(cls))]
    found = [entry for entry in entries if entry.name == name]
    if not found:
        known = [*SECTIONS, *(entry.name for entry in entries)]
        raise UsageError(f"unknown component {name!r}: {suggestion(name, known)}")
    return found


def _as_json(entry: "Entry") -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "summary": entry.summary,
        "options": [_option_as_json(option) for option in entry.options],
        "problem": entry.problem,
    }


def _option_as_json(option: "Option") -> dict[str, Any]:
    default = option.default
    return {
        "name": option.name,
        "type": option.type,
        "default": list(default) if isinstance(default, tuple) else default,
        "help": option.help,
        "limits": option.limits,
    }
