"""REASSURE: regions, programs and patches by hand, then the digits network."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import highspy
import numpy as np
import pytest
import torch
from attrs import evolve
from conftest import network_of, task_of
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair import MethodStatus, Network, Operation, Scope, Task, UsageError
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images, networks
from advrepair_baselines import reassure_repair
from advrepair_baselines.reassure import Reassure
from advrepair_baselines.reassure_lp import Maxima, Patch, least_patch
from advrepair_baselines.reassure_network import PatchedRegions
from advrepair_baselines.reassure_regions import Pieces, Region
from advrepair_baselines.reassure_repair import of_sums

INF = float("inf")


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Reassure())


# Regions -------------------------------------------------------------------------------

KINDS = {
    "fully connected": networks.fully_connected,
    "convolutional": networks.convolutional,
    "residual": networks.residual,
    "batch normalised": networks.batch_normalised,
}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 200))
@settings(deadline=None, max_examples=15)
def test_the_piece_is_the_jacobian_of_autograd(kind: str, seed: int) -> None:
    network = KINDS[kind](seed)
    x = torch.rand(network.input_shape, generator=torch.Generator().manual_seed(seed)).double()
    piece, exact = Pieces(network).around(x), network.double()
    jacobian = torch.autograd.functional.jacobian(lambda z: exact(z[None])[0], x)
    assert torch.allclose(piece.F, jacobian.flatten(1), rtol=1e-9, atol=1e-12)
    assert torch.allclose(piece.F @ x.flatten() + piece.f, exact(x[None])[0], rtol=1e-9)
    assert len(piece.unit) == network.units


@given(seed=st.integers(0, 200), where=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_inside_the_faces_the_network_is_affine(seed: int, where: int) -> None:
    """Points inside have the same signs, and points outside others."""
    network = networks.fully_connected(seed, (3, 6, 6, 2))
    noise, pieces = torch.Generator().manual_seed(where), Pieces(network)
    x = torch.rand(3, generator=noise).double()
    piece = pieces.around(x)
    A, b = piece.faces()
    assert torch.allclose(A.norm(dim=1), torch.ones(len(A)).double())
    near = x + 0.3 * torch.randn(40, 3, generator=noise).double()
    inside = (near @ A.T <= b - 1e-6).all(1)
    outside = (near @ A.T > b + 1e-6).any(1)
    for point, within in zip(near[inside | outside], inside[inside | outside], strict=True):
        assert torch.equal(pieces.around(point).on, piece.on) == bool(within)
    exact = network.double()
    assert torch.allclose(exact(near[inside]), near[inside] @ piece.F.T + piece.f, atol=1e-9)


def kinked() -> Network:
    """Hidden relu(x - 0.3), relu(x - 0.6); outputs 1 + a - 2 b and 1.1."""
    return network_of(
        ([[1.0], [1.0]], [-0.3, -0.6]),
        ([[1.0, -2.0], [0.0, 0.0]], [1.0, 1.1]),
    )


def test_a_region_by_hand() -> None:
    piece = Pieces(kinked()).around(torch.tensor([0.5]))
    A, b = piece.faces()
    assert A.tolist() == [[-1.0], [1.0]] and piece.on.tolist() == [True, False]
    assert b.tolist() == pytest.approx([-0.3, 0.6], abs=1e-7)
    assert piece.F.flatten().tolist() == [1.0, 0.0]
    assert piece.f.tolist() == pytest.approx([0.7, 1.1], abs=1e-6)
    faces = torch.tensor([0.2]).double(), torch.tensor([0.55]).double()
    region = Region.of(A, b, *faces)
    assert region.A.tolist() == [[-1.0]]  # the other face lies outside the box
    x = torch.tensor([[0.1], [0.25], [0.4], [0.65]]).double()
    assert region.excess(x).tolist() == pytest.approx([0.3, 0.05, 0.0, 0.1], abs=1e-6)


def test_what_is_not_piecewise_linear_is_refused() -> None:
    task = digits_task(count=1)
    last = task.network.operations[-1]
    squashed = Operation("squash", "sigmoid", (last.name,), last.shape)
    network = Network([*task.network.operations, squashed], task.network.tensors, (1, 8, 8))
    with pytest.raises(UsageError, match="'squash' is sigmoid"):
        Reassure().repair(evolve(task, network=network))


# Programs ------------------------------------------------------------------------------


@st.composite
def polygons(draw: st.DrawFn) -> tuple[Region, torch.Tensor]:
    """The square [-1, 1]^2 cut by up to four lines, and its vertices; 0 is inside."""
    noise = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    A = torch.randn(draw(st.integers(0, 4)), 2, generator=noise).double()
    A = A / A.norm(dim=1, keepdim=True)
    b = 0.1 + torch.rand(len(A), generator=noise).double()
    one = torch.ones(2).double()
    rows, sides = torch.cat([A, torch.eye(2), -torch.eye(2)]), torch.cat([b, one, one])
    found = []
    for i, j in itertools.combinations(range(len(rows)), 2):
        pair = rows[[i, j]]
        if abs(float(torch.linalg.det(pair))) > 1e-6:
            point = torch.linalg.solve(pair, sides[[i, j]])
            if bool((rows @ point <= sides + 1e-9).all()):
                found.append(point)
    return Region.of(A, b, -one, one), torch.stack(found)


@given(polygons(), st.integers(0, 10_000))
@settings(deadline=None)
def test_maxima_are_those_of_the_vertices(drawn: tuple, seed: int) -> None:
    region, vertices = drawn
    noise = torch.Generator().manual_seed(seed)
    v = torch.randn(3, 2, generator=noise).double()
    maxima = Maxima(region)
    exact = (v @ vertices.T).amax(1)
    assert torch.allclose(maxima.of(v, 10.0), exact, atol=1e-7)
    assert bool((maxima.of(v, 10.0) >= exact - 1e-12).all())
    for row, value in zip(v, exact, strict=True):  # any multipliers prove something
        free = 3 * torch.rand(len(region.b), generator=noise).double()
        assert maxima._proved(row, free) >= value - 1e-12


def primal(vertices: torch.Tensor, v: torch.Tensor, w: torch.Tensor, rows: torch.Tensor) -> float:
    """The least t by its definition: |p| <= t and the demands, at every vertex."""
    K, k = rows.shape[1], vertices.shape[1]
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    for column in range(K * k + K + 1):
        solver.addVar(0.0 if column == K * k + K else -INF, INF)
    solver.changeColCost(K * k + K, 1.0)

    def add(terms: dict[int, float], most: float) -> None:
        solver.addRow(-INF, most, len(terms), np.array(list(terms)), np.array(list(terms.values())))

    for point in vertices:
        for j, sign in itertools.product(range(K), (1.0, -1.0)):
            terms = {j * k + s: sign * float(point[s]) for s in range(k)}
            add(terms | {K * k + j: sign, K * k + K: -1.0}, 0.0)
        for q in range(len(rows)):
            terms = {j * k + s: float(rows[q, j] * point[s]) for j in range(K) for s in range(k)}
            terms |= {K * k + j: float(rows[q, j]) for j in range(K)}
            add(terms, -float(v[q] @ point + w[q]))
    solver.run()
    return float(solver.getInfo().objective_function_value)


@given(polygons(), st.integers(0, 10_000), st.booleans())
@settings(deadline=None)
def test_the_patch_is_the_least_and_does_what_is_demanded(
    drawn: tuple, seed: int, label: bool
) -> None:
    """Against the problem over the vertices; of a label also where p depends on a N alone."""
    region, vertices = drawn
    noise = torch.Generator().manual_seed(seed)
    F, f = torch.randn(3, 2, generator=noise).double(), torch.randn(3, generator=noise).double()
    if label:
        rows = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]).double()
    else:
        rows = torch.randn(2, 3, generator=noise).double()
    v, w, eye = rows @ F, rows @ f + 0.01, torch.eye(2).double()
    B = torch.cat([region.A, eye, -eye])
    b = torch.cat([region.b, torch.ones(4).double()])
    best = primal(vertices, v, w, rows)
    found = [least_patch(B, b, eye, v, w, rows, 10.0)]
    if label:
        found.append(of_sums(Maxima(region), v, w, rows, 10.0))
        most = Maxima(region).of(v, 10.0)
        assert best == pytest.approx(max(0.0, float((most + w).max()) / 2), abs=1e-6)
    for patch in found:
        assert isinstance(patch, Patch) and patch.least == pytest.approx(best, abs=1e-6)
        p = vertices @ patch.c.T + patch.d
        assert float(p.abs().max()) == pytest.approx(best, abs=1e-6)
        assert bool((vertices @ v.T + w + p @ rows.T <= 1e-6).all())


def test_a_demand_from_both_sides_needs_a_slope() -> None:
    """y = x on [-1, 1] must stay within 0.1: no constant can, and p = -0.9 x is the least."""
    one = torch.ones(1, 1).double()
    B, b = torch.cat([one, -one]), torch.ones(2).double()
    rows, w = torch.cat([one, -one]), torch.full((2,), -0.1).double()
    patch = least_patch(B, b, one, rows, w, rows, 10.0)
    assert isinstance(patch, Patch) and patch.least == pytest.approx(0.9)
    assert float(patch.c) == pytest.approx(-0.9) and float(patch.d) == pytest.approx(0, abs=1e-9)
    whole = Maxima(Region(one[:0], b[:0], -one[0], one[0]))
    other = of_sums(whole, rows, w, rows, 10.0)
    assert isinstance(other, Patch) and float(other.c) == pytest.approx(-0.9)


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


def test_a_solver_without_time_is_not_believed() -> None:
    noise = torch.Generator().manual_seed(0)
    A = torch.randn(60, 40, generator=noise).double()
    region = Region.of(A, torch.full((60,), 0.5).double(), *(torch.full((40,), s).double()
                       for s in (-1.0, 1.0)))  # fmt: skip
    v = torch.randn(1, 40, generator=noise).double()
    assert Maxima(region).of(v, 0.0) >= Maxima(region).of(v, 10.0) - 1e-9


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
