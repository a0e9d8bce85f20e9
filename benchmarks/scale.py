"""How a repair grows with the number of balls: time, memory, disk.

``ADVREPAIR_DATA=... python -m benchmarks.scale [--counts 50,200,1000] [--network fnn_small]``

Each count is one ``advrepair run`` in a process of its own, on MNIST at radius 0.1. A line says
the seconds by stage, seconds a ball, the peak of the resident memory and how much of it was
backed by files at that moment, and the bytes on disk, at most and at the end. Balls are those
around the inputs for which the attack finds a counterexample; where it finds fewer than asked
for, the run is about all that it finds, and the line says so. Targets: seconds a ball do not
grow (a ratio up to 1.5 between the last count and the first from 1,000 on), and 10,000 balls
within 4 GiB.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, frozen

from advrepair.core.files import read_json

COUNTS = (50, 200, 1000, 2000, 5000, 10_000)
STAGES = ("attack", "bounds", "training", "certification", "evaluation")
LINEAR, MEMORY = 1.5, 4 * 2**30
_EVERY = 0.05  # seconds between two looks at the process


@define
class Watched:
    """What a process took at most, in bytes; files: of its memory, at the moment of the peak."""

    memory: int = 0
    files: int = 0
    disk: int = 0
    _largest: int = 0

    def look(self, process: int, folder: Path) -> None:
        """Look at a process and at what it has written so far."""
        known = _status(process)
        self.memory = max(self.memory, known.get("VmHWM", 0))
        if known.get("VmRSS", 0) > self._largest:
            self._largest, self.files = known["VmRSS"], known.get("RssFile", 0)
        self.disk = max(self.disk, disk_used(folder))


@frozen
class Measured:
    """One run. count: balls it was about. seconds: of the process, its start included."""

    count: int
    seconds: float
    report: dict[str, Any]
    watched: Watched
    kept: int

    @property
    def inside(self) -> float:
        """Seconds of the run without the start of Python and torch."""
        return float(self.report["seconds"]["total"])


def measure(data: Path, count: int, network: str, epsilon: str, more: list[str]) -> Measured:
    """Run one count; with fewer where the attack finds fewer.

    Raises RuntimeError if it fails in another way.
    """
    command = [sys.executable, "-m", "advrepair", "run", f"{data}/mnist/nets/{network}.onnx"]
    command += ["--data", f"{data}/mnist/mnist.npz", "--epsilon", epsilon, "--json", *more]
    with tempfile.TemporaryDirectory() as place:
        folder, watched, begin = Path(place), Watched(), time.perf_counter()
        with open(folder / "errors", "w+") as errors:
            asked = [*command, "--count", str(count), "--out", f"{place}/out/run"]
            process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None:
                watched.look(process.pid, folder / "out")
                time.sleep(_EVERY)
            errors.seek(0)
            said = errors.read()
        if process.returncode:
            found = re.search(r"the attack finds (\d+) counterexamples", said)
            if found is None or int(found[1]) >= count:
                raise RuntimeError(said.strip().splitlines()[-1])
            return measure(data, int(found[1]), network, epsilon, more)
        took, run = time.perf_counter() - begin, folder / "out" / "run"
        return Measured(count, took, read_json(run / "report.json"), watched, disk_used(run))


def disk_used(folder: Path) -> int:
    """Bytes of the files in a folder; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _status(process: int) -> dict[str, int]:
    """Sizes that Linux states of a process, in bytes; empty elsewhere."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def line(asked: int, found: Measured) -> str:
    """The row of a table."""
    seconds, size = found.report["seconds"], found.watched
    stages = " ".join(f"{seconds[stage]:>{len(stage) + 1}.1f}" for stage in STAGES)
    words = [
        f"{found.count:>7,} {stages} {found.inside:7.1f} {found.seconds:7.1f}",
        f"{1e3 * found.inside / found.count:8.2f} {size.memory / 2**20:7.0f}",
        f"{size.files / 2**20:6.0f} {size.disk / 2**20:8.1f} {found.kept / 2**20:7.1f}",
        f"{found.report['properties']['certified']}/{found.count}",
    ]
    return " ".join(words) + (f" (of {asked:,} asked for)" if asked != found.count else "")


HEADER = (
    "  balls  " + "  ".join(STAGES) + "  inside process  ms/ball peak MiB of files disk MiB kept "
    "MiB certified"
)


def verdict(runs: list[Measured]) -> Iterator[str]:
    """Whether the targets are met, a line each."""
    large = [run for run in runs if run.count >= 1000] or runs
    each = [run.inside / run.count for run in large]
    word = "met" if each[-1] <= LINEAR * each[0] else "missed"
    yield (
        f"seconds a ball, {large[-1].count:,} balls to {large[0].count:,}: "
        f"{each[-1] / each[0]:.2f} (target {LINEAR}: {word})"
    )
    most = max(runs, key=lambda run: run.watched.memory)
    word = "met" if most.watched.memory <= MEMORY else "missed"
    yield (
        f"peak memory {most.watched.memory / 2**30:.2f} GiB at {most.count:,} balls "
        f"(target {MEMORY / 2**30:g} GiB at 10,000: {word})"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--network", default="fnn_small")
    parser.add_argument("--epsilon", default="0.1")
    parser.add_argument("--set", action="append", default=[], help="as of advrepair run")
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    data, runs = Path(os.environ["ADVREPAIR_DATA"]), []
    more = [part for each in given.set for part in ("--set", each)]
    print(HEADER, flush=True)
    for asked in (int(part) for part in given.counts.split(",")):
        runs.append(measure(data, asked, given.network, given.epsilon, more))
        print(line(asked, runs[-1]), flush=True)
    print("\n".join(verdict(runs)))


if __name__ == "__main__":
    main()
