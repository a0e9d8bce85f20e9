"""REASSURE: linear regions, and the linear programs on them, by hand."""

from __future__ import annotations

import itertools

import highspy
import numpy as np
import pytest
import torch
from attrs import evolve
from conftest import kinked
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair import Network, Operation, UsageError
from advrepair.testing import digits_task, networks
from advrepair_baselines.reassure import Reassure
from advrepair_baselines.reassure_lp import Maxima, Patch, least_patch
from advrepair_baselines.reassure_regions import Pieces, Region
from advrepair_baselines.reassure_repair import of_sums

INF = float("inf")


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


def test_a_solver_without_time_is_not_believed() -> None:
    noise = torch.Generator().manual_seed(0)
    A = torch.randn(60, 40, generator=noise).double()
    region = Region.of(A, torch.full((60,), 0.5).double(), *(torch.full((40,), s).double()
                       for s in (-1.0, 1.0)))  # fmt: skip
    v = torch.randn(1, 40, generator=noise).double()
    assert Maxima(region).of(v, 0.0) >= Maxima(region).of(v, 10.0) - 1e-9
