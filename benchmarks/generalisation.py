"""Unseen inputs under attack: a kernel allocator, what is proved of it, and N beside it.

``ADVREPAIR_DATA=... python -m benchmarks.generalisation --network fnn_small --points 10000
[--copies 1] [--drawdown 0] [--images 1000] [--radii 0.05,0.1] [--attacks pgd,autoattack]``

50 balls are repaired as usual, and the allocator remembers so many training images, which it is
fitted to; test images take no part in that. Accuracy is that on all test images. The attacked are
the first of them. From left to right: the share that is right, and what of it each attack leaves
after those before it: PGD of 40 steps, points found on N alone, PGD that goes through the ramp as
if it were straight, PGD of 200 steps with 5 restarts, and full standard AutoAttack. The last
columns say what none of them breaks and what is proved for the whole ball, with 95 % intervals.
Only the first two attacks are tried on what is proved: a hit there would be an error of the proof,
and ends the program.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from advrepair.core.attacking import balls, generator, perturb
from advrepair.core.bounding import Bounder
from advrepair.core.config import parse_setting, resolve
from advrepair.core.data import Data, load_data
from advrepair.core.evaluation import accuracy
from advrepair.core.finding import find_problem, make_bounder
from advrepair.core.graph import Network
from advrepair.core.inputs import Inputs
from advrepair.core.interfaces import Attack
from advrepair.core.network import load_network
from advrepair.core.patching import RepairedNetwork
from advrepair.core.pipeline import Repair, repair
from advrepair.core.registry import Registry
from advrepair.core.statistics import Share
from advrepair.core.types import PropertySet
from advrepair.core.unseen import least_margins
from advrepair.core.work import Work
from advrepair.plugins.allocators.density import Density, trusted
from advrepair.plugins.attacks.autoattack import AutoAttack
from advrepair.plugins.attacks.pgd import Pgd

_AT_ONCE = 250
_ON_ALL = ("pgd", "transfer")  # the others on what is neither broken nor proved yet


class _Straight(torch.autograd.Function):
    """A ramp whose gradient is that of a straight line (arXiv 1802.00420)."""

    @staticmethod
    def forward(ctx: object, x: Tensor, density: Density) -> Tensor:
        return density.ramp(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Straight(nn.Module):
    """F outside the boxes, with that gradient."""

    def __init__(self, repaired: RepairedNetwork) -> None:
        super().__init__()
        self.base, self.trust = repaired.base, repaired.allocator.trust  # type: ignore[attr-defined]
        self.seen = repaired.seen
        self.density = Density.of(repaired.centres.fitted, repaired.base.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N,K]."""
        r: Tensor = _Straight.apply(self.seen(x).flatten(1), self.density)
        known = self.density.of_features(r @ self.density.map)
        return trusted(self.base(x), self.trust) + self.density.weight * known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is repaired, and what the allocator remembers."""
    parser.add_argument("--network", default="fnn_small")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--drawdown", type=float, default=0.0)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epsilon", type=float, default=0.1, help="radius that the fit attacks at")
    parser.add_argument("--set", action="append", default=[], dest="settings")


def repair_of(given: argparse.Namespace) -> tuple[Repair, Data]:
    """A repair of 50 balls with the kernel as allocator, and the images."""
    names = ("points", "copies", "drawdown")
    settings = [f"kernel.{name}={getattr(given, name)}" for name in names] + given.settings
    layers = [
        {
            "problem": {"epsilon": given.epsilon, "count": 50, "data": "given"},
            "plan": {"allocator": "kernel"},
        }
    ]
    plan = resolve(Registry.load(), [*layers, *map(parse_setting, settings)])
    data = Path(os.environ["ADVREPAIR_DATA"]) / "mnist"
    base = load_network(data / "nets" / f"{given.network}.onnx")
    images = load_data(data / "mnist.npz", base.input_shape, base.dtype, (0.0, 1.0), base.outputs)
    work, begin = Work(), time.perf_counter()
    problem = find_problem(Inputs(base, images, None), plan, work, 50)
    found = repair(base, problem, plan, work, images.test, images.repair)
    # The same numbers, which attacks of thousands of steps need not convert at each of them.
    fitted = found.network.centres.fitted
    fitted["points"] = fitted["points"].float()
    print(f"{given.network}: repaired and fitted in {time.perf_counter() - begin:.0f} s")
    print(f"  {found.report['allocator']['fitted']}", flush=True)
    return found, images


def hits(model: nn.Module, asked: PropertySet, points: Tensor) -> Tensor:
    """Which properties points break: bool [P]."""
    found = []
    for index in torch.arange(len(asked)).split(_AT_ONCE):
        with torch.no_grad():
            found.append(asked[index].violated(model(points[index])))
    return torch.cat(found)


def attacks_on(model: nn.Module, names: list[str]) -> list[tuple[str, Attack, nn.Module]]:
    """Name, attack and the function that it descends on, in their order."""
    known: list[tuple[str, Attack, nn.Module]] = [("pgd", Pgd(steps=40), model)]
    if isinstance(model, RepairedNetwork):
        known.append(("transfer", Pgd(steps=40), model.base))
        known.append(("through", Pgd(steps=40, restarts=2), Straight(model)))
    known.append(("pgd-200x5", Pgd(steps=200, restarts=5), model))
    known.append(("autoattack", AutoAttack(), model))
    return [each for each in known if each[0] in names]


def row(
    model: Network | RepairedNetwork,
    bounder: Bounder,
    asked: PropertySet,
    names: list[str],
    told: str,
) -> str:
    """One row of the table."""
    begin = time.perf_counter()
    proved = least_margins(model, bounder, asked) > 0
    took = (time.perf_counter() - begin) / len(asked)
    print(f"  {told}: {int(proved.sum())} proved, {1000 * took:.1f} ms each", flush=True)
    broken, noise = hits(model, asked, asked.center), generator(0, 21)
    cells = [f"{1 - float(broken.float().mean()):.1%}"]
    for name, attack, target in attacks_on(model, names):
        begin = time.perf_counter()
        open_ = torch.ones_like(broken) if name in _ON_ALL else ~broken & ~proved
        index = open_.nonzero()[:, 0]
        for i in index.split(_AT_ONCE):
            points = perturb(attack, target, asked[i], asked.center[i], noise)
            broken[i] |= hits(model, asked[i], points)
        took = time.perf_counter() - begin
        cells.append(f"{1 - float(broken.float().mean()):.1%}")
        left = int((~broken).sum())
        print(f"  {told} {name} on {len(index)}: {left} left, {took:.0f} s", flush=True)
    if bool((proved & broken).any()):
        raise SystemExit("a proved ball was broken: a bound is wrong")
    shares = [Share(int(each.sum()), len(each)) for each in (~broken, proved)]
    for share in shares:
        low, high = share.interval or (0.0, 1.0)
        cells.append(f"{share.value:.1%} ({low:.1%} to {high:.1%})")
    return f"| {told} | " + " | ".join(cells) + " |"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--radii", default="0.05,0.1")
    parser.add_argument("--attacks", default="pgd,transfer,through,pgd-200x5,autoattack")
    parser.add_argument("--unrepaired", action="store_true", help="attack N too")
    given = parser.parse_args()
    names = given.attacks.split(",")
    found, data = repair_of(given)
    model, base, test = found.network, found.network.base, data.test
    assert test is not None
    begin = time.perf_counter()
    ours = accuracy(model, test)
    took = 1000 * (time.perf_counter() - begin) / len(test)
    theirs = accuracy(base, test)
    print(
        f"  accuracy {ours:.2%}, of N {theirs:.2%}, DD {theirs - ours:+.2%}; {took:.2f} ms a query"
    )
    plan = resolve(Registry.load(), [{"problem": {"data": "given"}, "patch": {"at": model.at}}])
    bounder = make_bounder(base, plan, model)
    subjects: list[tuple[str, Network | RepairedNetwork]] = [("F", model)]
    subjects += [("N", base)] if given.unrepaired else []
    for radius in map(float, given.radii.split(",")):
        asked = balls(base, test, torch.arange(given.images), radius, (0.0, 1.0))
        for name, function in subjects:
            print(row(function, bounder, asked, names, f"{name} {radius:g}"), flush=True)


if __name__ == "__main__":
    main()
