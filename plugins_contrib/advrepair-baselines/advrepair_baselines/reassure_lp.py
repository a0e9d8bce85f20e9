"""Linear programs, by HiGHS; what comes of them is proved by multipliers, not believed."""

from __future__ import annotations

import math
from typing import Any

import highspy
import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from advrepair_baselines.reassure_regions import Region

_UNIT = 2.0**-53


@frozen
class Failure:
    """A program without a solution. infeasible: proved to have none; why: in HiGHS's words."""

    infeasible: bool
    why: str


class Maxima:
    """Greatest values of linear functions on one region."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.solver = _solver()
        rows, inputs = region.A.shape
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = inputs, rows
        program.col_cost_ = np.zeros(inputs)
        program.col_lower_, program.col_upper_ = region.lower.numpy(), region.upper.numpy()
        program.row_lower_, program.row_upper_ = np.full(rows, -np.inf), region.b.numpy()
        program.sense_ = highspy.ObjSense.kMaximize
        matrix = program.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_ = np.arange(rows + 1) * inputs
        matrix.index_ = np.tile(np.arange(inputs), rows)
        matrix.value_ = region.A.numpy().ravel()
        self.solver.passModel(program)

    def of(self, rows: Tensor, seconds: float) -> Tensor:
        """An upper bound of each row v x on the region, [n] of [n,S]; the maximum if solved.

        Sound, whatever the solver says: for any l >= 0 and x in the region, v x = (v - l A) x +
        l A x <= max over the box of (v - l A) x + l b; l = 0 is always among those tried. What
        rounding takes off the sums of so many products is added.
        """
        found = []
        for v in rows:
            tried = [self._proved(v, torch.zeros(len(self.region.b), dtype=torch.float64))]
            if len(self.region.b):
                inputs = len(v)
                index = np.arange(inputs, dtype=np.int32)
                self.solver.changeColsCost(inputs, index, v.numpy())
                self.solver.setOptionValue("time_limit", _limit(self.solver, seconds))
                self.solver.run()
                dual = torch.tensor(self.solver.getSolution().row_dual, dtype=torch.float64)
                if len(dual) == len(self.region.b):
                    tried += [self._proved(v, each.clamp(min=0)) for each in (dual, -dual)]
            found.append(min(tried))
        return torch.tensor(found, dtype=torch.float64)

    def _proved(self, v: Tensor, multiplier: Tensor) -> float:
        region = self.region
        if not bool(multiplier.isfinite().all()):
            return math.inf
        rest = v - multiplier @ region.A
        size = torch.maximum(region.lower.abs(), region.upper.abs())
        value = rest.clamp(min=0) @ region.upper + rest.clamp(max=0) @ region.lower
        terms = (v.abs() + multiplier @ region.A.abs()) @ size + multiplier @ region.b.abs()
        error = 4 * (sum(region.A.shape) + 8) * _UNIT * terms
        return float(value + multiplier @ region.b + error)


@frozen(eq=False)
class Demand:
    """``rows y + constant <= 0`` is wanted of outputs y: rows [Q,K], constant [Q]."""

    rows: Tensor
    constant: Tensor


@frozen(eq=False)
class Patch:
    """p(x) = c x + d: c [K,S], d [K]. least: the t that the program found."""

    c: Tensor
    d: Tensor
    least: float


def least_patch(
    B: Tensor, b: Tensor, basis: Tensor, v: Tensor, w: Tensor, rows: Tensor, seconds: float
) -> Patch | Failure:
    """The least patch p = c (basis x) + d on all z = basis x with ``B z <= b``.

    B: [m,k], b: [m]. basis: [k,S]. Wanted is ``v z + w + rows p <= 0``: v [Q,k], w [Q], rows
    [Q,K]. The columns of the program are c, d, t, p+, p- of each output, and l of each demand.
    """
    (m, k), (Q, K) = B.shape, rows.shape
    d0, t0, plus = K * k, K * k + K, K * k + K + 1
    minus, more, columns = plus + K * m, plus + 2 * K * m, plus + 2 * K * m + Q * m
    triplets = _Triplets()
    low: list[float] = []
    high: list[float] = []

    def block(multiplier: int, sign: float, output: int | None, demand: int | None) -> None:
        """``B' multiplier = ...`` in k rows."""
        top = len(low)
        for s in range(k):
            triplets.add(top + s, range(multiplier, multiplier + m), B[:, s])
            if output is not None:
                triplets.add(top + s, [output * k + s], torch.tensor([sign]))
            if demand is not None:
                triplets.add(top + s, range(s, K * k, k), -rows[demand])
            value = 0.0 if demand is None else float(v[demand, s])
            low.append(value)
            high.append(value)

    for j in range(K):
        for first, sign in ((plus, -1.0), (minus, 1.0)):
            start = first + j * m
            block(start, sign, j, None)
            triplets.add(len(low), range(start, start + m), b)
            triplets.add(len(low), [d0 + j, t0], torch.tensor([-sign, -1.0]))
            low.append(-np.inf)
            high.append(0.0)
    for q in range(Q):
        start = more + q * m
        block(start, 0.0, None, q)
        triplets.add(len(low), range(start, start + m), b)
        triplets.add(len(low), range(d0, d0 + K), rows[q])
        low.append(-np.inf)
        high.append(-float(w[q]))
    free = np.full(t0, -np.inf)
    least = np.concatenate([free, np.zeros(columns - t0)])
    cost = np.zeros(columns)
    cost[t0] = 1.0
    found = _solved(triplets, cost, least, np.array(low), np.array(high), seconds)
    if isinstance(found, Failure):
        return found
    c = torch.from_numpy(found[:d0].copy()).view(K, k) @ basis
    return Patch(c, torch.from_numpy(found[d0:t0].copy()), float(found[t0]))


def entries(m: int, k: int, demands: int, outputs: int) -> int:
    """Numbers that are not 0 in the matrix of :func:`least_patch`, at most."""
    return (2 * outputs + demands) * m * (k + 1) + (2 + demands) * outputs * (k + 1)


class _Triplets:
    """A sparse matrix, row by row."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, row: int, columns: Any, values: Tensor) -> None:
        index, number = np.asarray(list(columns)), values.double().numpy()
        keep = number != 0
        self.parts.append((np.full(int(keep.sum()), row), index[keep], number[keep]))

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, column, value = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        order = np.lexsort((column, row))
        return row[order], column[order], value[order]


def _solved(
    matrix: _Triplets,
    cost: np.ndarray,
    least: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    seconds: float,
) -> np.ndarray | Failure:
    """Columns of a minimum, [columns]; only if HiGHS calls it optimal."""
    row, column, value = matrix.joined()
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(cost), len(low)
    program.col_cost_, program.col_lower_ = cost, least
    program.col_upper_ = np.full(len(cost), np.inf)
    program.row_lower_, program.row_upper_ = low, high
    sparse = program.a_matrix_
    sparse.format_ = highspy.MatrixFormat.kRowwise
    sparse.start_ = np.searchsorted(row, np.arange(len(low) + 1))
    sparse.index_, sparse.value_ = column, value
    solver = _solver()
    solver.setOptionValue("time_limit", min(seconds, 1e30))
    solver.passModel(program)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        return np.asarray(solver.getSolution().col_value)
    proved = status == highspy.HighsModelStatus.kInfeasible
    return Failure(proved, solver.modelStatusToString(status))


def _solver() -> Any:
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    return solver


def _limit(solver: Any, seconds: float) -> float:
    """HiGHS's clock runs on from one program to the next."""
    return float(min(solver.getRunTime() + seconds, 1e30))
