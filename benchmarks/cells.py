"""One cell of the paper's tables: a repair and its full evaluation, kept as a JSON file."""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from advrepair.core.files import read_json, write_json

NETWORKS = ("fnn_small", "fnn_big", "cnn")
RADII = ("0.05", "0.1", "0.3")
COUNTS = (50, 100, 200, 500, 1000)
_SMALL, _LARGE = "patch.hidden=[64,64,16]", "patch.hidden=[256,256,64]"
_GUIDED = ("--indicator", "property-guided")
_LABEL = ("--indicator", "untargeted-label")
_PAIR = ("--indicator", "targeted-label")
# How a variant is asked for. "own": the patch of the preset. The paper has the four others but TS.
VARIANTS: dict[str, tuple[str, ...]] = {
    "own": _GUIDED,
    "PS": (*_GUIDED, "--set", _SMALL),
    "PL": (*_GUIDED, "--set", _LARGE),
    "LS": (*_LABEL, "--set", _SMALL),
    "LL": (*_LABEL, "--set", _LARGE),
    "TS": (*_PAIR, "--set", _SMALL),
}
Record = dict[str, Any]


@frozen
class Cell:
    """Which repair."""

    network: str
    radius: str
    count: int
    variant: str = "own"


@frozen
class Settings:
    """How cells are computed. attack: that of the evaluation; limit: test inputs attacked."""

    attack: str = "pgd"
    limit: int = 200
    preset: str = "default"

    def path(self, out: Path, cell: Cell) -> Path:
        """The file of a cell; another attack, limit or preset has another one."""
        parts = [cell.network, cell.radius, cell.count, cell.variant]
        return out / ("-".join(map(str, [*parts, self.attack, self.limit, self.preset])) + ".json")


def parse_cells(text: str) -> list[tuple[str, str, int]]:
    """Cells of ``NETWORKS:RADII:COUNTS``, each a list with commas; an empty list means all."""
    parts = text.split(":")
    known = (NETWORKS, RADII, tuple(map(str, COUNTS)))
    if len(parts) > len(known):
        raise argparse.ArgumentTypeError(f"{text!r}: write NETWORKS:RADII:COUNTS")
    lists = []
    for i, allowed in enumerate(known):
        asked = parts[i].split(",") if i < len(parts) and parts[i] else list(allowed)
        for each in asked:
            if each not in allowed:
                raise argparse.ArgumentTypeError(f"{each!r} is none of {', '.join(allowed)}")
        lists.append(asked)
    return [(network, radius, int(count)) for network, radius, count in product(*lists)]


def commands(cell: Cell, settings: Settings, data: str) -> list[list[str]]:
    """The two commands of a cell, without the folder of the run."""
    files = [f"{data}/mnist/nets/{cell.network}.onnx", "--data", f"{data}/mnist/mnist.npz"]
    asked = ["--epsilon", cell.radius, "--count", str(cell.count), "--preset", settings.preset]
    limit = ["--attack", settings.attack, "--limit", str(settings.limit)]
    return [
        ["advrepair", "run", *files, *asked, *VARIANTS[cell.variant], "--out"],
        ["advrepair", "evaluate", *limit],
    ]


def compute(cell: Cell, settings: Settings, data: Path) -> Record:
    """Repair and evaluate by the command line, each in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        repair, evaluate = commands(cell, settings, str(data))
        repairing, evaluating = _timed([*repair, str(folder)]), _timed([*evaluate, str(folder)])
        manifest = read_json(folder / "manifest.json")
        report = read_json(folder / "report.json")
    del report["folder"]
    shown = commands(cell, settings, "$ADVREPAIR_DATA")
    return {
        "cell": asdict(cell),
        "settings": asdict(settings),
        "report": report,
        "manifest": {key: manifest[key] for key in ("hardware", "inputs", "seed", "versions")},
        "seconds": {"repair": repairing, "evaluation": evaluating},
        "commands": [shlex.join([*part, "FOLDER"]).replace("'", "") for part in shown],
        "date": datetime.date.today().isoformat(),
    }


def _timed(arguments: list[str]) -> float:
    """Run a module in a process of its own; seconds. Raises RuntimeError if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit {done.returncode}, no message").splitlines()[-1]
        raise RuntimeError(f"{shlex.join(arguments)}: {last}")
    return time.perf_counter() - begin


def fill(
    cells: Sequence[Cell],
    settings: Settings,
    out: Path,
    force: bool,
    compute: Callable[[Cell], Record],
) -> Iterator[tuple[Cell, Record | None]]:
    """Compute the cells whose file is not there, one after the other.

    Yields each with what was computed, or None where the file was there.
    """
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = settings.path(out, cell)
        if path.exists() and not force:
            yield cell, None
            continue
        found = compute(cell)
        write_json(path, found)
        yield cell, found


def read_all(out: Path) -> list[Record]:
    """Every cell in a folder, in the order of the paper."""
    found = [json.loads(path.read_text()) for path in out.glob("*-*-*.json")]
    return sorted(found, key=_order)


def _order(record: Record) -> tuple[Any, ...]:
    cell, settings = record["cell"], record["settings"]
    return (
        NETWORKS.index(cell["network"]),
        RADII.index(cell["radius"]),
        cell["count"],
        list(VARIANTS).index(cell["variant"]),
        *sorted(map(str, settings.values())),
    )
