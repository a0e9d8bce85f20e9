"""The paper's Table 1 in one go: every cell repaired, certified, and timed.

``ADVREPAIR_DATA=... python -m benchmarks.table1 [--cells fnn_small:0.1:50] [--hidden 64,64,16]``

45 cells: three networks, three radii, 50 to 1,000 counterexamples, a patch for every property,
certified for the deployed float32 arithmetic. A cell is what ``advrepair run`` does, folder
included; all run in one process. Printed are the seconds and the certified share of each cell
beside the paper's seconds, and the totals. Targets: 600 s, better 180 s, for all of them, where
the paper's figures add up to 12,226 s; and less than 4 GiB of memory.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from advrepair.core import pipeline
from advrepair.core.config import resolve
from advrepair.core.memory import keep_freed_memory, peak_memory
from advrepair.core.registry import Registry
from benchmarks.cells import parse_cells
from benchmarks.paper import printed

TARGETS, MEMORY = (600, 180), 4 * 2**30
STAGES = ("attack", "bounds", "training", "certification", "evaluation")


@frozen
class Timed:
    """One cell. seconds: all of it, reading and writing included. paper: its seconds, or None."""

    network: str
    radius: str
    count: int
    seconds: float
    paper: float | None
    report: dict[str, Any]

    @property
    def certified(self) -> float:
        """Share of the properties that are proved."""
        found = self.report["properties"]
        return float(found["certified"] / found["total"])

    def line(self) -> str:
        """The row of a table."""
        stages = " ".join(f"{self.report['seconds'][stage]:13.1f}" for stage in STAGES)
        paper = "-" if self.paper is None else f"{self.paper:,.1f}"
        return (
            f"{self.network:<10} {self.radius:>5} {self.count:>5} {stages} {self.seconds:8.1f} "
            f"{paper:>9} {self.certified:10.1%}"
        )


HEADER = (
    f"{'network':<10} {'r':>5} {'n':>5} "
    + " ".join(f"{stage:>13}" for stage in STAGES)
    + f" {'seconds':>8} {'paper':>9} {'certified':>10}"
)


def compute(
    registry: Registry, data: Path, cell: tuple[str, str, int], more: dict[str, dict[str, Any]]
) -> Timed:
    """Repair one cell in a folder of its own, which is removed."""
    network, radius, count = cell
    layer = {
        "problem": {
            "network": str(data / "mnist" / "nets" / f"{network}.onnx"),
            "data": str(data / "mnist" / "mnist.npz"),
            "epsilon": radius,
            "count": count,
        },
        "plan": {"indicator": "property-guided"},
        "certification": {"level": "deployed-float32"},
    }
    configuration = resolve(registry, [layer, more])
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        report = pipeline.run(configuration, registry, Path(place) / "run")
        seconds = time.perf_counter() - begin
    paper = printed().get((1, network, radius, count, "PS", "Time"))
    return Timed(network, radius, count, seconds, paper, report)


def summary(cells: list[Timed]) -> Iterator[str]:
    """The totals, and whether the targets are met."""
    total, known = sum(cell.seconds for cell in cells), [c for c in cells if c.paper is not None]
    paper = sum(cell.paper or 0.0 for cell in known)
    ours = sum(cell.seconds for cell in known)
    proved = sum(cell.report["properties"]["certified"] for cell in cells)
    asked = sum(cell.report["properties"]["total"] for cell in cells)
    yield f"{len(cells)} cells in {total:,.1f} s; {proved:,} of {asked:,} properties certified"
    if known:
        yield f"of {len(known)} the paper has a time: {paper:,.0f} s, here {ours:,.1f} s"
    for target in TARGETS:
        word = "met" if total <= target else "missed"
        yield f"target {target} s for all 45: {word}" + ("" if len(cells) == 45 else ", by these")
    peak = peak_memory() or 0
    word = "met" if peak < MEMORY else "missed"
    yield f"peak memory {peak / 2**30:.2f} GiB (target below {MEMORY / 2**30:g} GiB: {word})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=parse_cells, action="append", metavar="NETWORKS:RADII:NS")
    parser.add_argument("--hidden", default="", help="layers of a patch as 64,64,16; empty: affine")
    parser.add_argument("--threads", type=int, help="of torch; left out: what torch chooses")
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    more = {"patch": {"hidden": [int(n) for n in given.hidden.split(",") if n]}}
    registry, data, found = Registry.load(), Path(os.environ["ADVREPAIR_DATA"]), []
    print(HEADER, flush=True)
    for cell in [each for part in given.cells or [parse_cells("")] for each in part]:
        found.append(compute(registry, data, cell, more))
        print(found[-1].line(), flush=True)
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
