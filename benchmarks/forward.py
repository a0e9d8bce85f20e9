"""How much slower is the repaired network, and what does routing cost.

``ADVREPAIR_DATA=... python -m benchmarks.forward [--threads 1 2] [--batch 256]``

Balls of radius 0.1 around MNIST training images, a patch of its own for each (one affine layer,
random weights: nothing is trained), no allocator. Times are medians of single calls, the base
and the repaired network in turn, on ten batches in turn: of test images, hardly any of which
lies in a ball, and of centres, each in another ball. The second reads 31 KB of weights and 6 KB
of faces for every query; ``copy`` is the time to copy just those weights. Waiting threads spin:
with two of them, nothing else should run on two cores.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.box_index import Index
from advrepair.core.memory import keep_freed_memory
from advrepair.core.onnx_import import read_onnx
from advrepair.core.patching import PatchBank, RepairedNetwork, patch_template
from advrepair.core.types import Assignment, Centres, Regions
from advrepair.plugins.allocators.none import NoAllocator

TARGETS = {1_000: 2.0, 10_000: 5.0}
EPSILON, BATCHES = 0.1, 10


def images(data: Path, part: str) -> Tensor:
    """MNIST images, [n,1,28,28] in [0,1]."""
    with np.load(data / "mnist" / "mnist.npz") as arrays:
        return torch.tensor(arrays[f"x_{part}"]).float().div(255).view(-1, 1, 28, 28)


def seconds(
    run: Callable[..., object], *given: object, clock: Callable[[], float] = time.perf_counter
) -> float:
    """How long a call takes."""
    begin = clock()
    run(*given)
    return clock() - begin


def repaired_network(data: Path, name: str, x: Tensor, box: Box) -> RepairedNetwork:
    """A network with one random patch a ball, centres x: [R,*S]."""
    network = read_onnx(data / "mnist" / "nets" / f"{name}.onnx")
    template, count = patch_template(network, ()), torch.arange(len(x))
    stack = {n: torch.randn(len(x), *t.shape) / 1000 for n, t in template.tensors.items()}
    nobody = torch.full((len(x),), -1)
    centres = Centres(x, torch.zeros(len(x), network.outputs), nobody, nobody, count, len(x))
    names = tuple(map(str, range(len(x))))
    bank, regions = PatchBank(template, stack), Regions(box, count)
    return RepairedNetwork(network, bank, regions, Assignment(count, names), centres, NoAllocator())


def compare(repaired: RepairedNetwork, batches: list[Tensor], rounds: int) -> str:
    """Medians of the base and of the repaired network, one call in turn: elapsed and CPU time."""
    found = []
    for clock in (time.perf_counter, time.process_time):
        base, whole = [], []
        for number in range(rounds + BATCHES):
            x = batches[number % BATCHES]
            base.append(seconds(repaired.base, x, clock=clock))
            whole.append(seconds(repaired, x, clock=clock))
        ours, theirs = median(whole[BATCHES:]), median(base[BATCHES:])
        found.append(f"{theirs * 1e3:.3f} to {ours * 1e3:.3f} ms, {ours / theirs:.2f} x")
    return f"{found[0]} (CPU time {found[1]})"


def print_boxes(box: Box, queries: Tensor) -> None:
    """What the index costs, and what is asked of it."""
    flat = box.lower.flatten(1), box.upper.flatten(1)
    build = median(seconds(Index.of, *flat) for _ in range(5))
    box.first(queries)
    meets = median(seconds(box.meets, box) for _ in range(5))
    first = median(seconds(box.first, queries) for _ in range(5))
    print(
        f"{len(box)} balls: index {build * 1e3:.0f} ms, {Index.of(*flat).nbytes / 1e6:.2f} MB; "
        f"balls among themselves {meets * 1e3:.0f} ms; {len(queries)} queries {first * 1e3:.1f} ms"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--networks", nargs="+", default=["fnn_small", "fnn_big", "cnn"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    data = Path(os.environ["ADVREPAIR_DATA"])
    keep_freed_memory()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {platform.machine()}, batch {given.batch}")
    train, test = images(data, "train"), images(data, "test")
    for (count, target), threads in product(TARGETS.items(), given.threads):
        torch.set_num_threads(threads)
        box = Box.around(train[:count], EPSILON, clip=(0.0, 1.0))
        print(f"{threads} threads, target {target:.0f} x; ", end="")
        print_boxes(box, test)
        pick = [torch.randperm(count)[: given.batch] for _ in range(BATCHES)]
        inside, outside = [train[some] for some in pick], test.split(given.batch)[:BATCHES]
        for name in given.networks:
            repaired = repaired_network(data, name, train[:count], box)
            print(f"  {name}, test images: {compare(repaired, list(outside), given.rounds)}")
            print(f"  {name}, in balls: {compare(repaired, inside, given.rounds)}")
        weight = repaired.bank.stack["linear0.weight"]
        copy = median(seconds(weight.index_select, 0, some) for some in pick)
        print(f"  copy of the weights in balls: {copy * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
