"""Large networks: what patches behind the convolutions and caps bring, and what they cost.

``ADVREPAIR_DATA=... python -m benchmarks.large --model resnet18 --weights model_test.pt
[--radii 4/255] [--counts 50,100] [--ways cap,sampled,proved,paper] [--limit 100] [--out FOLDER]``
``python -m benchmarks.large --page docs/large-networks.md [--out FOLDER]``

Images are the lossless ones of CIFAR-10, radii are in pixels. Every cell is one ``advrepair run``,
one ``advrepair evaluate``, which ``--limit 0`` leaves out, and one ``advrepair check``, each in a
process of its own, as a user would start it; what they say is kept in FOLDER
(benchmarks/records/large), and a cell that is there is not computed again. ``--page`` writes the
tables of all cells in FOLDER into that page.

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

import torch
from safetensors.torch import load_file

import advrepair
from advrepair.core.files import read_json, write_json, write_text
from benchmarks.large_page import Record, filled, rows

_WAYS = {
    "cap": ["--set", "training.objective=cap"],
    "sampled": ["--at", "auto", "--set", "patch.boxes=sampled"],
    "proved": ["--at", "auto"],
    "paper": [
        *("--preset", "paper", "--at", "auto", "--set", "patch.boxes=sampled"),
        *("--set", "training.clamp=false", "--allocator", "feature-cosine"),
    ],
}
_FACTORY = ["--factory", "benchmarks.cifar_models:{model}"]
_RECORDS = Path(__file__).parent / "records" / "large"


def commands(
    given: argparse.Namespace, radius: str, count: int, way: str, data: str
) -> list[list[str]]:
    """The commands of a cell, without the folder of the run."""
    files = [str(given.weights), *(part.format(model=given.model) for part in _FACTORY)]
    files += ["--data", f"{data}/cifar10/cifar10_lossless.npz"]
    asked = ["--epsilon", radius, "--count", str(count)]
    asked += [] if way == "paper" else ["--allocator", "none"]
    asked += ["--set", f"evaluation.samples={given.samples}"]
    evaluate = ["advrepair", "evaluate", "--limit", str(given.limit)]
    run = ["advrepair", "run", *files, *asked, *_WAYS[way], "--out"]
    return [run, *[evaluate] * bool(given.limit), ["advrepair", "check"]]


def compute(given: argparse.Namespace, radius: str, count: int, way: str) -> Record:
    """Repair, evaluate, if any input is to be attacked, and check."""
    seconds, load = {}, os.getloadavg()[0]
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
        changed = largest_change(folder)
    report["folder"] = "FOLDER"
    named = argparse.Namespace(**vars(given) | {"weights": given.weights.name})
    shown = commands(named, radius, count, way, "$ADVREPAIR_DATA")
    return {
        "model": given.model, "radius": radius, "count": count, "way": way, "changed": changed,
        "verdict": json.loads(done.stdout), "report": report,
        "manifest": {key: manifest[key] for key in ("hardware", "seed", "versions")},
        "load": load, "seconds": seconds,
        "commands": [" ".join([*part, "FOLDER"]) for part in shown],
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def largest_change(folder: Path) -> float:
    """Of an output, by the repair, over the centres of all balls and their counterexamples."""
    repaired, found = advrepair.load(folder), 0.0
    x_adv = load_file(folder / "evaluation.safetensors")["x_adv"]
    with torch.no_grad():
        for x in torch.cat([repaired.center, x_adv]).split(50):
            found = max(found, float((repaired(x) - repaired.base(x)).abs().max()))
    return found


def _listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Compute the cells that are missing, or write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=_RECORDS, help="where cells are kept")
    parser.add_argument("--radii", type=_listed, default=["4/255", "8/255"])
    parser.add_argument("--counts", type=_listed, default=["50", "100", "200", "500", "1000"])
    parser.add_argument("--ways", type=_listed, default=["cap", "sampled"])
    parser.add_argument(
        "--limit", type=int, default=100, help="unseen images attacked; 0: no evaluation"
    )
    parser.add_argument("--samples", type=int, default=1, help="examples for RGR to each for RSR")
    parser.add_argument("--page", type=Path, help="the page whose tables are written anew")
    given = parser.parse_args()
    if given.page:
        records = [read_json(path) for path in given.out.glob("*.json")]
        write_text(given.page, filled(given.page.read_text(encoding="utf-8"), records))
        return
    if given.weights is None or "ADVREPAIR_DATA" not in os.environ:
        parser.error("give --weights, and set ADVREPAIR_DATA to the folder that holds cifar10/")
    given.out.mkdir(parents=True, exist_ok=True)
    for radius, count, way in product(given.radii, given.counts, given.ways):
        path = given.out / f"{given.model}-{radius.replace('/', 'of')}-{count}-{way}.json"
        if not path.exists():
            record = compute(given, radius, int(count), way)
            write_json(path, record)
            print(path.stem, *rows([record])[0], sep=" | ", flush=True)


if __name__ == "__main__":
    main()
