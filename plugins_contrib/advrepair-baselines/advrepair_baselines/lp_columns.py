"""The least change of many parameters: an LP whose columns are made on demand.

A of :mod:`advrepair_baselines.lp` has thousands of rows and up to a million columns, and is
dense; it is never built. A change is a sum of signs, v = sum_k mu_k s_k with s_k in {-1, 0,
1}^p, |v|_inf <= sum_k mu_k and |v|_1 <= sum_k mu_k |s_k|_1; the best such sum has equality in
both. So the problem is a small LP in mu >= 0, whose columns A s_k are added as they are wanted
(Dantzig and Wolfe 1960). With duals y of its rows and g = A' y, the best new column has the sign
of g_j where |g_j| > 1/p; none is wanted if::

    F(g) = sum_j max(0, |g_j| - 1/p) <= 1 + w

where w is the dual of sum mu <= limit. Such duals are a proof: no change costs less than they say.
New columns are sought not at the duals, which jump, but on a fifth of the way to them from the best
proof, drawn towards 0 until it is one too (after Wentges 1997).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from advrepair import MethodStatus
from advrepair_baselines.lp_master import Master, Solved
from advrepair_baselines.lp_types import CLOSE, Change, Floats, Rows, cost, most_broken

_STEP = 0.2
_COARSE = 0.1  # gap at which rows are looked for first
_HALVINGS = 30
_SAVING = 1e-7  # below this HiGHS itself does not care
_ROWS = 100  # that are added at once, at most


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


class ByColumns:
    """The small LP, and what it has shown of the large one."""

    def __init__(self, rows: Rows, need: Floats, limit: float, gap: float) -> None:
        self.rows, self.need, self.limit, self.gap = rows, need, limit, gap
        self.price = 1 / rows.parameters
        self.signs: list[Tensor] = []  # int8 [p]
        self.active = self.blamed = np.zeros(0, np.int64)
        none = torch.zeros(rows.parameters, dtype=torch.float64)
        self.zero = self.proof = Duals(none, 1.0, 0.0)
        self.master = Master(limit)

    def run(self, rounds: int, tell: Callable[[int], float]) -> Change:
        """Columns until the gap is closed, then rows, until none is broken."""
        if not self.add_rows(np.zeros(len(self.need))):
            return self.ended(MethodStatus.REPAIRED, "", torch.zeros_like(self.zero.slope))
        gap = max(self.gap, _COARSE)
        for turn in range(rounds):
            solved = self.master.solve(tell(turn))
            if isinstance(solved, str):
                return self.ended(MethodStatus.SOLVER_FAILED, solved)
            if self.proof.bound > 2 * self.limit * (1 + self.gap):
                self.blamed = self.active[solved.duals > CLOSE * solved.duals.max()]
                return self.ended(MethodStatus.INFEASIBLE, "no change inside the limits does it")
            if solved.objective - self.proof.bound > gap * solved.objective:
                self.add_column(solved)
            elif solved.lacking > CLOSE:
                if not self.master.raise_price():
                    return self.ended(MethodStatus.SOLVER_FAILED, "undecided: rows are not met")
            elif not self.add_rows(self.rows.forward(self.change(solved)).numpy()):
                if gap == self.gap:
                    return self.ended(MethodStatus.REPAIRED, "", self.change(solved))
                gap = self.gap
        return self.ended(MethodStatus.SOLVER_FAILED, f"{rounds} rounds are not enough")

    def add_rows(self, values: Floats) -> int:
        """Those that values of A v break most; how many there are."""
        new = most_broken(self.need - values, self.active, _ROWS)
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
        self.master.add_column(self.price_of(sign), effect[self.active])

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
        return float(sign @ duals.slope) - self.price_of(sign) - (duals.worth - 1)

    def price_of(self, sign: Tensor) -> float:
        """What a unit of a column costs."""
        return 1 + self.price * float(sign.abs().sum())

    def change(self, solved: Solved) -> Tensor:
        """That an optimum stands for: [p]."""
        value = torch.zeros(self.rows.parameters, dtype=torch.float64)
        for weight, sign in zip(solved.weights, self.signs, strict=True):
            if weight:
                value += weight * sign
        return value

    def ended(self, status: MethodStatus, reason: str, value: Tensor | None = None) -> Change:
        sizes = len(self.active), len(self.signs)
        return Change(value, status, reason, cost(value), self.proof.bound, *sizes, self.blamed)
