"""The least change of many parameters that meets linear demands: an LP, its columns on demand.

Sought is a change v, [p], of the parameters with::

    min |v|_inf + |v|_1 / p    where  A v >= need,  |v|_inf <= limit

A has thousands of rows and up to a million columns, and is dense; it is never built. A change is
a sum of signs, v = sum_k mu_k s_k with s_k in {-1, 0, 1}^p, |v|_inf <= sum_k mu_k and |v|_1 <=
sum_k mu_k |s_k|_1; the best such sum has equality in both. So the problem is a small LP in mu >=
0, whose columns A s_k are added as they are wanted (Dantzig and Wolfe 1960). With duals y of its
rows and g = A' y, the best new column has the sign of g_j where |g_j| > 1/p; none is wanted if::

    F(g) = sum_j max(0, |g_j| - 1/p) <= 1 + w

where w is the dual of sum mu <= limit. Such duals are a proof: no change costs less than they say.
New columns are sought not at the duals, which jump, but on a fifth of the way to them from the best
proof, drawn towards 0 until it is one too (after Wentges 1997). Rows are added when a change breaks
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from advrepair import MethodStatus
from advrepair_baselines.master import Floats, Master, Solved

CLOSE = 1e-6  # what a row may lack
_STEP = 0.2
_HALVINGS = 30
_SAVING = 1e-7  # below this HiGHS itself does not care
_ROWS = 1000  # that are added at once, at most
_GUESS = 500  # columns that a problem takes; those of docs and tests took 30 to 400
_PROGRAM = 400 * 2**20  # bytes that Python, torch and HiGHS take


class Rows(Protocol):
    """A, for whoever cannot build it."""

    @property
    def parameters(self) -> int:
        """p."""
        ...

    def forward(self, change: Tensor) -> Tensor:
        """A v, [R], of a change [p]; float64."""
        ...

    def backward(self, weights: Tensor) -> Tensor:
        """A' y, [p], of weights [R]; float64."""
        ...


@frozen(eq=False)
class Change:
    """What came of it. value: [p], None without a solution; status repaired if there is one.

    objective, and a bound under which there is none; rows and columns of the last LP.
    """

    value: Tensor | None
    status: MethodStatus
    reason: str
    objective: float
    bound: float
    rows: int
    columns: int


def refuse_if_too_large(parameters: int, values: int, memory: int) -> None:
    """Raises MemoryError, with the number, if an LP will not fit.

    parameters: p. values: numbers inside the network at all its inputs. memory: bytes.
    """
    need = _PROGRAM + parameters * (_GUESS + 16 * 8) + 5 * 8 * values + 16 * _ROWS * _GUESS
    if need > memory:
        raise MemoryError(
            f"an LP of {parameters} parameters and {values} values inside the network takes some "
            f"{need / 2**30:.1f} GiB, and {memory / 2**30:.1f} GiB is all it may"
        )


def least_change(
    rows: Rows,
    need: Tensor,
    limit: float,
    tell: Callable[[int], float],
    gap: float = 0.01,
    columns: int = 5000,
) -> Change:
    """A change that costs at most 1 / (1 - gap) times the least.

    need: [R], float64. tell: given the number of columns, of which there may be so many; returns
    the seconds that are left. Infeasible is proved, up to rounding in float64: a change inside
    the limit costs at most 2 limit, and by the duals every change costs more. Raises what tell
    raises, and TimeoutError in an LP.
    """
    return _Search(rows, need.numpy(), limit, gap).run(columns, tell)


@frozen(eq=False)
class Duals:
    """slope: g = A' y. worth: 1 + w. bound: what they prove if F(slope) <= worth."""

    slope: Tensor
    worth: float
    bound: float

    def towards(self, other: Duals, share: float) -> Duals:
        """A share of the way to others: a proof, where both are."""
        rest = 1 - share
        return Duals(
            rest * self.slope + share * other.slope,
            rest * self.worth + share * other.worth,
            rest * self.bound + share * other.bound,
        )


class _Search:
    """The small LP, and what it has shown of the large one."""

    def __init__(self, rows: Rows, need: Floats, limit: float, gap: float) -> None:
        self.rows, self.need, self.limit, self.gap = rows, need, limit, gap
        self.price = 1 / rows.parameters
        self.signs: list[Tensor] = []  # int8 [p]
        self.active = np.zeros(0, np.int64)
        none = torch.zeros(rows.parameters, dtype=torch.float64)
        self.zero = self.proof = Duals(none, 1.0, 0.0)
        self.master = Master(limit)

    def run(self, columns: int, tell: Callable[[int], float]) -> Change:
        """Columns until the gap is closed, then rows, until none is broken."""
        if not self.add_rows(np.zeros(len(self.need))):
            return self.ended(MethodStatus.REPAIRED, "", torch.zeros_like(self.zero.slope))
        while len(self.signs) < columns:
            solved = self.master.solve(tell(len(self.signs)))
            if isinstance(solved, str):
                return self.ended(MethodStatus.SOLVER_FAILED, solved)
            if self.proof.bound > 2 * self.limit * (1 + self.gap):
                return self.ended(MethodStatus.INFEASIBLE, "no change inside the limits does it")
            if solved.objective - self.proof.bound > self.gap * solved.objective:
                self.add_column(solved)
            elif solved.lacking > CLOSE:
                if not self.master.raise_price():
                    return self.ended(MethodStatus.SOLVER_FAILED, "undecided: rows are not met")
            elif not self.add_rows(self.rows.forward(self.change(solved)).numpy()):
                return self.ended(MethodStatus.REPAIRED, "", self.change(solved))
        return self.ended(MethodStatus.SOLVER_FAILED, f"{columns} columns are not enough")

    def add_rows(self, values: Floats) -> int:
        """Those that values of A v break most; how many there are."""
        lack = self.need - values
        lack[self.active] = -np.inf
        worst = np.argsort(-lack, kind="stable")[:_ROWS]
        new = worst[lack[worst] > CLOSE]
        known = self.effects(new)
        for i, row in enumerate(new):
            self.master.add_row(float(self.need[row]), known[i])
        self.active = np.concatenate([self.active, new])
        return len(new)

    def effects(self, new: NDArray[np.int64]) -> Floats:
        """What the columns do to new rows, [new,columns]: by rows or by columns, as are fewer."""
        found = np.zeros((len(new), len(self.signs)))
        if len(new) < len(self.signs):
            for i, row in enumerate(new):
                one = torch.zeros(len(self.need), dtype=torch.float64)
                one[row] = 1.0
                slope = self.rows.backward(one)
                found[i] = [float(slope @ sign.double()) for sign in self.signs]
        else:
            for k, sign in enumerate(self.signs):
                found[:, k] = self.rows.forward(sign.double()).numpy()[new]
        return found

    def add_column(self, solved: Solved) -> None:
        """The best one at duals near the best proof, or at the LP's own if the LP has that."""
        y = np.zeros(len(self.need))
        y[self.active] = solved.duals
        slope = self.rows.backward(torch.from_numpy(y))
        now = Duals(slope, 1 + solved.worth, solved.objective)
        near = self.proved(self.proof.towards(now, _STEP))
        self.proof = max(self.proof, near, key=lambda duals: duals.bound)
        sign = self.best(near.slope)
        if self.saving(sign, now) <= 0:
            sign = self.best(now.slope)
        if self.saving(sign, now) <= _SAVING:
            self.proof = max(self.proof, self.proved(now), key=lambda duals: duals.bound)
            return
        effect = self.rows.forward(sign).numpy()
        self.signs.append(sign.to(torch.int8))
        self.master.add_column(self.cost(sign), effect[self.active])

    def proved(self, duals: Duals) -> Duals:
        """Duals themselves if they are a proof, else as far towards them from 0 as one goes."""
        if self.allowed(duals):
            return duals
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = self.allowed(self.zero.towards(duals, middle))
            low, high = (middle, high) if found else (low, middle)
        return self.zero.towards(duals, low)

    def allowed(self, duals: Duals) -> bool:
        """F(slope) <= worth."""
        return float((duals.slope.abs() - self.price).clamp(min=0).sum()) <= duals.worth

    def best(self, slope: Tensor) -> Tensor:
        """The signs of the column that saves most at a slope, [p]."""
        return torch.sign(slope) * (slope.abs() > self.price)

    def saving(self, sign: Tensor, duals: Duals) -> float:
        """What a unit of a column saves at duals."""
        return float(sign @ duals.slope) - self.cost(sign) - (duals.worth - 1)

    def cost(self, sign: Tensor) -> float:
        """Of a column."""
        return 1 + self.price * float(sign.abs().sum())

    def change(self, solved: Solved) -> Tensor:
        """That an optimum stands for: [p]."""
        value = torch.zeros(self.rows.parameters, dtype=torch.float64)
        for weight, sign in zip(solved.weights, self.signs, strict=True):
            if weight:
                value += weight * sign
        return value

    def ended(self, status: MethodStatus, reason: str, value: Tensor | None = None) -> Change:
        cost = float("inf")
        if value is not None:
            cost = float(value.abs().max() + self.price * value.abs().sum())
        sizes = len(self.active), len(self.signs)
        return Change(value, status, reason, cost, self.proof.bound, *sizes)
