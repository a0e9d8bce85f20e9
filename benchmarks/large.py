"""Large networks: what patches behind the convolutions and caps bring, and what they cost.

``ADVREPAIR_DATA=... python -m benchmarks.large --model resnet18 --weights model_test.pt --out
FOLDER [--radii 4/255] [--counts 50,100] [--ways cap,sampled,proved,paper] [--limit 100] [--page]``

Images are the lossless ones of CIFAR-10, radii are in pixels. Every cell is one ``advrepair run``,
one ``advrepair evaluate``, which ``--limit 0`` leaves out, and one ``advrepair check``, each in a
process of its own, as a user would start it; what they say is kept in FOLDER, and a cell that is
there is not computed again. ``--page`` prints the table of all cells in FOLDER.

Ways: ``cap``, training.objective=cap; ``sampled``, boxes of sampled features; ``proved``, boxes of
proved features; ``paper``, boxes of samples with the paper's patches, loss, steps and allocation
by features, its sign put right. The others act in their balls only.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from advrepair.core.files import read_json, write_json

_WAYS = {
    "cap": ["--set", "training.objective=cap"],
    "sampled": ["--at", "auto", "--set", "patch.boxes=sampled"],
    "proved": ["--at", "auto"],
    "paper": [
        *("--preset", "paper", "--at", "auto", "--set", "patch.boxes=sampled"),
        *("--set", "training.clamp=false", "--allocator", "feature-cosine"),
    ],
}
_STATES = ("certified", "empirical", "falsified", "unknown")
_RATES = ("RSR", "RGR", "DD", "DSR", "DGSR-query", "DGSR-oracle")
Record = dict[str, Any]


def commands(
    given: argparse.Namespace, radius: str, count: int, way: str, data: str
) -> list[list[str]]:
    """The commands of a cell, without the folder of the run."""
    factory = f"benchmarks.cifar_models:{given.model}"
    files = [str(given.weights), "--factory", factory]
    files += ["--data", f"{data}/cifar10/cifar10_lossless.npz"]
    asked = ["--epsilon", radius, "--count", str(count)]
    asked += [] if way == "paper" else ["--allocator", "none"]
    asked += ["--set", f"evaluation.samples={given.samples}"]
    evaluate = ["advrepair", "evaluate", "--limit", str(given.limit)]
    run = ["advrepair", "run", *files, *asked, *_WAYS[way], "--out"]
    return [run, *[evaluate] * bool(given.limit), ["advrepair", "check"]]


def compute(given: argparse.Namespace, radius: str, count: int, way: str) -> Record:
    """Repair, evaluate, if any input is to be attacked, and check."""
    seconds = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        parts = commands(given, radius, count, way, os.environ["ADVREPAIR_DATA"])
        for arguments in parts:
            begin = time.perf_counter()
            command = [sys.executable, "-m", *arguments, str(folder), "--json"]
            done = subprocess.run(command, capture_output=True, text=True)
            seconds[arguments[1]] = time.perf_counter() - begin
            if done.returncode not in (0, 3):
                last = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
                raise RuntimeError(f"{' '.join(command)}: {last}")
        manifest, report = (read_json(folder / f"{n}.json") for n in ("manifest", "report"))
    shown = commands(given, radius, count, way, "$ADVREPAIR_DATA")
    return {
        "model": given.model, "radius": radius, "count": count, "way": way,
        "verdict": json.loads(done.stdout), "report": report,
        "manifest": {key: manifest[key] for key in ("hardware", "seed", "versions")},
        "seconds": seconds, "commands": [" ".join([*part, "FOLDER"]) for part in shown],
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def page(records: list[Record]) -> str:
    """The cells as a table."""
    heads = ["network", "radius", "n", "way", "states", *_RATES, "missed"]
    heads += ["run s", "repair s", "check s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for each in sorted(records, key=lambda e: (e["model"], e["radius"], e["way"], e["count"])):
        report, seconds = each["report"], each["report"]["seconds"]
        states = [f"{report['properties'][s]} {s}" for s in _STATES if report["properties"][s]]
        rates = [_percent(report["metrics"][name]) for name in _RATES]
        missed = (report["features"]["missed"] or {}).get("searched")
        repair = seconds["bounds"] + seconds["training"]
        cells = [*(each[name] for name in ("model", "radius", "count", "way")), ", ".join(states)]
        cells += [*rates, _percent(missed), f"{each['seconds']['run']:.0f}", f"{repair:.1f}"]
        cells += [f"{each['seconds']['check']:.1f} {each['verdict']['verdict']}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Compute the cells that are missing, or print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--radii", type=_listed, default=["4/255", "8/255"])
    parser.add_argument("--counts", type=_listed, default=["50", "100", "200", "500", "1000"])
    parser.add_argument("--ways", type=_listed, default=["cap", "sampled"])
    parser.add_argument(
        "--limit", type=int, default=100, help="unseen images attacked; 0: no evaluation"
    )
    parser.add_argument("--samples", type=int, default=1, help="examples for RGR to each for RSR")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page:
        print(page([read_json(path) for path in given.out.glob("*.json")]))
        return
    if given.weights is None or "ADVREPAIR_DATA" not in os.environ:
        parser.error("give --weights, and set ADVREPAIR_DATA to the folder that holds cifar10/")
    given.out.mkdir(parents=True, exist_ok=True)
    for radius, count, way in product(given.radii, given.counts, given.ways):
        name = f"{given.model}-{radius.replace('/', 'of')}-{count}-{way}.json"
        if not (given.out / name).exists():
            found = compute(given, radius, int(count), way)
            write_json(given.out / name, found)
            print(page([found]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
