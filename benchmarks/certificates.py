"""What certificates of real networks cost, and how much of a margin is rounding.

``python -m benchmarks.certificates [--data FOLDER] [--out FOLDER] [--json]``

Repairs 50 balls of three MNIST networks at three radii, each by the command line in a
process of its own, checks the folder with the independent checker in another, and prints a
Markdown table. FOLDER holds ``mnist/mnist.npz`` and ``mnist/nets``; left out, it is that of
the environment variable ADVREPAIR_DATA.

The rounding bound is what the account of rounding subtracts: of the same stored patches, the
margin over the whole box at level ``real`` less that at ``deployed-float32``, the largest
over the properties. Beside it stands what was observed: the largest difference between the
margins that float32 and float64 compute, over points sampled in the boxes.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import advrepair
from advrepair.core.bounding import Bounder
from advrepair.core.memory import keep_freed_memory
from advrepair.core.patching import RepairedNetwork
from advrepair.core.rounding import Level, Rounding
from advrepair.core.types import PropertySet
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from benchmarks.exploits import LEVEL, demands, margins, points, whole_boxes

NETWORKS = ("fnn_small", "fnn_big", "cnn")
RADII = (0.05, 0.1, 0.3)
COLUMNS = {
    "run": "run",
    "certified": "certified",
    "pieces": "pieces",
    "margin": "smallest margin",
    "margin_float32": "whole box, float32",
    "margin_real": "whole box, real",
    "rounding_bound": "rounding bound",
    "observed": "observed",
    "share": "observed / bound",
    "bytes": "certificate, bytes",
    "repair_seconds": "repair, s",
    "check_seconds": "check, s",
    "verdict": "verdict",
}


def timed(arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a Python module in a process of its own; the result, and seconds."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    return done, time.perf_counter() - begin


def repair(data: Path, network: str, epsilon: float, count: int, out: Path) -> float:
    """Repair by the command line; seconds. Raises RuntimeError with its last line if it fails."""
    mnist = data / "mnist"
    arguments = ["advrepair", "run", str(mnist / "nets" / f"{network}.onnx"), "--force"]
    arguments += ["--data", str(mnist / "mnist.npz"), "--epsilon", str(epsilon)]
    done, seconds = timed([*arguments, "--count", str(count), "--out", str(out), "--json"])
    if done.returncode:
        raise RuntimeError(f"{out.name}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return seconds


def check(out: Path) -> tuple[str, float]:
    """The checker's verdict, and seconds."""
    done, seconds = timed(["advrepair.checker", str(out), "--json"])
    try:
        return str(json.loads(done.stdout)["verdict"]), seconds
    except (ValueError, KeyError):
        return f"exit {done.returncode}", seconds


def box_margins(model: RepairedNetwork, properties: PropertySet, level: Level) -> Tensor:
    """Certified margins over the whole boxes with the stored patches, [P]; no splits."""
    verifier, rounding = DeepPoly(), Rounding(level)
    bounder = Bounder(model.base, model.bank.template, verifier, verifier, rounding, 2**31)
    worklist = whole_boxes(properties, model.assignment.patch, bounder)
    return margins(model.bank, worklist, bounder)


def deviations(model: RepairedNetwork, properties: PropertySet, rounds: int) -> Tensor:
    """Largest difference seen of the margin in float32 and in float64, [P].

    The error of float64 itself is some 2^-29 of that.
    """
    wide, noise = copy.deepcopy(model).double(), torch.Generator().manual_seed(0)
    largest = torch.zeros(len(properties), dtype=torch.float64)
    for _ in range(rounds):
        x = points(properties, model, noise)
        with torch.no_grad():
            one, other = properties.margin(model(x)), properties.margin(wide(x.double()))
        largest = torch.maximum(largest, (one - other).abs())
    return largest


def account(folder: Path, rounds: int) -> dict[str, Any]:
    """Margins at both levels, what lies between them, and what was observed."""
    model, (properties, _) = advrepair.load(folder), demands(folder)
    real, deployed = (box_margins(model, properties, level) for level in ("real", LEVEL))
    bound, seen = real - deployed, deviations(model, properties, rounds)
    return {
        "margin_float32": float(deployed.min()),
        "margin_real": float(real.min()),
        "rounding_bound": float(bound.max()),
        "observed": float(seen.max()),
        "share": float((seen / bound).max()),
        "points": rounds * len(properties),
    }


def measure(
    data: Path, network: str, epsilon: float, count: int, out: Path, rounds: int
) -> dict[str, Any]:
    """One row of the table."""
    repair_seconds = repair(data, network, epsilon, count, out)
    verdict, check_seconds = check(out)
    rows = json.loads((out / "certificate.json").read_text())["properties"]
    margins = [row["margin"] for row in rows if row["status"] == "certified"]
    files = [out / f"certificate.{kind}" for kind in ("json", "safetensors")]
    inside = json.loads((out / "report.json").read_text())["seconds"]
    return {
        "run": f"{network} {epsilon}",
        "certified": f"{len(margins)}/{len(rows)}",
        "pieces": sum(row["pieces"] for row in rows),
        "margin": min(margins, default=None),
        **account(out, rounds),
        "bytes": sum(file.stat().st_size for file in files),
        "repair_seconds": repair_seconds,
        "seconds": inside,
        "check_seconds": check_seconds,
        "verdict": verdict,
    }


def shown(value: Any) -> str:
    """A cell of the table."""
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else f"{value}"


def main() -> int:
    """Measure and print; 1 if a run was not proved or not checked as VALID."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADVREPAIR_DATA"))
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only this one")
    parser.add_argument("--rounds", type=int, default=200, help="points sampled in every box")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    given = parser.parse_args()
    if given.data is None:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/, or give --data")
    keep_freed_memory()
    found = []
    with tempfile.TemporaryDirectory() as place:
        out = given.out or Path(place)
        if not given.json:
            print("| " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * len(COLUMNS) + "|")
        for network in given.network or NETWORKS:
            for epsilon in RADII:
                folder = out / f"{network}-{epsilon}"
                row = measure(given.data, network, epsilon, given.count, folder, given.rounds)
                found.append(row)
                if not given.json:
                    print("| " + " | ".join(shown(row[key]) for key in COLUMNS) + " |", flush=True)
    if given.json:
        print(json.dumps(found, indent=1))
    whole = f"{given.count}/{given.count}"
    return int(any((row["certified"], row["verdict"]) != (whole, "VALID") for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
