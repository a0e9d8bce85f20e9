"""The least change: by hand, against the whole LP in HiGHS, and where there is none."""

from __future__ import annotations

import highspy
import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair import MethodStatus
from advrepair_baselines import lp
from advrepair_baselines.lp import least_change, refuse_if_too_large
from advrepair_baselines.lp_types import Change


@frozen(eq=False)
class Dense:
    """Rows of a matrix."""

    A: Tensor

    @property
    def parameters(self) -> int:
        return self.A.shape[1]

    def forward(self, change: Tensor) -> Tensor:
        return self.A @ change

    def backward(self, weights: Tensor) -> Tensor:
        return self.A.T @ weights


@pytest.fixture(params=[0, 1000], ids=["columns", "rows"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Both ways to solve it, whatever the number of parameters."""
    monkeypatch.setattr(lp, "FEW", request.param)
    return request.param


def change(A: list[list[float]] | Tensor, need: list[float] | Tensor, **more: object) -> Change:
    rows = Dense(torch.as_tensor(A, dtype=torch.float64))
    known = {"limit": 3.0, "tell": lambda turn: 60.0, "gap": 1e-4} | more
    return least_change(rows, torch.as_tensor(need, dtype=torch.float64), **known)


def cost(value: Tensor) -> float:
    return float(value.abs().max() + value.abs().mean())


def test_an_entry_that_helps_little_stays_small() -> None:
    """v1 + v2 / 10 >= 1: v = (1, 0) costs 1.5, (a, a) with 1.1 a = 1 costs 2 a = 1.82."""
    found = change([[1.0, 0.1]], [1.0])
    assert found.status is MethodStatus.REPAIRED
    assert found.value.tolist() == pytest.approx([1.0, 0.0], abs=1e-3)
    assert found.objective == pytest.approx(1.5, rel=1e-3)


def test_entries_that_help_share_the_change() -> None:
    """v1 + 0.8 v2 >= 1: (a, a) with 1.8 a = 1 costs 1.11; (1, 0) costs 1.5. Row 2 holds."""
    found = change([[1.0, 0.8], [1.0, -1.0]], [1.0, -5.0])
    assert found.value.tolist() == pytest.approx([1 / 1.8, 1 / 1.8], rel=1e-3)
    assert found.rows == 1  # the other was never broken


def test_a_row_that_a_change_breaks_is_added() -> None:
    """As before, and v2 <= 0.2: v1 = 0.84."""
    found = change([[1.0, 0.8], [0.0, -1.0]], [1.0, -0.2])
    assert found.value.tolist() == pytest.approx([0.84, 0.2], rel=1e-3)
    assert found.rows == 2


@pytest.mark.parametrize(
    ("A", "need"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [1.0, 1.0]),  # v1 >= 1 and v1 <= -1
        ([[1.0] + [0.0] * 99], [3.1]),  # the limit is 3
        ([[1.0, 1.0, 1.0]], [9.001]),
        ([[0.0, 0.0]], [0.1]),
    ],
    ids=["contradiction", "limit", "limit of all", "no influence"],
)
def test_what_has_no_solution_is_proved_to_have_none(
    A: list[list[float]], need: list[float]
) -> None:
    found = change(A, need)
    assert (found.status, found.value) == (MethodStatus.INFEASIBLE, None)


def test_up_to_the_limit_there_is_a_solution() -> None:
    found = change([[1.0, 1.0, 1.0]], [8.99])
    assert found.status is MethodStatus.REPAIRED
    assert float(found.value.sum()) >= 8.99 - 1e-5


def whole(A: np.ndarray, need: np.ndarray, limit: float) -> float | None:
    """The least cost by one LP in v+, v- and u; None if there is none."""
    rows, p = A.shape
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    for _ in range(2 * p):
        highs.addCol(1 / p, 0.0, limit, 0, np.zeros(0, np.int32), np.zeros(0))
    highs.addCol(1.0, 0.0, limit, 0, np.zeros(0, np.int32), np.zeros(0))
    every = np.arange(2 * p, dtype=np.int32)
    for i in range(rows):
        highs.addRow(need[i], highspy.kHighsInf, 2 * p, every, np.concatenate([A[i], -A[i]]))
    for j in range(p):
        columns = np.array([j, p + j, 2 * p], np.int32)
        highs.addRow(0.0, highspy.kHighsInf, 3, columns, np.array([-1.0, -1.0, 1.0]))
    highs.run()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return float(highs.getInfo().objective_function_value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 12),
    parameters=st.integers(1, 40),
    scale=st.sampled_from([0.05, 1.0, 20.0]),
    seed=st.integers(0, 10_000),
)
def test_it_finds_what_the_whole_lp_has(
    rows: int, parameters: int, scale: float, seed: int
) -> None:
    noise = np.random.default_rng(seed)
    A, need = noise.normal(size=(rows, parameters)), noise.normal(size=rows) * scale
    best, found = whole(A, need, 3.0), change(A, need, gap=0.01)
    if best is None:
        assert found.status is MethodStatus.INFEASIBLE
        return
    assert found.status is MethodStatus.REPAIRED
    assert float((torch.tensor(need) - torch.tensor(A) @ found.value).max()) <= 1e-5
    assert float(found.value.abs().max()) <= 3.0 + 1e-6
    assert cost(found.value) <= best / 0.99 + 1e-6
    assert found.bound <= best + 1e-6  # what is proved is true


def test_a_problem_of_many_parameters_takes_few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.Generator().manual_seed(0)
    A = torch.randn(30, 20_000, generator=noise, dtype=torch.float64)
    monkeypatch.setattr(lp, "FEW", 1000)
    found = change(A, torch.ones(30), gap=0.01)
    assert found.status is MethodStatus.REPAIRED and found.columns < 300
    assert found.objective - found.bound <= 0.01 * found.objective
    assert cost(found.value) == pytest.approx(found.objective, rel=1e-9)


def test_where_nothing_is_broken_nothing_changes() -> None:
    found = change([[1.0, 0.1]], [-1.0])
    assert (found.status, found.objective) == (MethodStatus.REPAIRED, 0.0)
    assert found.value.tolist() == [0.0, 0.0]


def test_too_few_rounds_are_no_solution() -> None:
    noise = torch.Generator().manual_seed(0)
    A = torch.randn(400, 50, generator=noise, dtype=torch.float64)
    found = change(A, A @ torch.ones(50, dtype=torch.float64), rounds=1)
    assert (found.status, found.value) == (MethodStatus.SOLVER_FAILED, None)
    assert "1 rounds" in found.reason or "1 columns" in found.reason


def test_what_highs_does_not_solve_is_no_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = highspy.HighsModelStatus.kUnknown
    monkeypatch.setattr(highspy.Highs, "getModelStatus", lambda self: unknown)
    found = change([[1.0, 0.1]], [1.0])
    assert (found.status, found.value) == (MethodStatus.SOLVER_FAILED, None)
    assert "Unknown" in found.reason


def test_infeasible_without_a_proof_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A HiGHS that is wrong about it is found out."""
    wrong = highspy.HighsModelStatus.kInfeasible
    monkeypatch.setattr(highspy.Highs, "getModelStatus", lambda self: wrong)
    monkeypatch.setattr(highspy.Highs, "getDualRay", lambda self: (None, True, np.array([1.0] * 3)))
    found = change([[1.0, 0.1]], [1.0])
    assert (found.status, found.value) == (MethodStatus.SOLVER_FAILED, None)


def test_the_time_of_an_lp_is_limited() -> None:
    with pytest.raises(TimeoutError, match="in an LP"):
        change(torch.randn(40, 60), torch.ones(40), tell=lambda turn: 0.0)


def test_what_does_not_fit_is_refused_with_the_number() -> None:
    refuse_if_too_large(39_250, 5_000, 2**30)
    with pytest.raises(MemoryError, match=r"40000000 parameters .* 23\.8 GiB, and 4\.0 GiB"):
        refuse_if_too_large(40_000_000, 5_000, 2**32)
