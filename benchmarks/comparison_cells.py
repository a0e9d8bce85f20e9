"""One comparison of repair methods: a cell of the paper's tables, run, kept as JSON."""

import datetime
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from advrepair.core.files import write_json
from benchmarks.cells import NETWORKS

SECONDS, MEMORY, LIMIT = 120, 4, 100  # of a method; GiB; inputs and regions attacked
_PROPERTY, _DATA = "prop_2", "$ADVREPAIR_DATA"
Record = dict[str, Any]


@frozen
class Cell:
    """Which comparison. Without a radius: an ACAS Xu network as ``2_1``, with property 2."""

    network: str
    radius: str = ""
    count: int = 0

    @property
    def name(self) -> str:
        """Of its file and its folder."""
        parts = [self.radius, str(self.count)] if self.radius else [_PROPERTY]
        return "-".join([self.network, *parts])


# The first ten networks of the paper's table 2; all of them violate property 2.
ACASXU = [Cell(f"2_{j}") for j in range(1, 10)] + [Cell("3_1")]


def balls(radius: str, count: int) -> list[Cell]:
    """The networks for MNIST with as many balls."""
    return [Cell(network, radius, count) for network in NETWORKS]


# In the order in which they are run, so that what is read most is there first.
CELLS = [
    *balls("0.1", 50),
    *ACASXU,
    *balls("0.05", 50),
    *balls("0.3", 50),
    *balls("0.1", 200),
    *balls("0.05", 200),
    *balls("0.3", 200),
]


def command(cell: Cell, data: str) -> list[str]:
    """The comparison, without its folder."""
    if cell.radius:
        asked = [f"{data}/mnist/nets/{cell.network}.onnx", "--data", f"{data}/mnist/mnist.npz"]
        asked += ["--epsilon", cell.radius, "--count", str(cell.count)]
    else:
        asked = [f"{data}/acasxu/onnx/ACASXU_run2a_{cell.network}_batch_2000.onnx"]
        asked += ["--property", f"{data}/acasxu/vnnlib/{_PROPERTY}.vnnlib"]
        asked += ["--decision", "argmin"]
    limits = ["--seconds", str(SECONDS), "--memory", str(MEMORY), "--limit", str(LIMIT)]
    return ["advrepair", "compare", *asked, "--methods", "all", *limits, "--out"]


def compute(cell: Cell, data: Path, folder: Path) -> Record:
    """Compare by the command line; a folder that was begun is gone on with.

    Raises RuntimeError with the last line that the command said, if it fails.
    """
    load = os.getloadavg()[0]
    resume = ["--resume"] if (folder / "compare.toml").exists() else []
    asked = [*command(cell, str(data)), str(folder), *resume]
    done = subprocess.run([sys.executable, "-m", *asked], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit {done.returncode}, no message").splitlines()[-1]
        raise RuntimeError(f"{shlex.join(asked)}: {last}")
    named = (folder / "comparison.json").read_text().replace(str(data), _DATA)
    return {
        "cell": asdict(cell),
        "command": shlex.join([*command(cell, "DATA"), "FOLDER"]).replace("DATA", _DATA),
        "date": datetime.date.today().isoformat(),
        "load": load,
        "comparison": json.loads(named),
    }


def fill(
    cells: Sequence[Cell], out: Path, compute: Callable[[Cell, Path], Record]
) -> Iterator[tuple[Cell, str]]:
    """Run the cells whose file is not there, one after the other.

    Yields each with what became of it: ``there``, ``done``, or why it failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = out / f"{cell.name}.json"
        said = "there"
        if not path.exists():
            try:
                write_json(path, compute(cell, out / cell.name))
                said = "done"
            except RuntimeError as error:
                said = f"failed: {error}"
        yield cell, said


def read_all(out: Path) -> dict[Cell, Record]:
    """Every cell that is there, in the order of CELLS."""
    files = {cell: out / f"{cell.name}.json" for cell in CELLS}
    return {cell: json.loads(p.read_text()) for cell, p in files.items() if p.exists()}
