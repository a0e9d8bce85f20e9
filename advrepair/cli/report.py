"""``advrepair report``: the page of a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from advrepair.cli.stopping import at_work


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write. Left out: report.html in the folder."),
    ] = None,
) -> None:
    """Write what a run folder holds as one HTML page that needs nothing but itself."""
    from advrepair import html

    with at_work(folder, "try again"):
        print(html.write(folder, out))
