"""One repair of an ACAS Xu network and one property: run, checked, measured, kept as JSON."""

import csv
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

import advrepair
from advrepair.core.box import Box
from advrepair.core.evaluating import read_examples
from advrepair.core.files import read_json, write_json
from advrepair.core.patching import RepairedNetwork
from advrepair.core.types import PropertySet

REFINERS = ("gradient-width", "widest", "none")
REPAIR = ("screening", "attack", "bounds", "training", "certification", "branch and bound")
OUTCOMES = ("repaired", "not certified", "proved", "unknown", "failed")
_SAMPLES = 5000  # where the patch is on
Record = dict[str, Any]


@frozen
class Cell:
    """Which repair. network: as in ``2_1``. property: as in ``prop_2``."""

    network: str
    property: str
    refiner: str = REFINERS[0]

    @property
    def name(self) -> str:
        """The stem of its file."""
        return "-".join([self.network, self.property, self.refiner])


@frozen
class Pair:
    """A line of the index: files, and what the tools of a competition answered."""

    network: str
    property: str
    onnx: str
    vnnlib: str
    verdict: str


def read_index(data: Path) -> dict[tuple[str, str], Pair]:
    """Every network with every property that is asked of it."""
    with open(data / "acasxu" / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = [
        Pair(
            row["network"].removeprefix("N").replace(",", "_"),
            row["property"],
            row["onnx_path"],
            row["vnnlib_path"],
            row["vnncomp2021_verdict"],
        )
        for row in rows
    ]
    return {(pair.network, pair.property): pair for pair in pairs}


def command(cell: Cell, pair: Pair, data: str) -> list[str]:
    """The repair, without the folder of the run."""
    files = [f"{data}/acasxu/{pair.onnx}", "--property", f"{data}/acasxu/{pair.vnnlib}"]
    refiner = [] if cell.refiner == REFINERS[0] else ["--refiner", cell.refiner]
    return ["advrepair", "run", *files, "--decision", "argmin", *refiner, "--out"]


def compute(cell: Cell, pair: Pair, data: Path, check: bool) -> Record:
    """Repair and check by the command line, each in a process of its own, and measure.

    A repair that ends in an error is kept as such: what it said, and its exit code.
    """
    shown = [*command(cell, pair, "$ADVREPAIR_DATA"), "FOLDER"]
    record: Record = {
        "cell": asdict(cell),
        "verdict": pair.verdict,
        "command": " ".join(shown),
        "date": datetime.date.today().isoformat(),
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        done = _process([*command(cell, pair, str(data)), str(folder), "--json"])
        record["run"] = done.times
        if done.code:
            return record | {"failed": {"exit": done.code, "said": done.said}}
        report, manifest = read_json(folder / "report.json"), read_json(folder / "manifest.json")
        del report["folder"]
        record |= {"report": report, "measured": measured(folder)}
        record["manifest"] = {key: manifest[key] for key in ("hardware", "seed", "versions")}
        if check:
            done = _process(["advrepair", "check", "--json", str(folder)])
            found = json.loads(done.out) if done.out else {"verdict": f"error: {done.said}"}
            record["check"] = found | {"times": done.times}
    return record


@frozen
class _Done:
    """A process that has ended; said: its last line of errors."""

    code: int
    out: str
    said: str
    times: dict[str, float]


def _process(arguments: Sequence[str]) -> _Done:
    """Run a module in a process of its own."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = {
        "wall": time.perf_counter() - begin,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    lines = done.stderr.strip().splitlines() or [f"{shlex.join(arguments)}: no message"]
    return _Done(done.returncode, done.stdout, lines[-1], times)


def measured(folder: Path) -> Record:
    """What the report does not say: how much of the boxes is touched, and how hard.

    touched: volume where a patch is on, as a share of the boxes, which count alike. intrusion:
    mean of max|P| over mean of max|N|, on random inputs there; largest: of all |P| there.
    kept: share of decisions unchanged on those that were right before; order: share whose
    whole ranking of the outputs is unchanged; right: how many these are.
    """
    repaired = advrepair.load(folder)
    examples = read_examples(folder, repaired)
    properties, unseen = examples.problem.properties, examples.unseen[0]
    found: Record = {
        "counterexamples": [len(examples.problem.x_adv), len(unseen)],
        "boxes": len(properties),
        "touched": touched(properties.box, repaired),
    }
    if not bool((repaired.patch >= 0).any()):
        return found
    x, owner = inside(properties.box, repaired)
    with torch.no_grad():
        before, after = repaired.base(x), repaired(x)
    moved = (after - before).abs().amax(1)
    right = ~_violated(properties, owner, before)
    kept = before[right].argmin(1) == after[right].argmin(1)
    same = (before[right].argsort(1) == after[right].argsort(1)).all(1)
    return found | {
        "intrusion": float(moved.double().mean() / before.abs().amax(1).double().mean()),
        "largest": float(moved.max()),
        "right": int(right.sum()),
        "kept": _share(kept),
        "order": _share(same),
    }


def _regions(box: Box, repaired: RepairedNetwork) -> tuple[Box, torch.Tensor, torch.Tensor]:
    """Parts of boxes with a patch, the box of each, and its share of that box's volume.

    Regions of one box are parts of one cutting of it, so that no two have a volume in common.
    """
    on = (repaired.patch >= 0).nonzero()[:, 0]
    owner, region = repaired.box[on].meets(box).T
    part, whole = repaired.box[on][region], box[owner]
    lower = torch.maximum(part.lower, whole.lower)
    upper = torch.minimum(part.upper, whole.upper)
    width = (whole.upper.double() - whole.lower.double()).flatten(1)
    own = (upper.double() - lower.double()).flatten(1)
    share = torch.where(width > 0, own / width.clamp(min=1e-300), 1.0).prod(1)
    return Box(lower, upper), owner, share


def touched(box: Box, repaired: RepairedNetwork) -> float:
    """Volume where a patch is on, as a share of boxes that count alike."""
    return float(_regions(box, repaired)[2].sum()) / len(box)


def inside(box: Box, repaired: RepairedNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs where a patch is on, by volume, and the box of each."""
    noise = torch.Generator().manual_seed(0)
    parts, owner, share = _regions(box, repaired)
    chosen = share.clamp(min=1e-300).multinomial(_SAMPLES, replacement=True, generator=noise)
    place = parts[chosen]
    width = place.upper - place.lower
    draw = torch.rand(width.shape, generator=noise, dtype=width.dtype)
    return place.clamp(place.lower + draw * width), owner[chosen]


def _violated(properties: PropertySet, owner: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return properties[owner].violated(y)


def _share(which: torch.Tensor) -> float | None:
    return float(which.double().mean()) if len(which) else None


def outcome(record: Record) -> str:
    """What became of a pair: one of OUTCOMES."""
    if "failed" in record:
        return "failed"
    demands = record["report"]["demands"]
    certified = all(each["status"] == "certified" for each in demands)
    if not all(each["held"] for each in demands):
        return "repaired" if certified else "not certified"
    return "proved" if certified else "unknown"


def contradicts(record: Record) -> bool:
    """Whether a pair's answer and that of the competition exclude each other."""
    found = outcome(record)
    if record["verdict"] == "holds":
        return found in ("repaired", "not certified")
    return found == "proved"


def seconds(record: Record) -> float:
    """Of the repair and its proof, inside the process."""
    return float(sum(record["report"]["seconds"][stage] for stage in REPAIR))


def fill(
    cells: Sequence[Cell],
    out: Path,
    check: bool,
    force: bool,
    compute: Callable[[Cell], Record],
) -> Iterator[tuple[Cell, Record | None]]:
    """Compute the cells that are not there, one after the other.

    One that failed, or that lacks the check asked for, is not there. Yields each with what
    was computed, or None where the file was there.
    """
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = out / f"{cell.name}.json"
        if path.exists() and not force:
            known = json.loads(path.read_text())
            if "failed" not in known and ("check" in known or not check):
                yield cell, None
                continue
        found = compute(cell)
        write_json(path, found)
        yield cell, found


def read_all(out: Path) -> list[Record]:
    """Every cell in a folder, by property and network."""
    found = [json.loads(path.read_text()) for path in out.glob("*-prop_*.json")]
    return sorted(found, key=_order)


def _order(record: Record) -> tuple[Any, ...]:
    cell = record["cell"]
    number = int(cell["property"].removeprefix("prop_"))
    return number, cell["network"], REFINERS.index(cell["refiner"])
