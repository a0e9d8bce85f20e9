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


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


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


def compare(repaired: RepairedNetwork, batches: list[Tensor], rounds: int) -> tuple[float, float]:
    """Seconds a batch, of the base and of the repaired network: medians, one call in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + BATCHES):
        x = batches[number % BATCHES]
        for model, times in zip((repaired.base, repaired), taken, strict=True):
            times.append(seconds(lambda model=model, x=x: model(x)))  # type: ignore[misc]
    return median(taken[0][BATCHES:]), median(taken[1][BATCHES:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    data = Path(os.environ["ADVREPAIR_DATA"])
    keep_freed_memory()
    torch.set_grad_enabled(False)
    print(f"torch {torch.__version__}, {platform.machine()}, batch {given.batch}")
    train, test, noise = images(data, "train"), images(data, "test"), torch.Generator()
    for count, target in TARGETS.items():
        box = Box.around(train[:count], EPSILON, clip=(0.0, 1.0))
        torch.set_num_threads(1)
        flat = box.lower.flatten(1), box.upper.flatten(1)
        build = median(seconds(lambda flat=flat: Index.of(*flat)) for _ in range(5))  # type: ignore[misc]
        meets = median(seconds(lambda box=box: box.meets(box)) for _ in range(5))  # type: ignore[misc]
        many = median(seconds(lambda box=box: box.first(test)) for _ in range(5))  # type: ignore[misc]
        print(
            f"{count} balls: index {build * 1e3:.0f} ms, {Index.of(*flat).nbytes / 1e6:.2f} MB; "
            f"boxes among themselves {meets * 1e3:.0f} ms; {len(test)} queries {many * 1e3:.1f} ms"
        )
        noise.manual_seed(0)
        every = (torch.randperm(count, generator=noise)[: given.batch] for _ in range(BATCHES))
        inside = [train[pick] for pick in every]
        outside = [part.clone() for part in test.split(given.batch)[:BATCHES]]
        for name in ("fnn_small", "fnn_big", "cnn"):
            repaired = repaired_network(data, name, train[:count], box)
            weight = repaired.bank.stack["linear0.weight"]
            for threads in given.threads:
                torch.set_num_threads(threads)
                for kind, batches in (("test images", outside), ("in balls", inside)):
                    base, whole = compare(repaired, batches, given.rounds)
                    print(
                        f"  {name}, {threads} threads, {kind}: base {base * 1e3:.3f} ms, repaired "
                        f"{whole * 1e3:.3f} ms: {whole / base:.2f} x (target {target:.0f} x)"
                    )
                pick = [torch.randperm(count, generator=noise)[: given.batch] for _ in range(20)]
                copy = median(
                    seconds(lambda i=i, weight=weight: weight.index_select(0, i))  # type: ignore[misc]
                    for i in pick
                )
                print(f"  {name}, {threads} threads, copy: {copy * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
