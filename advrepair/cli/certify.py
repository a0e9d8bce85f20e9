"""``advrepair certify``: what is proved of inputs that were not repaired."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Text = str | None


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


def certify(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Text, _flag("NPZ", "x_test and y_test. Left out: the run's data.")] = None,
    epsilon: Annotated[
        str, _flag("NUMBERS", "Radii, separated by commas. Left out: four of them.")
    ] = "0.01,0.03,0.05,0.1",
    limit: Annotated[Text, _flag("INTEGER", "Unseen inputs, at most.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the shares as JSON and nothing else.")
    ] = False,
) -> None:
    """Prove for unseen inputs that every input near them gets their label.

    Of the deployed function and of the network alone; nothing is attacked and nothing written.
    """
    from advrepair.cli import show
    from advrepair.cli.progress import progress as follow
    from advrepair.core.guarantees import guarantees
    from advrepair.core.registry import Registry

    given = {"problem": {"data": data}, "evaluation": {"limit": limit}}
    layer: Any = {s: {n: v for n, v in o.items() if v is not None} for s, o in given.items()}
    with follow(silent=as_json) as progress:
        found = guarantees(folder, [layer], _radii(epsilon), Registry.load(), progress)
    if as_json:
        print(json.dumps([each.as_json() for each in found], indent=2))
    else:
        show.print_guarantees(found, show.console())


def _radii(text: str) -> list[float]:
    """Radii as written: ``0.05,8/255``."""
    from advrepair.core.errors import UsageError

    found = []
    for part in text.split(","):
        try:
            above, _, below = part.partition("/")
            value = float(above) / (float(below) if below else 1.0)
        except (ValueError, ZeroDivisionError):
            value = 0.0
        if not 0 < value < float("inf"):
            raise UsageError(f"--epsilon has {part.strip()!r}: write radii above 0, as 0.05,8/255")
        found.append(value)
    return found
