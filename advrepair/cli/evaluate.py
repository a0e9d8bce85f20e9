"""``advrepair evaluate``: attack the repaired network of a run folder on unseen inputs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from advrepair.cli.stopping import at_work

Text = str | None


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Text, _flag("NPZ", "x_test and y_test. Left out: the run's data.")] = None,
    attack: Annotated[Text, _flag("NAME", "Attacks unseen inputs: autoattack, pgd.")] = None,
    epsilon: Annotated[
        Text, _flag("NUMBER", "Radius on unseen inputs. Left out: that of the balls.")
    ] = None,
    limit: Annotated[
        Text, _flag("INTEGER", "Unseen inputs attacked, and regions, at most.")
    ] = None,
    seed: Annotated[Text, _flag("INTEGER", "Seed of everything random.")] = None,
    device: Annotated[Text, _flag("NAME", "Where it is computed: cpu or cuda.")] = None,
    preset: Annotated[Text, _flag("NAME", "paper: AutoAttack in 10 steps, a weak one.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.OPTION=VALUE", help="Any option of the attack; repeatable."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON and nothing else.")
    ] = False,
) -> None:
    """Attack the deployed function where nothing is proved, and put it into the report.

    An evaluation that was interrupted goes on where it stopped.
    """
    from advrepair.cli import show
    from advrepair.cli.progress import progress as follow
    from advrepair.core.config import parse_setting
    from advrepair.core.evaluating_again import evaluate as evaluate_folder
    from advrepair.core.registry import Registry

    given = {
        "problem": {"data": data},
        "plan": {"evaluation_attack": attack},
        "evaluation": {"epsilon": epsilon, "limit": limit},
        "run": {"seed": seed, "device": device},
    }
    layers: list[Any] = [_preset(preset or "default")]
    layers.append({s: {n: v for n, v in o.items() if v is not None} for s, o in given.items()})
    layers.extend(parse_setting(text) for text in settings or [])
    registry = Registry.load()
    from advrepair import html

    with at_work(folder, "give the same command again"):
        with follow(silent=as_json) as progress:
            report = evaluate_folder(folder, layers, registry, progress)
        if as_json:
            print(json.dumps(report, indent=2))
        else:
            show.print_report(report, show.console())
        html.write(folder)


def _preset(name: str) -> Any:
    from advrepair.core.errors import UsageError
    from advrepair.core.sections import EVALUATION_PRESETS

    if name not in EVALUATION_PRESETS:
        raise UsageError(f"preset is {name!r}: choose one of {', '.join(EVALUATION_PRESETS)}")
    return EVALUATION_PRESETS[name]
