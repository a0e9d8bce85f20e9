"""The least change of few parameters: one LP with all of them, its rows on demand."""

from __future__ import annotations

from collections.abc import Callable

import highspy
import numpy as np
import torch
from torch import Tensor

from advrepair import MethodStatus
from advrepair_baselines.lp_types import CLOSE, Change, Floats, Rows, cost, most_broken

_ROWS = 100  # that are added at once, at most
_FREE = highspy.kHighsInf


class ByRows:
    """v = v+ - v-, v+ + v- <= u <= limit, min u + sum (v+ + v-) / p; exact.

    Leaving rows out only makes the optimum less: so it is a bound, and what is infeasible without
    them is so with them.
    """

    def __init__(self, rows: Rows, need: Floats, limit: float) -> None:
        self.rows, self.need, self.limit, self.p = rows, need, limit, rows.parameters
        self.active = self.blamed = np.zeros(0, np.int64)
        self.bound = 0.0
        self.highs = highspy.Highs()
        options = (("output_flag", False), ("threads", 1), ("random_seed", 0), ("presolve", "off"))
        for option, value in options:
            self.highs.setOptionValue(option, value)
        p, nowhere = self.p, np.zeros(0, np.int32)
        for price in [1 / p] * (2 * p) + [1.0]:
            self.highs.addCol(price, 0.0, limit, 0, nowhere, np.zeros(0))
        for j in range(p):
            columns, entries = np.array([j, p + j, 2 * p], np.int32), np.array([-1.0, -1.0, 1.0])
            self.highs.addRow(0.0, _FREE, 3, columns, entries)

    def run(self, rounds: int, tell: Callable[[int], float]) -> Change:
        """Rows until none is broken."""
        change = torch.zeros(self.p, dtype=torch.float64)
        for turn in range(rounds):
            if not self.add_rows(change):
                return self.ended(MethodStatus.REPAIRED, "", change)
            left = min(tell(turn), 1e9)
            self.highs.setOptionValue("time_limit", self.highs.getRunTime() + left)
            self.highs.run()
            status = self.highs.getModelStatus()
            if status == highspy.HighsModelStatus.kTimeLimit:
                raise TimeoutError("the time was up in an LP")
            if status == highspy.HighsModelStatus.kInfeasible and self.refuted():
                return self.ended(MethodStatus.INFEASIBLE, "no change inside the limits does it")
            if status != highspy.HighsModelStatus.kOptimal:
                said = f"HiGHS ended with: {self.highs.modelStatusToString(status)}"
                return self.ended(MethodStatus.SOLVER_FAILED, said)
            value = torch.from_numpy(np.array(self.highs.getSolution().col_value))
            change = value[: self.p] - value[self.p : -1]
            self.bound = float(self.highs.getInfo().objective_function_value)
        return self.ended(MethodStatus.SOLVER_FAILED, f"{rounds} rounds are not enough")

    def add_rows(self, change: Tensor) -> int:
        """Those that a change breaks most; how many there are."""
        lack = self.need - self.rows.forward(change).numpy()
        new = most_broken(lack, self.active, _ROWS)
        columns = np.arange(2 * self.p, dtype=np.int32)
        for row in new:
            one = torch.zeros(len(self.need), dtype=torch.float64)
            one[row] = 1.0
            slope = self.rows.backward(one).numpy()
            both = np.concatenate([slope, -slope])
            self.highs.addRow(float(self.need[row]), _FREE, len(columns), columns, both)
        self.active = np.concatenate([self.active, new])
        return len(new)

    def refuted(self) -> bool:
        """Whether duals y >= 0 prove that there is no change: need.y > limit |A' y|_1."""
        _, known, ray = self.highs.getDualRay()
        if not known:
            return False
        for sign in (1.0, -1.0):  # HiGHS does not say which it gives
            y = np.zeros(len(self.need))
            y[self.active] = np.maximum(sign * np.array(ray)[self.p :], 0.0)
            most = self.limit * float(self.rows.backward(torch.from_numpy(y)).abs().sum())
            if float(self.need @ y) > most * (1 + CLOSE):
                self.blamed = np.flatnonzero(y > CLOSE * y.max())
                return True
        return False

    def ended(self, status: MethodStatus, reason: str, value: Tensor | None = None) -> Change:
        """With what is known by now."""
        sizes = len(self.active), 2 * self.p
        return Change(value, status, reason, cost(value), self.bound, *sizes, self.blamed)
