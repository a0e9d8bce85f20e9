"""How small and how specific patches are, before and after, and beside the optimum.

``ADVREPAIR_DATA=... python -m benchmarks.intrusion [--networks fnn_small] [--boxes 10]``

A line for every network, shape of patch and objective: certified share; the largest output over
the box, and the mean of the largest output on test images with another label, both in units of
the least largest output that any patch can have (half of what N's rows lack); the share of test
images with another label that are sent to the label, for N alone too; drawdown as deployed; then
of N plus all patches at once, without routing: drawdown, RSR and RGR; CPU-seconds of bounds,
training and proof. --boxes: for so many boxes of fnn_small with affine patches, a linear program
says what the least is. Targets: 5 % forced, 1.5 times the optimum, 3 times the CPU-seconds.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core import pipeline
from advrepair.core.attacking import Problem
from advrepair.core.bounding import Batch, Bounder
from advrepair.core.config import Configuration, resolve
from advrepair.core.data import Dataset
from advrepair.core.finding import find_problem, make_bounder
from advrepair.core.inputs import read_inputs
from advrepair.core.patching import RepairedNetwork
from advrepair.core.registry import Registry
from advrepair.core.types import LinearBound
from advrepair.core.work import Work, silent

NETWORKS = ("fnn_small", "cnn")
SHAPES: tuple[tuple[int, ...], ...] = ((), (2,), (64, 64, 16))
IMAGES, SAMPLE, AT_ONCE, SLACK = 2000, 64, 64, 1e-3
FORCED, RATIO, TIMES = 0.05, 1.5, 3.0


@frozen(eq=False)
class Case:
    """One repair. least: [P], the least that a patch's largest output can be."""

    bounder: Bounder
    problem: Problem
    repair: pipeline.Repair
    test: Dataset
    least: Tensor

    @property
    def network(self) -> RepairedNetwork:
        """The deployed function; patch i serves property i."""
        return self.repair.network

    def outputs(self, x: Tensor, which: slice) -> Tensor:
        """Of some patches on inputs, [q,n,K]."""
        bank = self.network.bank
        stack = {name: t[which] for name, t in bank.stack.items()}
        with torch.no_grad():
            return torch.func.vmap(bank.template.apply_tensors, (0, None))(stack, x)

    def largest(self) -> Tensor:
        """Upper bounds of |P| over the boxes, [P]: exact for affine and for constant patches.

        Sound, up to rounding: the verifier bounds every output and its negative from below.
        """
        box, outputs = self.problem.properties.box, self.network.base.outputs
        sides = torch.cat([torch.eye(outputs), -torch.eye(outputs)])
        C = sides.expand(len(box), -1, -1)
        nothing = LinearBound(C.new_zeros(0), C.new_zeros(0))
        group = torch.zeros(len(box), len(sides), dtype=torch.long)
        batch = Batch(box, nothing, C, group, torch.ones(len(box), 1, dtype=torch.bool))
        with torch.no_grad():
            bound = self.bounder.patched(self.network.bank.stack, batch)
        return (-bound.minimum(box)).amax(1)


def repaired(case: tuple[str, str, int], layer: dict[str, dict[str, Any]]) -> Case:
    """Repair the first counterexamples of a network as the layer says."""
    name, radius, count = case
    data = Path(os.environ["ADVREPAIR_DATA"]) / "mnist"
    asked = {
        "network": str(data / "nets" / f"{name}.onnx"),
        "data": str(data / "mnist.npz"),
        "epsilon": radius,
        "count": count,
    }
    plan: Configuration = resolve(Registry.load(), [{"problem": asked}, layer])
    inputs, work = read_inputs(plan.problem), Work(silent)
    if inputs.data is None or inputs.data.test is None:
        raise SystemExit("mnist.npz has no test data")
    problem = find_problem(inputs, plan, work, count)
    result = pipeline.repair(inputs.network, problem, plan, work, inputs.data.test)
    least = (-result.evaluation["margin"]).clamp(min=0) / 2
    return Case(make_bounder(inputs.network, plan), problem, result, inputs.data.test, least)


def figures(case: Case) -> dict[str, float]:
    """Everything that a line shows, as fractions and ratios."""
    index = torch.arange(min(IMAGES, len(case.test)))
    x, y = case.test.images(index), case.test.labels[index]
    x_adv, owner = case.problem.x_adv, case.problem.owner
    unseen, whose = (case.repair.evaluation[key] for key in ("unseen", "unseen.property"))
    network, label = case.network, case.problem.properties.label
    with torch.no_grad():
        base = [network.base(part) for part in (x, x_adv, unseen)]
    sums, forced, alone, size, total = [*base], 0, 0, 0.0, 0
    for begin in range(0, len(label), AT_ONCE):
        which = slice(begin, begin + AT_ONCE)
        patch, other = case.outputs(x, which), y != label[which, None]
        forced += int((((patch + base[0]).argmax(2) == label[which, None]) & other).sum())
        alone += int(((base[0].argmax(1) == label[which, None]) & other).sum())
        size += float((patch.abs().amax(2) / case.least[which, None])[other].sum())
        total += int(other.sum())
        for i, part in enumerate((x, x_adv, unseen)):
            sums[i] = sums[i] + (patch if i == 0 else case.outputs(part, which)).sum(0)
    report = case.repair.report
    rate = [
        float((each.argmax(1) == want).double().mean())
        for each, want in zip([base[0], *sums], (y, y, label[owner], label[whose]), strict=True)
    ]
    ratio = case.largest() / case.least.float()
    return {
        "certified": report["properties"]["certified"] / report["properties"]["total"],
        "mean": float(ratio.mean()),
        "most": float(ratio.max()),
        "elsewhere": size / total,
        "forced": forced / total,
        "alone": alone / total,
        "DD": report["metrics"]["DD"],
        "sum DD": rate[0] - rate[1],
        "sum RSR": rate[2],
        "sum RGR": rate[3],
        "cpu": sum(report["cpu"].values()),
    }


HEADER = (
    f"{'network':<10}{'hidden':>11} {'objective':<10}{'certified':>10}{'max|P| mean, most':>19}"
    f"{'elsewhere':>11}{'forced, by N':>17}{'DD':>8} | sum: "
    f"{'DD':>7}{'RSR':>8}{'RGR':>8} |{'CPU-s':>7}"
)


def line(name: str, hidden: tuple[int, ...], objective: str, found: dict[str, float]) -> str:
    """The figures of one repair."""
    shape = "[" + ",".join(map(str, hidden)) + "]"
    return (
        f"{name:<10}{shape:>11} {objective:<10}{found['certified']:>10.1%}{found['mean']:>10.3g}"
        f"{found['most']:>9.3g}{found['elsewhere']:>11.3g}{found['forced']:>9.2%}"
        f"{found['alone']:>8.2%}{found['DD']:>8.2%} |      {found['sum DD']:>7.1%}"
        f"{found['sum RSR']:>8.1%}{found['sum RGR']:>8.1%} |{found['cpu']:>7.2f}"
    )


def verdict(before: dict[str, float], after: dict[str, float]) -> str:
    """Whether the targets are met by what one shape of patch became."""
    times = after["cpu"] / before["cpu"]
    goals = {
        f"forced {after['forced']:.2%}": after["forced"] < FORCED,
        f"max|P| {after['most']:.2f}": after["most"] <= RATIO,
        f"certified {after['certified']:.1%}": after["certified"] >= before["certified"],
        f"time x {times:.2f}": times <= TIMES,
    }
    return "    " + "; ".join(f"{k}: {'met' if good else 'missed'}" for k, good in goals.items())


def compare(radius: str, boxes: int) -> None:
    """Lines for affine patches beside the optimum of the same goal on the same inputs."""
    case = repaired(("fnn_small", radius, boxes), {"training": {"objective": "intrusion"}})
    if case.problem.others is None:
        raise SystemExit("no other inputs")
    index = torch.arange(min(IMAGES, len(case.test)))
    x, y = case.test.images(index), case.test.labels[index]
    print(
        "box: goal on a sample, optimum and ours; then of each on test images: max|P|, mean |P|, "
        "their sum, forced"
    )
    ratios = []
    for i in range(boxes):
        found = _beside(case, i, case.problem.others[0][:SAMPLE], x, y)
        if found is not None:
            ratios.append(found[0])
        print(f"{i:>3}: " + ("no optimum found" if found is None else found[1]), flush=True)
    if ratios:
        most, mean = max(ratios), sum(ratios) / len(ratios)
        word = "met" if most <= RATIO else "missed"
        print(f"goal over the optimum: mean {mean:.3f}, most {most:.3f}; {RATIO:g}: {word}")


def _beside(case: Case, i: int, others: Tensor, x: Tensor, y: Tensor) -> tuple[float, str] | None:
    """Our goal over the optimum for one box, and the line of both."""
    from benchmarks.intrusion_lp import least_intrusion

    asked, one = case.problem.properties, torch.tensor([i])
    rows = case.bounder.base(asked.box[one], asked.C[one], asked.d[one], rigorous=True)
    lower, upper = (t[i].double().flatten().numpy() for t in (asked.box.lower, asked.box.upper))
    sample, images = (t.double().flatten(1).numpy() for t in (others, x))
    A, b, C = rows.A[0].flatten(1).numpy(), rows.b[0].numpy(), asked.C[i].double().numpy()
    found = least_intrusion(A, b, C, (lower, upper), sample, SLACK)
    if found is None:
        return None
    which, unit = slice(i, i + 1), float(case.least[i])
    ours, there = (case.outputs(part, which)[0].double() for part in (x, others))
    theirs = torch.from_numpy(found(images, (lower + upper) / 2))
    tops = (found.largest((upper - lower) / 2), float(case.largest()[i]))
    goal = tops[1] + float(there.abs().amax(1).mean())
    text = f"{found.value / unit:6.3f}{goal / unit:7.3f}"
    with torch.no_grad():
        base = case.network.base(x).double()
    for top, patch in zip(tops, (theirs, ours), strict=True):
        mean, other = float(patch.abs().amax(1).mean()), y != asked.label[i]
        share = ((base + patch).argmax(1) == asked.label[i])[other].double().mean()
        text += f" |{top / unit:7.3f}{mean / unit:7.3f}{(top + mean) / unit:7.3f}{share:8.2%}"
    return goal / found.value, text


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--radius", default="0.1")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--boxes", type=int, default=0, help="compared with the optimum")
    parser.add_argument("--paper", action="store_true", help="patches by the preset paper, too")
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    torch.set_num_threads(1)
    print(HEADER, flush=True)
    for name in [each for each in given.networks.split(",") if each]:
        which = (name, given.radius, given.count)
        if given.paper:
            found = figures(repaired(which, {"run": {"preset": "paper"}}))
            print(line(name, SHAPES[-1], "paper", found), flush=True)
        for hidden in SHAPES:
            pair = []
            for objective in ("margin", "intrusion"):
                layer = {"patch": {"hidden": list(hidden)}, "training": {"objective": objective}}
                pair.append(figures(repaired(which, layer)))
                print(line(name, hidden, objective, pair[-1]), flush=True)
            print(verdict(*pair), flush=True)
    if given.boxes:
        compare(given.radius, given.boxes)


if __name__ == "__main__":
    main()
