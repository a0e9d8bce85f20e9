"""Metrics of the deployed function, of the trivial repair, and of the unrepaired network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.attacking import Problem
from advrepair.core.box import Box
from advrepair.core.data import Dataset
from advrepair.core.interfaces import SmoothAllocator
from advrepair.core.patching import RepairedNetwork
from advrepair.core.types import PropertySet

_AT_ONCE = 1000
_DRAWS = 20  # of inputs outside, until there are enough
Rates = dict[str, float | None]


@frozen(eq=False)
class Around:
    """Random inputs in the regions of property files and around them.

    right: inside, where the unrepaired network meets every demand, [n,*S]. outside: in no
    region, [n,*S]. rule: which output a network decides for, a key of DECISIONS.
    """

    right: Tensor
    outside: Tensor
    rule: str

    def rates(self, model: nn.Module, base: nn.Module) -> Rates:
        """fidelity: share of decisions inside that are as before. FDD: that changed outside."""
        changed = self._changed(model, base, self.right)
        return {
            "fidelity": None if changed is None else 1 - changed,
            "FDD": self._changed(model, base, self.outside),
        }

    def _changed(self, model: nn.Module, base: nn.Module, x: Tensor) -> float | None:
        other, decide = 0, DECISIONS[self.rule]
        for part in x.split(_AT_ONCE):
            with torch.no_grad():
                other += int((decide(model(part)) != decide(base(part))).sum())
        return other / len(x) if len(x) else None


def _largest(outputs: Tensor) -> Tensor:
    return outputs.argmax(1)


def _smallest(outputs: Tensor) -> Tensor:
    return outputs.argmin(1)


# Functions with names: what is solved elsewhere refers to them.
DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {"argmax": _largest, "argmin": _smallest}


def inputs_around(
    base: nn.Module,
    properties: PropertySet,
    count: int,
    clip: tuple[float, float] | None,
    rule: str,
    noise: torch.Generator,
) -> Around | None:
    """Random inputs for the boxes without a label; None if every one has a label.

    count: drawn inside all of them together, and kept outside. Outside is where each box is
    three times as wide about its middle, in the input range, without the boxes of any
    property.
    """
    files = (properties.label < 0).nonzero()[:, 0]
    if not len(files):
        return None
    owner = files[torch.arange(count) % len(files)]
    box = properties.box[owner]
    width = box.upper - box.lower
    inside = box.clamp(box.lower + width * _uniform(width, noise))
    with torch.no_grad():
        right = inside[~_broken_anywhere(properties, inside, base(inside))]
    found: list[Tensor] = []
    for _ in range(_DRAWS):
        x = box.lower - width + 3 * width * _uniform(width, noise)
        x = x if clip is None else x.clamp(*clip)
        found.append(x[properties.box.first(x) < 0])
        if sum(map(len, found)) >= count:
            break
    return Around(right, torch.cat(found)[:count], rule)


def _uniform(like: Tensor, noise: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=noise, dtype=like.dtype)


def _broken_anywhere(properties: PropertySet, x: Tensor, y: Tensor) -> Tensor:
    """Inputs that break the demand of any box they lie in: bool [N]."""
    point, owner = properties.box.meets(Box(x, x)).T
    broken = torch.zeros(len(x), dtype=torch.bool)
    broken[point[properties[owner].violated(y[point])]] = True
    return broken


def rates(
    model: nn.Module,
    base: nn.Module,
    problem: Problem,
    unseen: tuple[Tensor, Tensor],
    test: Dataset | None,
) -> Rates:
    """RSR, RGR and DD of one model, as fractions; None where there is nothing to measure on.

    RSR: share of the x_adv that no longer break their property. RGR: the same for other
    counterexamples from the same boxes (unseen: points [N,*S] and their property [N]).
    DD: accuracy of base minus accuracy of model on the test data, both as deployed; a
    negative drawdown is a gain. Paper, section 4.1.
    """
    points, owner = unseen
    return {
        "RSR": _repaired(model, problem, problem.x_adv, problem.owner),
        "RGR": _repaired(model, problem, points, owner),
        "DD": None if test is None else accuracy(base, test) - accuracy(model, test),
    }


def routing(repaired: RepairedNetwork, problem: Problem) -> Rates:
    """Share of queries that the allocator alone, without the boxes, would send right.

    Right: to the property's own patch, and to no patch of another label. ``clean``: the
    centres. ``adversarial``: the x_adv, of which a label indicator sees the wrong label. None
    where no property has a label. Of a smooth allocator: those that it gives their label.
    """
    label = problem.properties.label
    balls = (label >= 0).nonzero()[:, 0]
    if not len(balls):
        return {"clean": None, "adversarial": None}
    serves = torch.zeros(len(repaired.bank), int(label.max()) + 2, dtype=torch.bool)
    serves[repaired.centres.patch, label] = True
    shares: Rates = {}
    examples = (label[problem.owner] >= 0).nonzero()[:, 0]
    queries = {
        "clean": (problem.properties.center, balls, balls),
        "adversarial": (problem.x_adv, examples, problem.owner[examples]),
    }
    for name, (points, chosen, owner) in queries.items():
        right = 0
        for x, index in zip(points[chosen].split(_AT_ONCE), owner.split(_AT_ONCE), strict=True):
            with torch.no_grad():
                seen = repaired.seen(x)
                logits = repaired.tail(seen)
            if isinstance(repaired.allocator, SmoothAllocator):
                with torch.no_grad():
                    outputs = repaired.allocator.outputs(seen, logits, repaired.centres)
                right += int((outputs.argmax(1) == label[index]).sum())
                continue
            gates = repaired.allocator.allocate(seen, logits, repaired.centres)
            own = gates.gather(1, repaired.centres.patch[index, None])[:, 0]
            wrong = (gates.float() @ serves.float()) > 0
            wrong[torch.arange(len(index)), label[index]] = False
            right += int((own & ~wrong.any(1)).sum())
        shares[name] = right / len(owner)
    return shares


def accuracy(model: nn.Module, data: Dataset) -> float:
    """Share of the labels that the largest output gives."""
    right = 0
    for index in torch.arange(len(data)).split(_AT_ONCE):
        with torch.no_grad():
            right += int((model(data.images(index)).argmax(1) == data.labels[index]).sum())
    return right / len(data)


def _repaired(model: nn.Module, problem: Problem, x: Tensor, owner: Tensor) -> float | None:
    right = 0
    for index in torch.arange(len(x)).split(_AT_ONCE):
        with torch.no_grad():
            outputs = model(x[index])
        right += int((~problem.properties[owner[index]].violated(outputs)).sum())
    return right / len(x) if len(x) else None
