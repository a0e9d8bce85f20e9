"""What ``advrepair run`` predicts before it begins, beside what the run then takes.

``ADVREPAIR_DATA=... python -m benchmarks.estimates [--networks fnn_small] [--counts 50,200]``

Every run is a process of its own on MNIST at radius 0.1. A line for each says measured and
predicted seconds by stage, peak memory and bytes on disk. Targets: the time within a factor of 2,
memory within 1.5, disk within 1.3. The last lines say by which factor each stage was off in the
median, which is what FACTORS of advrepair/core/estimate.py are fitted by. On a machine that does
other work besides, the measured times are longer than they should be.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from attrs import frozen

from benchmarks.scale import Measured, measure

NETWORKS = ("fnn_small", "fnn_big", "cnn")
HIDDEN = ("[]", "[64,64,16]", "[256,256,64]")
COUNTS = (50, 200, 1000)
STAGES = ("attack", "patches", "certification", "evaluation", "total")
TARGETS = {"total": 2.0, "memory": 1.5, "disk": 1.3}


@frozen
class Compared:
    """One run: measured and predicted, by what."""

    name: str
    pairs: dict[str, tuple[float, float]]

    def off(self, what: str) -> float:
        """Measured over predicted."""
        measured, predicted = self.pairs[what]
        return measured / max(predicted, 1e-9)

    def line(self) -> str:
        """The row of a table."""
        shown = []
        for what, (measured, predicted) in self.pairs.items():
            scale = 2**20 if what in ("memory", "disk") else 1
            shown.append(f"{measured / scale:8.1f} /{predicted / scale:7.1f}")
        return f"{self.name:<28}" + " ".join(shown)


HEADER = f"{'measured / predicted':<28}" + " ".join(
    f"{what:>17}" for what in (*STAGES, "memory MiB", "disk MiB")
)


def compared(name: str, run: Measured) -> Compared:
    """What a run measured, beside what it had predicted."""
    spent, told = dict(run.report["seconds"]), run.report["estimate"]
    spent["patches"] = spent["bounds"] + spent["training"]
    pairs = {stage: (spent[stage], told["seconds"][stage]) for stage in STAGES}
    pairs["memory"] = (run.watched.memory, told["memory_bytes"])
    pairs["disk"] = (max(run.watched.disk, run.kept), told["disk_bytes"])
    return Compared(name, pairs)


def summary(runs: list[Compared]) -> Iterator[str]:
    """How far off the predictions are, and whether the targets are met."""
    for what in runs[0].pairs:
        factors = [run.off(what) for run in runs]
        worst = max(max(each, 1 / max(each, 1e-9)) for each in factors)
        text = (
            f"{what}: {median(factors):.2f} of the prediction in the median, at worst {worst:.2f}"
        )
        if target := TARGETS.get(what):
            good = sum(max(each, 1 / max(each, 1e-9)) <= target for each in factors)
            text += f" (target {target:g}: {good} of {len(runs)} runs)"
        yield text


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--hidden", action="append", help="as 64,64,16; empty: affine; repeatable")
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    data, found = Path(os.environ["ADVREPAIR_DATA"]), []
    hidden = HIDDEN if given.hidden is None else [f"[{each}]" for each in given.hidden]
    print(HEADER, flush=True)
    for network in given.networks.split(","):
        for layers in hidden:
            for count in map(int, given.counts.split(",")):
                more = ["--set", f"patch.hidden={layers}"]
                run = measure(data, count, network, "0.1", more)
                found.append(compared(f"{network} {layers} {count}", run))
                print(found[-1].line(), flush=True)
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
