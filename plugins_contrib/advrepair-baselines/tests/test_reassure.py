"""REASSURE: patches by hand, what fails, then the digits network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from attrs import evolve
from conftest import kinked, network_of, task_of

from advrepair import MethodStatus, Scope, Task, UsageError
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images
from advrepair_baselines import reassure_repair
from advrepair_baselines.reassure import Reassure
from advrepair_baselines.reassure_lp import Patch
from advrepair_baselines.reassure_network import PatchedRegions
from advrepair_baselines.reassure_regions import Pieces, Region

INF = float("inf")


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Reassure())


# Patches -------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [0, 1000])
def test_a_patch_by_hand(threshold: Task, entries: int) -> None:
    """2x - 1 is at most 0.1 on [0.35, 0.55]: half of 0.1 and of the margin on either output."""
    result = Reassure(collar=0.02, margin=0.01, entries=entries).repair(threshold)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    t = 0.055
    assert result.evidence["largest patch"] == pytest.approx(t, abs=1e-6)
    assert result.evidence["least slack"] == pytest.approx(0.01, abs=1e-6)

    def added(x: float) -> list[float]:
        point = torch.tensor([[x]])
        with torch.no_grad():
            return (result.model(point) - threshold.network(point))[0].tolist()

    assert added(0.5499)[1] - added(0.5499)[0] > 0.1098
    assert max(abs(each) for each in added(0.5499)) <= t + 1e-6
    for x in (0.0, 0.3299, 0.5701, 1.0):
        assert added(x) == [0.0, 0.0]
    inside, rim = added(0.55), added(0.56)  # half of the collar: K / 2 is taken away
    gone = [abs(a) - abs(b) for a, b in zip(inside, rim, strict=True)]
    most = float(result.model.most)
    assert gone == pytest.approx([min(most / 2, abs(a)) for a in inside], abs=1e-4)


def test_the_gate_is_exact(threshold: Task) -> None:
    """Inside nothing is rounded away, however large K is; outside nothing is left."""
    region = Region(torch.zeros(0, 1).double(), torch.zeros(0).double(),
                    torch.zeros(1).double(), torch.ones(1).double())  # fmt: skip
    patch = Patch(torch.full((2, 1), 2.0**-30).double(), torch.zeros(2).double(), 0.0)
    rim, huge = torch.tensor([1e-3]).double(), torch.tensor([1e12]).double()
    model = PatchedRegions(threshold.network.double(), [region], [patch], rim, huge)
    x = torch.tensor([[0.25], [1.0], [1.001001], [-0.5]]).double()
    with torch.no_grad():
        added = model(x) - threshold.network(x)
    assert added[:2, 1].tolist() == [2.0**-32, 2.0**-30]
    assert added[2:].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_neighbours_leave_each_other_alone() -> None:
    """Both sides of the kink at 0.6, nearer than the collar: each has its own patch."""
    x = torch.tensor([[0.5995], [0.6005]])
    network = kinked()
    task = task_of(network, torch.tensor([[0.6], [0.6]]), [1, 1], 0.1, x)
    result = Reassure(collar=0.05).repair(task)
    assert result.status is MethodStatus.REPAIRED and result.evidence["regions"] == 2
    assert result.evidence["collar"] == pytest.approx([0.0005, 0.0005], rel=1e-2)


def test_one_region_has_one_patch() -> None:
    x = torch.tensor([[0.45], [0.5], [0.58], [0.2]])
    task = task_of(kinked(), torch.full((4, 1), 0.4), [1] * 4, 0.25, x)
    assert Reassure().repair(task).evidence["regions"] == 2


def test_the_nearest_of_several_outputs_is_raised() -> None:
    """Output 0 is 0.5 and must not be the largest: 1 is nearer than 2."""
    network = network_of(([[1.0], [0.0], [0.0]], [0.0, 0.4, -5.0]))
    task = task_of(network, torch.tensor([[0.5]]), [0], 0.05, torch.tensor([[0.5]]))
    C = torch.tensor([[[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]])
    group, label = torch.zeros(1, 2, dtype=torch.long), torch.tensor([-1])
    task = evolve(task, properties=evolve(task.properties, C=C, group=group, label=label))
    result = Reassure(margin=0.01).repair(task)
    assert result.status is MethodStatus.REPAIRED
    assert result.evidence["largest patch"] == pytest.approx(0.08, abs=1e-5)  # (0.15 + 0.01) / 2


# What fails ----------------------------------------------------------------------------


def test_demands_that_contradict_each_other_are_infeasible(threshold: Task) -> None:
    both = threshold.properties[torch.tensor([0, 0])]
    both = evolve(both, C=torch.cat([both.C[:1], -both.C[:1]]), label=torch.tensor([1, 0]))
    x, owner = threshold.x_adv[[0, 0]], torch.tensor([0, 1])
    result = Reassure().repair(evolve(threshold, properties=both, x_adv=x, owner=owner))
    assert (result.model, result.status) == (None, MethodStatus.INFEASIBLE)


def test_a_wrong_solution_is_not_applied(threshold: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Patch(torch.zeros(2, 1).double(), torch.zeros(2).double(), 0.0)
    monkeypatch.setattr(reassure_repair, "least_patch", lambda *given: none)
    result = Reassure().repair(threshold)
    assert (result.model, result.status) == (None, MethodStatus.SOLVER_FAILED)
    assert "does not do what is demanded" in result.evidence["reason"]


def test_what_does_not_fit_is_refused_with_its_size(threshold: Task) -> None:
    with pytest.raises(UsageError, match=r"up to \d+ rows of 1 numbers for one region, .* GiB"):
        Reassure().repair(evolve(threshold, memory=10))


# The digits network --------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Task:
    return digits_task(count=12, epsilon=0.1)


@pytest.fixture(scope="module")
def repaired(digits: Task) -> PatchedRegions:
    result = Reassure().repair(digits)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    assert result.evidence["solved"] == result.evidence["regions"] == 12
    return result.model


def test_whole_regions_are_right(digits: Task, repaired: PatchedRegions) -> None:
    """Points of each region, far from the counterexample too, found by random walks."""
    pieces, noise = Pieces(digits.network), torch.Generator().manual_seed(0)
    seen = 0
    for x, owner in zip(digits.x_adv, digits.owner, strict=True):
        asked = digits.properties[owner[None]]
        lower, upper = (each.flatten().double() for each in (asked.box.lower, asked.box.upper))
        region = Region.of(*pieces.around(x).faces(), lower, upper)
        here = x.double().flatten()
        for _ in range(30):
            step = torch.randn(64, generator=noise).double()
            long = torch.linspace(1, 0, 33)[:, None] * step + here
            long = torch.minimum(torch.maximum(long, lower), upper)
            here = long[(region.excess(long) == 0).nonzero()[0, 0]]
            with torch.no_grad():
                y = repaired(here.float().view(1, 1, 8, 8))
            assert not bool(asked.violated(y)), "a point of a repaired region is wrong"
            seen += float((here - x.flatten()).abs().max()) > 0.02
    assert seen > 100


def test_everywhere_else_it_is_the_network(digits: Task, repaired: PatchedRegions) -> None:
    x, _ = digits_test_images()
    with torch.no_grad():
        assert torch.equal(repaired(x), digits.network(x))


def test_it_can_be_written(tmp_path: Path) -> None:
    """By the command, which compares the file with the model where onnxruntime is installed."""
    asked = ["--methods", "reassure", "--count", "5", "--evaluate", "quick", "--out", "cmp"]
    command = [sys.executable, "-m", "advrepair", "compare", *asked]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    row = json.loads((tmp_path / "cmp/methods/reassure/result.json").read_text())
    assert (row["status"], row["model"]) == ("repaired", "model.onnx"), row
    assert row["figures"]["RSR"] == 1.0 and row["figures"]["DD"] == 0.0


def test_it_ends_in_time_with_what_it_has(digits: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the patches that were solved the model is made; nothing else is claimed."""
    slow = reassure_repair.mend

    def mend(*given):
        time.sleep(0.5)
        return slow(*given)

    monkeypatch.setattr(reassure_repair, "mend", mend)
    result = Reassure().repair(evolve(digits, deadline=time.perf_counter() + 4.0))
    assert (result.status, result.scope) == (MethodStatus.NOT_REPAIRED, Scope.NONE)
    assert 0 < result.evidence["solved"] < 12 and result.evidence["still wrong"] > 0
    assert "the time was up" in result.evidence["unsolved"]


def test_it_stops_when_the_rows_of_its_regions_fill_the_memory(
    digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reassure_repair, "_COPIES", 2**16)
    monkeypatch.setattr(reassure_repair, "_refuse_too_large", lambda *given: 1)
    result = Reassure().repair(evolve(digits, memory=2**30))
    assert (result.status, result.scope) == (MethodStatus.NOT_REPAIRED, Scope.NONE)
    assert 0 < result.evidence["solved"] < 12
    solved = result.evidence["regions"] - result.evidence["solved"]
    assert result.evidence["unsolved"] == {"the memory was full": solved}
