"""``advrepair verify``: does a property hold for a network as it is?"""

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advrepair.core.errors import UsageError

if TYPE_CHECKING:
    from advrepair.core.verifying_files import Files, Verified

Text = str | None

VIOLATED, UNKNOWN = 1, 5


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


def verify(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="ONNX or .nnet file, safetensors/torch weights with --factory, or a run folder.",
        ),
    ],
    properties: Annotated[
        list[str], typer.Argument(metavar="PROPERTIES...", help="VNN-LIB files of what must hold.")
    ],
    verifier: Annotated[Text, _flag("NAME", "Rigorous verifier; zonotope.")] = None,
    level: Annotated[
        Text,
        _flag("NAME", "Arithmetic: deployed, real, deployed-float32, deployed-float64."),
    ] = None,
    pieces: Annotated[
        int, typer.Option(metavar="INTEGER", min=1, help="Pieces of each region, at most.")
    ] = 1_000_000,
    timeout: Annotated[
        float | None, _flag("SECONDS", "Time for each file, at most. Left out: no limit.")
    ] = None,
    seed: Annotated[Text, _flag("INTEGER", "Seed of everything random.")] = None,
    device: Annotated[Text, _flag("NAME", "Where it is computed: cpu or cuda.")] = None,
    factory: Annotated[
        Text, _flag("PACKAGE.MODULE:FUNCTION", "Builds the module of the weights.")
    ] = None,
    input_range: Annotated[
        Text, _flag("LOW,HIGH", "Refuse regions that leave this range of inputs.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.OPTION=VALUE",
            help="Any option of the verifier or the attack; repeatable.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answers as JSON and nothing else.")
    ] = False,
    vnncomp: Annotated[
        bool, typer.Option("--vnncomp", help="Print unsat, sat, unknown or timeout, as VNN-COMP.")
    ] = False,
) -> None:
    """Say of each region of a property whether it holds, is violated, or is unknown.

    Exits with 0 if all hold, with 1 if one is violated, else with 5 if one is unknown.
    """
    if as_json and vnncomp:
        raise UsageError("--json and --vnncomp exclude each other: choose one")
    if vnncomp and len(properties) > 1:
        raise UsageError("--vnncomp takes one property file: call it once for each")
    if timeout is not None and not 0 < timeout < math.inf:
        raise UsageError(f"--timeout is {timeout:g}: write a number of seconds above 0")
    problem = {
        "network": network,
        "property": properties,
        "factory": factory,
        "input_range": input_range,
    }
    given: dict[str, dict[str, Any]] = {
        "problem": problem,
        "plan": {"certifier": verifier},
        "certification": {"level": level},
        "run": {"seed": seed, "device": device},
    }
    layer = {s: {n: v for n, v in o.items() if v is not None} for s, o in given.items()}
    _run(layer, settings or [], pieces, timeout, as_json, vnncomp)


def _run(
    layer: dict[str, dict[str, Any]],
    settings: list[str],
    pieces: int,
    timeout: float | None,
    as_json: bool,
    vnncomp: bool,
) -> None:
    """Read everything, then answer region after region; ends with the exit code."""
    from advrepair.cli.progress import progress as follow
    from advrepair.core.config import parse_setting, resolve
    from advrepair.core.memory import keep_freed_memory
    from advrepair.core.registry import Registry
    from advrepair.core.verifying import Outcome
    from advrepair.core.verifying_files import Files

    registry = Registry.load()
    plan = resolve(registry, [layer, *map(parse_setting, settings)])
    files = Files.read(plan, registry, pieces)
    level, quiet = files.verification.bounder.rounding.level, as_json or vnncomp
    if not quiet:
        _echo(plan.problem.network, f"{plan.certifier.name}, {level}", files)
    keep_freed_memory()
    done: list[Verified] = []
    with follow(silent=quiet) as progress:
        for each in files.answers(timeout, progress):
            done.append(each)
            if not quiet:
                _show(each)
            elif vnncomp and each.answer.outcome is Outcome.VIOLATED:
                break
    found = [each.answer.outcome for each in done]
    if as_json:
        whole = {"network": plan.problem.network, "level": level, "verifier": plan.certifier.name}
        notes = {path: list(notes) for path, (_, notes) in files.asked.items()}
        print(json.dumps({**whole, "notes": notes, "answers": [d.as_json for d in done]}, indent=2))
    elif vnncomp:
        print(_in_words_of_vnncomp(done))
    elif len(found) > 1:
        print(", ".join(f"{found.count(word)} {word}" for word in Outcome if word in found))
    if any(word is not Outcome.HOLDS for word in found):
        raise typer.Exit(VIOLATED if Outcome.VIOLATED in found else UNKNOWN)


def _echo(network: str, how: str, files: "Files") -> None:
    """What is asked, before the first answer: a demand that is negated is easily misread."""
    from advrepair.core.properties import in_words

    print(f"{network} ({how})", flush=True)
    for demanded, notes in files.asked.values():
        for i, name in enumerate(demanded.names):
            print(f"{name}: you ask that {in_words(demanded, i)}", flush=True)
        for note in notes:
            print(f"note: {note}", flush=True)


def _show(each: "Verified") -> None:
    """The answer about one region."""
    from advrepair.cli.show import seconds
    from advrepair.core.refuting import thin

    found = each.answer
    cost = f"{found.pieces} pieces, {seconds(found.seconds)}"
    if found.outcome == "holds":
        detail = f"holds: proved for every input of the region, margin {found.margin:.3g}"
    elif found.outcome == "violated":
        detail = f"violated: by this input, run alone, with margin {found.margin:.6g}"
    else:
        detail = f"unknown: {found.reason}; {_percent(found.share)} of the volume is proved"
    print(f"{each.asked.names[0]}: {detail} ({cost})", flush=True)
    if found.x is not None and found.y is not None:
        for name, values in (("x", found.x.flatten().tolist()), ("y", found.y.tolist())):
            print(f"  {name}: {', '.join(map(repr, values))}", flush=True)
        beside = thin(each.asked.box)
        if beside:
            which = ", ".join(f"X_{i}" for i in beside)
            print(f"  no float lies inside the region in {which}: it is the float beside")


def _percent(share: float) -> str:
    """Per cent; what is not all is not shown as all."""
    return f"{min(100 * share, 99.99):.2f} %"


def _in_words_of_vnncomp(done: "list[Verified]") -> str:
    """The result of one file as VNN-COMP writes it, with the witness behind ``sat``."""
    from advrepair.core.verifying import Outcome, Reason

    for each in done:
        x, y = each.answer.x, each.answer.y
        if x is not None and y is not None:
            values = (("X", x.flatten().tolist()), ("Y", y.tolist()))
            lines = [f"({letter}_{i} {v!r})" for letter, vs in values for i, v in enumerate(vs)]
            return "sat\n(" + "\n".join(lines) + ")"
    if all(each.answer.outcome is Outcome.HOLDS for each in done):
        return "unsat"
    late = any(each.answer.reason is Reason.TIMEOUT for each in done)
    return "timeout" if late else "unknown"
