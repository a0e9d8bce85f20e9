"""Branch and bound decides: what holds is proved, what does not is refuted by an input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import a_network, some_parts, the_balls

from advrepair import checker
from advrepair.core import artefacts, branching, files
from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.branching import BranchAndBound, Decision
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network, Operation
from advrepair.core.patching import patch_template
from advrepair.core.rounding import Rounding
from advrepair.core.types import PropertySet, Status
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound as Complete
from advrepair.testing.cases import make_case
from advrepair.testing.networks import tiny
from advrepair.testing.oracle import exact_minimum


def demand(box: Box, C: torch.Tensor, d: torch.Tensor, group: torch.Tensor) -> PropertySet:
    none = torch.full((len(box),), -1)
    names = tuple(f"p{i}" for i in range(len(box)))
    return PropertySet(box, C, d, group, none, none, box.lower, names)


def searched(network: Network, asked: PropertySet, verifier: Complete, level="real") -> Decision:
    """The decision about the network itself: its patch adds nothing."""
    template = patch_template(network, ())
    bounder = Bounder(network, template, verifier, verifier, Rounding(level), 2**31)
    return BranchAndBound(bounder, verifier).decide(
        asked, asked.box, template.tensors, network, lambda x: True
    )


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(1, 2), st.sampled_from(["inputs", "relus"]), st.booleans()
)
@example(3, 2, "relus", True)
def test_it_decides_what_the_oracle_knows(seed, inputs, cuts, holds):
    """The exact minimum over a wide box, a hundredth above or below zero."""
    case = make_case("tiny", tiny(seed, inputs), ("wide",), 1, seed)
    exact = float(exact_minimum(case.network, case.box, case.C, case.d)[0][0])
    scale = 1e-2 * (1 + abs(exact))
    d = (case.d - exact + (scale if holds else -scale)).float()
    box = Box(case.box.lower.float(), case.box.upper.float())
    asked = demand(box, case.C.float(), d, torch.zeros(1, 1, dtype=torch.long))
    found = searched(case.network, asked, Complete(cuts=cuts, pieces=3000))
    if holds:
        assert found.counterexample is None and found.leaves is not None
        assert bool((found.leaves.margin > 0).all())
    else:
        assert found.leaves is None and found.counterexample is not None
        x = found.counterexample
        assert bool(asked.box.holds(x[None])) and bool(asked.violated(case.network(x[None])))


def test_a_demand_that_any_of_two_rows_meets():
    """max(y, -y) > -1 needs both rows: neither holds everywhere."""
    case = make_case("tiny", tiny(5, 2), ("wide",), 1, 5)
    box = Box(case.box.lower.float(), case.box.upper.float())
    C = torch.cat([case.C, -case.C], 1).float()
    middle = float(case.rows(box.center.double()[:, None])[0, 0, 0] - case.d)
    d = torch.tensor([[0.3 - middle, 0.3 + middle]])
    one_group = torch.zeros(1, 2, dtype=torch.long)
    for cuts in ("inputs", "relus"):
        found = searched(case.network, demand(box, C, d, one_group), Complete(cuts=cuts))
        assert found.leaves is not None and len(found.leaves) > 1
    two = demand(box, C, d, torch.tensor([[0, 1]]))
    assert searched(case.network, two, Complete()).counterexample is not None


def test_too_few_pieces_decide_nothing():
    case = make_case("tiny", tiny(5, 2), ("wide",), 1, 5)
    box = Box(case.box.lower.float(), case.box.upper.float())
    exact = float(exact_minimum(case.network, case.box, case.C, case.d)[0][0])
    d = (case.d - exact + 1e-6).float()
    asked = demand(box, case.C.float(), d, torch.zeros(1, 1, dtype=torch.long))
    found = searched(case.network, asked, Complete(pieces=2, steps=0))
    assert found.leaves is None and found.counterexample is None


def open_parts(verifier, hidden=(), level="deployed-float32", epsilon=0.02):
    """Balls of a network without any repair: most are true, some cannot be seen at once."""
    network = a_network()
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(4))
    every = the_balls(network, x, network(x).argmax(1), epsilon)
    problem = Problem(every, x, torch.arange(60))
    return some_parts(problem, network, hidden, verifier=verifier, certifier=verifier, level=level)


def undecided(found):
    """Neither proved on its own, whatever comes first where boxes overlap, nor refuted."""
    return [i for i, m in enumerate(found.margin) if not m > 0 and i not in found.counterexample]


def saved(parts, found, folder):
    folder.mkdir()
    artefacts.write_repaired(folder / "repaired.safetensors", parts.repaired)
    artefacts.write_certificate(folder, found, parts.properties, parts.repaired)
    return folder


@pytest.mark.parametrize("cuts", ["inputs", "relus"])
@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize("attack", [None, Pgd()], ids=["alone", "attack"])
def test_every_property_is_decided_and_checked_again(cuts, hidden, attack, tmp_path):
    parts = open_parts(Complete(cuts=cuts), hidden, epsilon=0.12)
    if hidden:  # a patch that does something, so that its ReLUs are cut too
        generator = torch.Generator().manual_seed(0)
        stack = parts.repaired.bank.stack
        random = {n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in stack.items()}
        parts.repaired.bank.put(torch.arange(60), random)
    plain = some_parts(parts.problem, a_network(), hidden)
    plain.repaired.bank.put(torch.arange(60), parts.repaired.bank.stack)

    def state(of):
        return of.certificate(attack)

    found, before = state(parts), state(plain)
    assert undecided(before) and not undecided(found)
    assert found.count(Status.CERTIFIED) > before.count(Status.CERTIFIED)
    assert found.count(Status.FALSIFIED) > 3
    pieces = torch.bincount(found.proof.owner, minlength=60)
    assert bool((pieces[60 - 1 :] > 0).all()) and len(found.proof.owner) > 60
    if cuts == "relus":
        assert (found.proof.multipliers or hidden) and max(found.proof.tree.dim) >= 6
    folder = saved(parts, found, tmp_path / "run")
    verdict = checker.check(folder)
    assert verdict.word == "VALID", verdict.line
    assert verdict.certified == found.count(Status.CERTIFIED)


def test_a_counterexample_is_kept_and_can_be_replayed(tmp_path):
    parts = open_parts(Complete(), epsilon=0.15)
    found = parts.certificate()
    falsified = [i for i, status in enumerate(found.status) if status is Status.FALSIFIED]
    assert falsified == sorted(found.counterexample) and len(falsified) > 3
    folder = saved(parts, found, tmp_path / "run")
    arrays, _ = files.read_tensors(folder / "certificate.safetensors")
    assert arrays["counterexample.property"].tolist() == falsified
    for index, x in zip(falsified, arrays["counterexample.x"], strict=True):
        asked = parts.properties[torch.tensor([index])]
        assert bool(asked.box.holds(x[None])[0])
        assert bool(asked.violated(parts.repaired(x[None]))[0])


def test_what_the_deployed_function_does_not_confirm_is_no_counterexample():
    """Wrong in company, right alone: as if another order of summation decided.

    The search goes on, and what it can prove, it proves.
    """
    parts = open_parts(Complete(pieces=40), epsilon=0.12)
    honest, asked, calls = parts.repaired.forward, parts.properties, []
    plain = parts.certificate()

    def moody(x):
        calls.append(len(x))
        if len(x) == 1:
            return honest(x)
        label = asked.label[parts.repaired.box.first(x)]
        return 0 * honest(x) - torch.nn.functional.one_hot(label, 4)

    parts.repaired.forward = moody
    found = parts.certificate(Pgd())
    assert 1 in calls and found.count(Status.CERTIFIED) == plain.count(Status.CERTIFIED) > 0
    for index, x in found.counterexample.items():
        one = asked[torch.tensor([index])]
        assert bool(one.violated(honest(x[None]))[0])


def test_at_level_real_rounding_refutes_nothing():
    """relu(x + 2^60) - 2^60 is x, and 0 in every arithmetic at hand."""
    shift = torch.tensor([2.0**60], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    operations = [
        Operation("a", "linear", ("input",), (1,), {"weight": "W", "bias": "up"}),
        Operation("r", "relu", ("a",), (1,)),
        Operation("b", "linear", ("r",), (1,), {"weight": "W", "bias": "down"}),
    ]
    network = Network(operations, {"W": one, "up": shift, "down": -shift}, (1,))
    box = Box(one.clone(), 2 * one)
    found = {}
    for level, constant in (("real", -0.5), ("deployed-float64", -0.5), ("real", -2.5 * 2**60)):
        d = torch.full((1, 1), constant, dtype=torch.float64)
        asked = demand(box, one[None], d, torch.zeros(1, 1, dtype=torch.long))
        problem = Problem(asked, one.clone(), torch.arange(1))
        verifier = Complete(pieces=20)
        parts = some_parts(problem, network, verifier=verifier, certifier=verifier, level=level)
        for attack in (None, Pgd()):
            (found[level, constant, attack is None],) = parts.certificate(attack).status
    assert found["deployed-float64", -0.5, True] is Status.FALSIFIED  # what it computes is 0
    assert found["deployed-float64", -0.5, False] is Status.FALSIFIED
    assert found["real", -0.5, True] is found["real", -0.5, False] is Status.UNKNOWN
    assert found["real", -2.5 * 2**60, True] is Status.FALSIFIED  # beyond all rounding


def test_a_cut_that_leads_nowhere_ends_the_search():
    """A point, whose margin is lost in rounding: no cut helps, and none is tried."""
    network = a_network()
    x = torch.rand(1, 6)
    y = network(x)[0]
    eye = torch.eye(4)
    asked = demand(
        Box(x, x), (eye[0] - eye[1])[None, None], (y[1] - y[0] + 1e-7).view(1, 1),
        torch.zeros(1, 1, dtype=torch.long),
    )  # fmt: skip
    found = searched(network, asked, Complete(), "deployed-float32")
    assert found.leaves is None and len(found.tree.owner) < 5


@pytest.mark.parametrize("pieces", [1, 2, 5, 33])
def test_pieces_are_so_many_at_most(pieces):
    parts = open_parts(Complete(pieces=pieces, cuts="relus"), epsilon=0.12)
    search = BranchAndBound(parts.bounder, parts.bounder.certifier)
    for i in range(20):
        one = parts.properties[torch.tensor([i])]
        patch = {n: t[i] for n, t in parts.repaired.bank.stack.items()}
        found = search.decide(one, one.box, patch, parts.repaired, lambda x: False)
        assert found.tree.dim.count(-1) <= pieces


def test_the_memory_is_not_exceeded():
    parts = open_parts(Complete(pieces=10**6), epsilon=0.12)
    parts.bounder.memory = 10_000
    search = BranchAndBound(parts.bounder, parts.bounder.certifier)
    with pytest.raises(UsageError, match=r"run\.memory"):
        search.decide(
            parts.properties[torch.tensor([0])],
            parts.properties.box[[0]],
            {n: t[0] for n, t in parts.repaired.bank.stack.items()},
            parts.repaired,
            lambda x: False,
        )


@pytest.mark.parametrize("at_once", [2, 7, 64])
def test_the_decision_does_not_depend_on_how_many_are_cut_together(at_once, monkeypatch):
    monkeypatch.setattr(branching, "_AT_ONCE", at_once)
    parts = open_parts(Complete(cuts="relus"), epsilon=0.12)
    found = parts.certificate()
    assert not undecided(found)


def test_infinities_and_nan_prove_nothing():
    network = a_network()
    tensors = {name: t * 1e30 for name, t in network.tensors.items()}
    broken = Network(network.operations, tensors, network.input_shape)
    x = torch.rand(1, 6)
    eye = torch.eye(4)
    asked = demand(
        Box.around(x, 0.1), (eye[0] - eye[1:])[None], torch.ones(1, 3), torch.arange(3)[None]
    )
    found = searched(broken, asked, Complete(pieces=20), "deployed-float32")
    assert found.leaves is None
