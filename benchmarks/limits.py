"""How far each step of a repair is from what the machine could do at most.

``ADVREPAIR_DATA=... python -m benchmarks.limits [--networks fnn_small] [--counts 50,200]``

For patches of three sizes on three networks, a line for each step: the network's rows, an epoch
of training with its share of the proof, the rest (constants). It says the CPU-milliseconds a patch
that were measured, the operations and
bytes that advrepair/core/counting.py counts, the two limits in milliseconds (operations over the
rate at which one thread multiplies matrices here, bytes over the rate at which it copies), and
how many times the larger of the two the step takes. The copy is of arrays as large as those of a
shard in flight, which stay in the caches. Target: an epoch within 4 of the larger limit.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from attrs import frozen

from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder
from advrepair.core.counting import Count, Machine, constants, epoch, machine, proof, rows
from advrepair.core.covering import cover
from advrepair.core.graph import Network
from advrepair.core.memory import keep_freed_memory
from advrepair.core.onnx_import import read_onnx
from advrepair.core.patching import patch_template
from advrepair.core.properties import robustness
from advrepair.core.rounding import Rounding
from advrepair.core.sections import Training
from advrepair.core.shards import STEPS
from advrepair.core.solving import Solver
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.verifiers.deeppoly import DeepPoly

NETWORKS = ("fnn_small", "fnn_big", "cnn")
HIDDEN = ((), (64, 64, 16), (256, 256, 64))
COUNTS = (50, 200, 1000)
TARGET = 4.0  # times the larger limit, an epoch of training


@frozen
class Step:
    """One step of a repair. spent: CPU-seconds for each of its calls. work: counted."""

    name: str
    spent: float
    work: Count

    def line(self, known: Machine) -> str:
        """The figures of one step, a call and a patch."""
        arithmetic, memory = (1e3 * each for each in self.work.limits(known))
        flop = (self.work.single + self.work.double) / 1e6
        return (
            f"  {self.name:<9} {1e3 * self.spent:9.3f} {flop:9.2f} {self.work.moved / 1e6:9.2f} "
            f"{arithmetic:9.3f} {memory:9.3f} {1e3 * self.spent / max(arithmetic, memory):7.1f}"
        )


HEADER = (
    "  step       CPU-ms/patch  Mflop      MB   ms by the operations, by the bytes; "
    "times the larger"
)


def balls(data: Path, count: int) -> Problem:
    """Balls of radius 0.1 around the first training images."""
    with np.load(data / "mnist" / "mnist.npz") as arrays:
        x = torch.tensor(arrays["x_train"][:count]).float().div(255).view(-1, 1, 28, 28)
        y = torch.tensor(arrays["y_train"][:count]).long()
    properties = robustness(x, y, 0.1, 10, clip=(0.0, 1.0))
    return Problem(properties, x, torch.arange(len(x)))


def steps(network: Network, problem: Problem, hidden: tuple[int, ...]) -> tuple[list[Step], float]:
    """What each step took and what was counted for it; and how many epochs there were."""
    template, verifier = patch_template(network, hidden), DeepPoly()
    rounding = Rounding("deployed-float32")
    bounder = Bounder(network, template, verifier, verifier, rounding, 2**33)
    ground = cover(problem, bounder, PropertyGuided(), False)
    solver = Solver(bounder, GradientWidth(), Training(), 0)
    outcomes = [solver(shard) for shard in ground.shards(template)]
    patches, count = len(problem.properties), problem.properties.C.shape[1]
    cpu = (torch.stack([outcome.cpu for outcome in outcomes]).sum(0) / patches).tolist()
    spent = dict(zip(STEPS, cpu, strict=True))
    # There is one more bound than steps; the last is proved, which each epoch has a share of.
    epochs = 1 + torch.cat([outcome.epochs for outcome in outcomes]).double().mean().item()
    share = (1 / epochs) * proof(template, count)
    return [
        Step("rows", spent["bounds"], rows(network, count, rigorous=True)),
        Step("epoch", spent["training"] / epochs, epoch(template, count) + share),
        Step("rest", spent["proof"], constants(template, count)),
    ], epochs


def report(
    data: Path, names: list[str], hidden: list[tuple[int, ...]], counts: list[int]
) -> Iterator[str]:
    """All lines; the last says whether the target is met."""
    known = machine()
    yield (
        f"one thread: {known.single / 1e9:.0f} Gflop/s in float32, {known.double / 1e9:.0f} in "
        f"float64, {known.bandwidth / 1e9:.1f} GB/s"
    )
    worst = 0.0
    for name in names:
        network = read_onnx(data / "mnist" / "nets" / f"{name}.onnx")
        for layers in hidden:
            for count in counts:
                found, epochs = steps(network, balls(data, count), layers)
                yield f"{name} {list(layers)} n = {count}, {epochs:.1f} epochs"
                yield HEADER
                yield from (step.line(known) for step in found)
                training = found[1]
                worst = max(worst, training.spent / training.work.limit(known))
    word = "met" if worst <= TARGET else "missed"
    yield f"an epoch takes at most {worst:.1f} times the larger limit (target {TARGET:g}: {word})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument(
        "--hidden", action="append", help="layers of a patch as 64,64,16; empty: affine; repeatable"
    )
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    layers = [tuple(int(n) for n in each.split(",") if n) for each in given.hidden or ()]
    keep_freed_memory()
    torch.set_num_threads(1)  # waiting threads cost CPU time too
    data, counts = Path(os.environ["ADVREPAIR_DATA"]), [int(n) for n in given.counts.split(",")]
    steps(*_warm(data), ())  # the first calls compile and load
    for line in report(data, given.networks.split(","), layers or list(HIDDEN), counts):
        print(line, flush=True)


def _warm(data: Path) -> tuple[Network, Problem]:
    return read_onnx(data / "mnist" / "nets" / "fnn_small.onnx"), balls(data, 8)


if __name__ == "__main__":
    main()
