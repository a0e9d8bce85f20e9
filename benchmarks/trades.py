"""TRADES trained on the same points as the kernel allocator: what stands on unseen images.

``ADVREPAIR_DATA=... python -m benchmarks.trades --network fnn_small --points 1000
[--radius 0.1] [--seeds 0,1,2] [--drawdown 0.01,1] [--images 1000] [--epochs 200] [--set lr=0.02]``

The points are training images in the order in which ``benchmarks.generalisation`` takes them:
the 50 that are repaired, then those of a seeded permutation. TRADES (advrepair-baselines) trains
on them, begun with the network's own weights, and on nothing else. Another 2,000 training images
choose the epoch: the one that stands the most attacks, among those that lose at most so much
accuracy on them; a drawdown of 1 is no limit. Printed are the accuracy on all test images, what
is lost of the network's, and what PGD of 40 steps leaves of the first test images at 0.05 and 0.1.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from advrepair.core.attacking import Problem, balls, generator, perturb
from advrepair.core.config import Configuration, resolve
from advrepair.core.data import Data, load_data
from advrepair.core.evaluation import accuracy
from advrepair.core.finding import find_problem
from advrepair.core.graph import Network
from advrepair.core.inputs import Inputs
from advrepair.core.methods import HELD
from advrepair.core.network import load_network
from advrepair.core.options import build
from advrepair.core.registry import Registry
from advrepair.core.remembering import not_repaired
from advrepair.core.tasks import Labelled, MethodResult, Task
from advrepair.core.work import Work
from advrepair.plugins.attacks.pgd import Pgd
from advrepair_baselines.trades import Trades
from benchmarks.generalisation import hits

RADII = (0.05, 0.1)
_AT_ONCE = 250
_REPAIRED = 50
_HELD_FROM = 5000  # what the kernel is fitted by; those here are among them


def task_of(network: Network, data: Data, plan: Configuration, points: int, seed: int) -> Task:
    """The given training images as balls, and others to choose by; seed: of the training."""
    asked = resolve(Registry.load(), [{"problem": {"count": _REPAIRED, "data": "given"}}])
    problem = find_problem(Inputs(network, data, None), asked, Work(), _REPAIRED)
    rest = not_repaired(problem.row, len(data.repair), asked.run.seed)
    chosen = torch.cat([problem.row, rest])[:points]
    given = balls(network, data.repair, chosen, plan.problem.epsilon, (0.0, 1.0))
    last = rest[-_HELD_FROM:][:HELD]
    if bool(torch.isin(last, chosen).any()):
        raise SystemExit(f"--points {points}: too few images are left to choose by")
    known = Problem(given, given.center, chosen)
    return Task(
        network=network,
        properties=known.properties,
        x_adv=known.x_adv,
        owner=known.owner,
        clean=None,
        held=Labelled(data.repair.images(last), data.repair.labels[last]),
        attack=lambda model, asked, start, noise: perturb(plan.attack, model, asked, start, noise),
        prepare=plan.verifier.prepare,
        clip=(0.0, 1.0),
        seed=seed,
    )


def standing(model: torch.nn.Module, network: Network, data: Data, images: int) -> list[float]:
    """Share of the first test images that is right and stays so under PGD-40, at each radius."""
    assert data.test is not None
    found = []
    for radius in RADII:
        asked = balls(network, data.test, torch.arange(images), radius, (0.0, 1.0))
        broken, noise = hits(model, asked, asked.center), generator(0, 21)
        for i in torch.arange(images).split(_AT_ONCE):
            points = perturb(Pgd(steps=40), model, asked[i], asked.center[i], noise)
            broken[i] |= hits(model, asked[i], points)
        found.append(1 - float(broken.float().mean()))
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation in per cent."""
    middle = statistics.mean(values)
    if len(values) < 2:
        return f"{middle:.2%}"
    return f"{middle:.2%} (sd {statistics.stdev(values):.2%})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="fnn_small")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--radius", type=float, default=0.1, help="radius that it is trained at")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--drawdown", default="0.01,1", help="on held-out images, at most")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="OPTION=X")
    given = parser.parse_args()
    data_folder = Path(os.environ["ADVREPAIR_DATA"]) / "mnist"
    network = load_network(data_folder / "nets" / f"{given.network}.onnx")
    shape, dtype = network.input_shape, network.dtype
    data = load_data(data_folder / "mnist.npz", shape, dtype, (0.0, 1.0), network.outputs)
    plan = resolve(Registry.load(), [{"problem": {"data": "given", "epsilon": given.radius}}])
    assert data.test is not None
    theirs = accuracy(network, data.test)
    alone = standing(network, network, data, given.images)
    shown = ", ".join(f"{share:.1%} at {r:g}" for share, r in zip(alone, RADII, strict=True))
    print(f"{given.network}: accuracy {theirs:.2%}; PGD-40 leaves {shown}", flush=True)
    more = dict(text.split("=", 1) for text in given.settings)
    for limit in map(float, given.drawdown.split(",")):
        rows: list[list[float]] = []
        for seed in map(int, given.seeds.split(",")):
            task = task_of(network, data, plan, given.points, seed)
            fixed = {"anchor": "center", "clean": False, "select": "robust", "drawdown": limit}
            method = build(Trades, {"epochs": given.epochs, **fixed, **more}, "trades")
            begin = time.perf_counter()
            result: MethodResult = method.repair(task)
            took = time.perf_counter() - begin
            assert result.model is not None
            ours = accuracy(result.model, data.test)
            rows.append([ours, theirs - ours, *standing(result.model, network, data, given.images)])
            cells = " ".join(f"{value:8.2%}" for value in rows[-1])
            told = {k: result.evidence[k] for k in ("epoch", "held-out drawdown", "collapsed")}
            print(f"  limit {limit:g} seed {seed}: {cells}  {took:.0f} s  {told}", flush=True)
        names = ("accuracy", "DD", *(f"PGD-40 at {r:g}" for r in RADII))
        columns = [list(column) for column in zip(*rows, strict=True)]
        text = "; ".join(f"{n} {spread(c)}" for n, c in zip(names, columns, strict=True))
        print(f"{given.network}, {given.points} points, limit {limit:g}: {text}", flush=True)


if __name__ == "__main__":
    main()
