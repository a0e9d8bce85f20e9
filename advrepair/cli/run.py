"""``advrepair run``: repair, certify, evaluate, write."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advrepair.cli.stopping import at_work
from advrepair.core.errors import UsageError

if TYPE_CHECKING:
    from advrepair.core.config import Configuration
    from advrepair.core.registry import Registry

Text = str | None


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


def run(
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
    at: Annotated[Text, _flag("LAYER", "The layer whose result patches see, or auto.")] = None,
    indicator: Annotated[Text, _flag("NAME", "Says which patch serves which property.")] = None,
    verifier: Annotated[Text, _flag("NAME", "Bounds the margins that training raises.")] = None,
    certifier: Annotated[Text, _flag("NAME", "Rigorous verifier of the certificate.")] = None,
    front: Annotated[Text, _flag("NAME", "Rigorous verifier of the layers before --at.")] = None,
    allocator: Annotated[Text, _flag("NAME", "Patches of inputs outside the balls.")] = None,
    refiner: Annotated[Text, _flag("NAME", "Says where to split what is not proved.")] = None,
    attack: Annotated[Text, _flag("NAME", "Searches for counterexamples.")] = None,
    evaluation_attack: Annotated[Text, _flag("NAME", "Attacks unseen inputs.")] = None,
    executor: Annotated[Text, _flag("NAME", "Works on the shards of a repair.")] = None,
    evaluate: Annotated[
        Text, _flag("SCOPE", "quick, or full: attack the result on unseen inputs too.")
    ] = None,
    preset: Annotated[Text, _flag("NAME", "Values beneath all others: default, paper.")] = None,
    level: Annotated[
        Text,
        _flag("NAME", "Arithmetic certified: deployed, real, deployed-float32, deployed-float64."),
    ] = None,
    seed: Annotated[Text, _flag("INTEGER", "Seed of everything random.")] = None,
    device: Annotated[Text, _flag("NAME", "Where it is computed: cpu or cuda.")] = None,
    config: Annotated[Text, _flag("FILE", "TOML, such as the run.toml of a run.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.OPTION=VALUE",
            help="Any option of the core or a component; repeatable. "
            "'advrepair plugins NAME' lists them.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write. Left out: runs/<network>."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run in the folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON and nothing else.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what the run would take, write nothing, and stop."),
    ] = False,
    require_certified: Annotated[
        bool,
        typer.Option("--require-certified", help="Exit with 1 unless every property is proved."),
    ] = False,
) -> None:
    """Repair a network, certify and evaluate the repair, and write it all to a folder.

    Flags win over --config, and --set wins over flags.
    """
    if force and resume:
        raise UsageError("--force and --resume exclude each other: choose one")
    flags: dict[str, dict[str, Text | list[str]]] = {
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
        "plan": {
            "indicator": indicator,
            "verifier": verifier,
            "certifier": certifier,
            "front": front,
            "allocator": allocator,
            "refiner": refiner,
            "attack": attack,
            "evaluation_attack": evaluation_attack,
            "executor": executor,
        },
        "patch": {"at": at},
        "evaluation": {"scope": evaluate},
        "certification": {"level": level},
        "run": {"preset": preset, "seed": seed, "device": device},
    }
    configuration, registry, folder = _resolved(config, flags, settings or [], out, resume)
    if dry_run:
        _predict(configuration, folder, as_json)
        return
    with at_work(folder, "go on with --resume"):
        report = _repair(configuration, registry, folder, force, resume, as_json)
    if require_certified and not _all_certified(report):
        print("error: not every property is certified (--require-certified)", file=sys.stderr)
        raise typer.Exit(1)


def _resolved(
    config: Text,
    flags: dict[str, dict[str, Text | list[str]]],
    settings: list[str],
    out: Path | None,
    resume: bool,
) -> tuple["Configuration", "Registry", Path]:
    """What the user said, as a configuration and a folder."""
    from advrepair.cli.resuming import configured
    from advrepair.core.config import parse_setting, read_toml
    from advrepair.core.registry import Registry

    layers = [] if config is None else [read_toml(config)]
    layers.append(_given(flags))
    layers.extend(parse_setting(text) for text in settings)
    registry = Registry.load()
    configuration, folder = configured(registry, layers, out, resume)
    return configuration, registry, folder


def _predict(configuration: "Configuration", folder: Path, as_json: bool) -> None:
    """Print what a run would take."""
    from advrepair.cli import show
    from advrepair.core import pipeline

    predicted = pipeline.predict(configuration, folder)
    if as_json:
        print(json.dumps(predicted.as_json(), indent=2))
    else:
        show.print_estimate(predicted.lines(), predicted.table(), show.console())


def _repair(
    configuration: "Configuration",
    registry: "Registry",
    folder: Path,
    force: bool,
    resume: bool,
    as_json: bool,
) -> dict[str, Any]:
    """Run what is configured, and print the result."""
    from advrepair import html
    from advrepair.cli import show
    from advrepair.cli.progress import progress as follow
    from advrepair.core import pipeline
    from advrepair.core.memory import keep_freed_memory

    keep_freed_memory()
    with follow(silent=as_json) as progress:
        say = _told(as_json)
        report = pipeline.run(
            configuration, registry, folder, progress, force=force, resume=resume, say=say
        )
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        show.print_report(report, show.console())
    html.write(folder)  # last, so that nothing about it can hide what the run found
    return report


def _told(as_json: bool) -> Callable[[str], None]:
    """Says what is asked, before any long work; to stderr, if stdout is for JSON alone."""
    stream = sys.stderr if as_json else sys.stdout
    return lambda line: print(line, file=stream, flush=True)


def _given(flags: dict[str, dict[str, Text | list[str]]]) -> dict[str, dict[str, object]]:
    """The layer of those flags that were really given."""
    layer: dict[str, dict[str, object]] = {}
    for section, options in flags.items():
        given = {name: value for name, value in options.items() if value is not None}
        if given:
            layer[section] = dict(given)
    return layer


def _all_certified(report: dict[str, Any]) -> bool:
    properties = report["properties"]
    return bool(properties["certified"] == properties["total"])
