"""Metrics of the deployed function, of the trivial repair, and of the unrepaired network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advrepair.core.attacking import Problem
from advrepair.core.data import Dataset
from advrepair.core.patching import RepairedNetwork

_AT_ONCE = 1000
Rates = dict[str, float | None]


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
        "RSR": _repaired(model, problem, problem.x_adv, torch.arange(len(problem.properties))),
        "RGR": _repaired(model, problem, points, owner),
        "DD": None if test is None else accuracy(base, test) - accuracy(model, test),
    }


def routing(repaired: RepairedNetwork, problem: Problem) -> Rates:
    """Share of queries that the allocator alone, without the boxes, would send right.

    Right: to the property's own patch, and to no patch of another label. ``clean``: the
    centres. ``adversarial``: the x_adv, of which a label indicator sees the wrong label.
    """
    label = problem.properties.label
    serves = torch.zeros(len(repaired.bank), int(label.max()) + 2, dtype=torch.bool)
    serves[repaired.centres.patch, label] = True
    shares: Rates = {}
    for name, x in (("clean", problem.properties.center), ("adversarial", problem.x_adv)):
        right = 0
        for index in torch.arange(len(x)).split(_AT_ONCE):
            with torch.no_grad():
                logits = repaired.base(x[index])
                gates = repaired.allocator.allocate(x[index], logits, repaired.centres)
            own = gates.gather(1, repaired.centres.patch[index, None])[:, 0]
            wrong = (gates.float() @ serves.float()) > 0
            wrong[torch.arange(len(index)), label[index]] = False
            right += int((own & ~wrong.any(1)).sum())
        shares[name] = right / len(x)
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
