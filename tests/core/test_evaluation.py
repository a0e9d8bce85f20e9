"""Rates: of whom, on what, and nothing invented."""

import pytest
import torch
from problems import a_network, a_problem, some_data, zero_bank
from torch import nn

from advrepair.core import evaluation
from advrepair.core.attacking import generalisation_set
from advrepair.core.data import make_dataset
from advrepair.core.evaluation import accuracy, rates, routing
from advrepair.core.patching import attach, patch_template
from advrepair.core.types import Regions
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.plugins.indicators.untargeted_label import UntargetedLabel


class Answers(nn.Module):
    """Gives known inputs known labels, others label 0."""

    def __init__(self, x, label):
        super().__init__()
        self.x, self.label = x, label

    def forward(self, x):
        same = (x[:, None] == self.x[None]).flatten(2).all(2)
        label = (same * self.label).sum(1).clamp(max=3)
        return nn.functional.one_hot(label, 4).float()


def test_each_rate_is_a_share_of_its_own_points():
    network, problem = a_network(), a_problem()
    points, owner = generalisation_set(network, problem, Pgd(), 3, 0, lambda more: None)
    label = problem.properties.label
    assert (label > 0).sum() >= 3  # label 0 is what others get
    chosen = label.nonzero()[:2, 0]
    extra = (label[owner] > 0).nonzero()[:3, 0]
    model = Answers(
        torch.cat([problem.x_adv[chosen], points[extra]]),
        torch.cat([label[chosen], label[owner[extra]]]),
    )
    zeros, zero_points = int((label == 0).sum()), int((label[owner] == 0).sum())
    found = rates(model, network, problem, (points, owner), None)
    assert found["RSR"] == pytest.approx((2 + zeros) / 6)
    assert found["RGR"] == pytest.approx((3 + zero_points) / len(points))
    assert found["DD"] is None


def test_no_points_no_rate():
    network, problem = a_network(), a_problem()
    nothing = (problem.x_adv[:0], torch.arange(0))
    found = rates(network, network, problem, nothing, None)
    assert found == {"RSR": 0.0, "RGR": None, "DD": None}


@pytest.mark.parametrize("chunk", [7, 1000])
def test_drawdown_is_what_is_lost(chunk, monkeypatch):
    monkeypatch.setattr(evaluation, "_AT_ONCE", chunk)
    network, problem = a_network(), a_problem()
    x, y = some_data(40)
    y = y.clone()
    y[:8] = (y[:8] + 1) % 4  # 80 % accuracy
    test = make_dataset("x_test", x.numpy(), y.numpy(), (6,), x.dtype, None, 4)
    assert accuracy(network, test) == pytest.approx(0.8)
    model = Answers(x, y)
    assert accuracy(model, test) == 1.0
    same = (problem.x_adv, torch.arange(6))
    assert rates(model, network, problem, same, test)["DD"] == pytest.approx(-0.2)
    assert rates(network, model, problem, same, test)["DD"] == pytest.approx(0.2)


def test_a_tie_is_not_repaired():
    problem = a_problem()

    class Undecided(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 4)

    same = (problem.x_adv, torch.arange(6))
    found = rates(Undecided(), a_network(), problem, same, None)
    assert found == {"RSR": 0.0, "RGR": 0.0, "DD": None}


@pytest.mark.parametrize("allocator", [NoAllocator(), LabelPair(), Cosine(top=1)])
def test_routing_counts_what_the_allocator_alone_would_send_right(allocator):
    network, problem = a_network(), a_problem()
    properties = problem.properties
    assignment = UntargetedLabel().assign(properties)
    bank = zero_bank(patch_template(network, ()), len(assignment))
    regions = Regions(properties.box, assignment.patch)
    repaired = attach(network, properties, regions, assignment, allocator, bank)
    found = routing(repaired, problem)
    for name, x in (("clean", properties.center), ("adversarial", problem.x_adv)):
        gates = allocator.allocate(x, network(x), repaired.centres)
        alone = gates.sum(1) == 1  # a patch is a label here
        own = gates[torch.arange(6), repaired.patch]
        assert found[name] == pytest.approx((alone & own).double().mean().item())
    if allocator == NoAllocator():
        assert found == {"clean": 0.0, "adversarial": 0.0}
    if allocator == Cosine(top=1):
        assert found == {"clean": 1.0, "adversarial": 0.0}
