"""``advrepair check``: the independent checker on a run folder."""

import json
from pathlib import Path
from typing import Annotated

import typer

from advrepair.core.errors import UsageError


def check(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as JSON and nothing else.")
    ] = False,
) -> None:
    """Check a certificate with a program that shares no code with the repair.

    Exits with 0 if it is VALID, with 1 if it is INVALID or INCOMPLETE.
    """
    from advrepair import checker

    try:
        verdict = checker.check(folder)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}: name a complete run folder"
        ) from None
    print(json.dumps(verdict.as_json, indent=2) if as_json else verdict.line)
    if verdict.word != "VALID":
        raise typer.Exit(1)
