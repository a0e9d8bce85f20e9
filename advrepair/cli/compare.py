"""``advrepair compare``: repair methods on one problem, and one table."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advrepair.cli.stopping import at_work
from advrepair.core.errors import UsageError

if TYPE_CHECKING:
    from advrepair.core.comparing import Comparison

Text = str | None


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


def compare(
    network: Annotated[
        Text,
        typer.Argument(
            metavar="NETWORK",
            help="ONNX file, or safetensors/torch weights with --factory. "
            "Left out: the bundled digits demo.",
        ),
    ] = None,
    data: Annotated[Text, _flag("NPZ", "Inputs x and labels y.")] = None,
    property_: Annotated[
        list[str] | None,
        typer.Option("--property", metavar="FILE", help="VNN-LIB file of what must hold."),
    ] = None,
    decision: Annotated[
        Text, _flag("RULE", "The output decided for: argmax, or argmin as in ACAS Xu.")
    ] = None,
    factory: Annotated[
        Text, _flag("PACKAGE.MODULE:FUNCTION", "Builds the module of the weights.")
    ] = None,
    epsilon: Annotated[Text, _flag("NUMBER", "Radius in input units: 0.1 or 8/255.")] = None,
    count: Annotated[Text, _flag("INTEGER", "How many counterexamples to repair.")] = None,
    input_range: Annotated[Text, _flag("LOW,HIGH", "Range of the inputs; [] for none.")] = None,
    methods: Annotated[
        Text, _flag("NAMES", "Separated by commas; all: every installed one.")
    ] = None,
    seconds: Annotated[Text, _flag("NUMBER", "For one repair, at most.")] = None,
    memory: Annotated[Text, _flag("GIB", "For the process of one method, at most.")] = None,
    attack: Annotated[Text, _flag("NAME", "Searches for counterexamples.")] = None,
    evaluation_attack: Annotated[Text, _flag("NAME", "Attacks unseen inputs.")] = None,
    evaluate: Annotated[
        Text, _flag("SCOPE", "full, or quick: attack nothing after the repair.")
    ] = None,
    limit: Annotated[
        Text, _flag("INTEGER", "Unseen inputs attacked, and regions, at most.")
    ] = None,
    seed: Annotated[Text, _flag("INTEGER", "Seed of everything random.")] = None,
    device: Annotated[Text, _flag("NAME", "Where it is computed: cpu or cuda.")] = None,
    config: Annotated[Text, _flag("FILE", "TOML, such as compare.toml or run.toml.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.OPTION=VALUE",
            help="Any option of the core, a component or a method; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write. Left out: runs/compare-<network>."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in the folder; more methods may be named.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")
    ] = False,
) -> None:
    """Repair a network with every method, each in a process of its own, and compare.

    A method that fails shows why, and the others go on.
    """
    if force and resume:
        raise UsageError("--force and --resume exclude each other: choose one")
    named = None if methods is None else [each.strip() for each in methods.split(",")]
    flags: dict[str, dict[str, Any]] = {
        "problem": {
            "network": network,
            "factory": factory,
            "data": data,
            "property": property_,
            "decision": decision,
            "epsilon": epsilon,
            "count": count,
            "input_range": input_range,
        },
        "plan": {"attack": attack, "evaluation_attack": evaluation_attack},
        "evaluation": {"scope": evaluate, "limit": limit},
        "comparison": {"methods": named, "seconds": seconds, "memory": memory},
        "run": {"seed": seed, "device": device},
    }
    layer = {s: {n: v for n, v in o.items() if v is not None} for s, o in flags.items()}
    whole = _resolved(config, {s: o for s, o in layer.items() if o}, settings or [], out, resume)
    with at_work(whole.folder, "go on with --resume"):
        _compare(whole, force, resume, as_json)


def _resolved(
    config: Text, flags: dict[str, Any], settings: list[str], out: Path | None, resume: bool
) -> "Comparison":
    """What the user said; beneath it, on a resume, what the folder was begun with."""
    from advrepair.core.comparing import DEFAULTS, TOML, Comparison
    from advrepair.core.config import parse_setting, read_toml
    from advrepair.core.registry import Registry
    from advrepair.core.sections import DEMO

    layers: list[Any] = [DEFAULTS] if config is None else [DEFAULTS, read_toml(config)]
    layers += [flags, *map(parse_setting, settings)]
    named = [each.get("problem", {}).get("network") for each in layers]
    network = next((name for name in reversed(named) if name), DEMO)
    folder = out or Path("runs") / f"compare-{Path(str(network)).stem}"
    stored = folder / TOML
    if resume and stored.is_file():
        layers.insert(1, read_toml(stored))
    elif resume and out is not None and not flags and not settings and config is None:
        raise UsageError(f"{folder} holds nothing to go on with: say again what is to be compared")
    return Comparison.resolved(Registry.load(), layers, folder)


def _compare(whole: "Comparison", force: bool, resume: bool, as_json: bool) -> None:
    """Compare, and print and write what came of it."""
    from advrepair import html
    from advrepair.cli import show
    from advrepair.cli.progress import progress as follow

    stream = sys.stderr if as_json else sys.stdout
    with follow(silent=as_json) as progress:
        found = whole.run(
            progress, force, resume, lambda line: print(line, file=stream, flush=True)
        )
    html.write_comparison(whole.folder, found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show.print_comparison(found, whole.folder, show.console())
