"""What training proved is kept; it is about the weights and the pieces that are stored."""

import pytest
import torch
from attrs import evolve
from problems import Mixed, a_network, a_problem, some_parts

from advrepair.core import sections
from advrepair.core.constant import constant_patches
from advrepair.core.solving import prove
from advrepair.core.training import Trained, train
from advrepair.core.types import SplitPlan
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.refiners.gradient_width import GradientWidth


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("indicator", [PropertyGuided(), Mixed()])
@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"scale": False, "optimiser": "adam", "lr": 0.05},
        {"epochs": 2, "rounds": 6, "split": 2},
        {"epochs": 3, "rounds": 8, "split": 1, "margin": 0.001},
        {"epochs": 1, "rounds": 2, "split": 1, "fallback": False},
    ],
)
def test_a_kept_proof_is_about_what_is_stored(double, indicator, budget):
    network, problem = a_network(), a_problem()
    if double:
        asked, network = problem.properties, network.double()
        wide = evolve(asked, box=asked.box.to(torch.float64), center=asked.center.double())
        problem = evolve(problem, properties=wide, x_adv=problem.x_adv.double())
    parts = some_parts(problem, network, hidden=(5,), indicator=indicator)
    kept = Trained.nothing_yet(len(parts.bank))
    given = sections.Training(**budget)
    train(parts.bank, parts.worklist, parts.bounder, GradientWidth(), given, kept)
    margin, slope = prove(parts.bank, parts.worklist, parts.bounder, kept)
    nothing = Trained.nothing_yet(len(parts.bank))
    again, used = prove(parts.bank, parts.worklist, parts.bounder, nothing)
    assert torch.allclose(margin, again, rtol=1e-9, atol=1e-9) and torch.equal(slope, used)
    proved = [node for nodes, _, _ in kept.proofs for node in nodes.tolist()]
    assert len(proved) == len(set(proved)) and set(proved) <= set(parts.worklist.node.tolist())


def test_a_kept_proof_of_a_piece_that_was_cut_later_is_refused():
    parts = some_parts()
    kept = Trained.nothing_yet(len(parts.bank))
    given = sections.Training()
    train(parts.bank, parts.worklist, parts.bounder, GradientWidth(), given, kept)
    assert any(len(nodes) for nodes, _, _ in kept.proofs)
    parts.worklist.split(SplitPlan(torch.arange(6), torch.zeros(6).long()), parts.bounder)
    with pytest.raises(ValueError, match="cut"):
        prove(parts.bank, parts.worklist, parts.bounder, kept)


def test_padding_of_patches_that_are_proved_together_is_not_kept():
    parts = some_parts()
    parts.worklist.split(SplitPlan(torch.tensor([0, 3]), torch.tensor([1, 2])), parts.bounder)
    parts.worklist.split(SplitPlan(torch.tensor([4]), torch.tensor([0])), parts.bounder)
    stack, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    assert proved.all()
    parts.bank.put(torch.arange(6), stack)
    kept, budget = Trained.nothing_yet(6), sections.Training(margin=1e-6)
    train(parts.bank, parts.worklist, parts.bounder, GradientWidth(), budget, kept)
    nodes = torch.cat([nodes for nodes, _, _ in kept.proofs])
    assert kept.epochs.sum() == 0 and len(nodes) == len(nodes.unique()) == 9
    margin, _ = prove(parts.bank, parts.worklist, parts.bounder, kept)
    assert torch.allclose(margin, parts.margins(), rtol=1e-9, atol=1e-9)
