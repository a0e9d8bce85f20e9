"""The small LP behind :mod:`advrepair_baselines.lp_columns`: it grows, its basis stays."""

from __future__ import annotations

import highspy
import numpy as np
from attrs import frozen

from advrepair_baselines.lp_types import Floats

_DEAR, _TIMES, _RAISES = 100.0, 1000.0, 2  # price of what is lacking: of the limit, raised so often
_FREE = highspy.kHighsInf


@frozen(eq=False)
class Solved:
    """An optimum. weights: of the columns. duals: of the rows, >= 0. lacking: in all rows.

    worth: what a column must save to be wanted, beside its own cost.
    """

    objective: float
    weights: Floats
    duals: Floats
    worth: float
    lacking: float


class Master:
    """min cost . mu where rows are met, mu >= 0, sum mu <= limit; what rows lack has a high price.

    The price is raised, where something lacks in the end.
    """

    def __init__(self, limit: float) -> None:
        self.missing: list[int] = []  # columns that stand for what rows lack
        self.columns: list[int] = []
        self.price, self.raised = _DEAR * limit, 0
        self.highs = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            self.highs.setOptionValue(option, value)
        self._row(-_FREE, limit, [], np.zeros(0))

    def add_column(self, cost: float, effects: Floats) -> None:
        """With what it does to every row."""
        rows = range(1 + len(effects))
        self.columns.append(self._column(cost, rows, np.concatenate([[1.0], effects])))

    def add_row(self, need: float, effects: Floats) -> None:
        """With what every column does to it."""
        self.missing.append(self._column(self.price, [], np.zeros(0)))
        self._row(need, _FREE, [self.missing[-1], *self.columns], np.concatenate([[1.0], effects]))

    def raise_price(self) -> bool:
        """Of what is lacking; False if it has been raised often enough."""
        self.price, self.raised = self.price * _TIMES, self.raised + 1
        for column in self.missing:
            self.highs.changeColCost(column, self.price)
        return self.raised <= _RAISES

    def solve(self, seconds: float) -> Solved | str:
        """An optimum, or what HiGHS says instead; raises TimeoutError."""
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + min(seconds, 1e9))
        self.highs.run()
        status = self.highs.getModelStatus()
        if status == highspy.HighsModelStatus.kTimeLimit:
            raise TimeoutError("the time was up in an LP")
        if status != highspy.HighsModelStatus.kOptimal:
            return f"HiGHS ended with: {self.highs.modelStatusToString(status)}"
        solution = self.highs.getSolution()
        value, dual = np.array(solution.col_value), np.array(solution.row_dual)
        found = float(self.highs.getInfo().objective_function_value)
        lacking = float(value[self.missing].sum())
        return Solved(found, value[self.columns], dual[1:], -float(dual[0]), lacking)

    def _column(self, cost: float, rows: range | list[int], entries: Floats) -> int:
        self.highs.addCol(cost, 0.0, _FREE, len(rows), np.array(rows, np.int32), entries)
        return int(self.highs.getNumCol()) - 1

    def _row(self, low: float, high: float, columns: list[int], entries: Floats) -> None:
        self.highs.addRow(low, high, len(columns), np.array(columns, np.int32), entries)
