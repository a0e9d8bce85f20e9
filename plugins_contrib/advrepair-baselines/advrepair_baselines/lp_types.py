"""What an LP is given, what comes of it, and the rows that a change breaks most."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from advrepair import MethodStatus

Floats = NDArray[np.float64]
CLOSE = 1e-6  # what a row may lack


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

    objective, and a bound under which there is none; rows and columns of the last LP. blamed: rows
    that exclude each other, where there is no solution.
    """

    value: Tensor | None
    status: MethodStatus
    reason: str
    objective: float
    bound: float
    rows: int
    columns: int
    blamed: NDArray[np.int64] = field(factory=lambda: np.zeros(0, np.int64))


def cost(change: Tensor | None) -> float:
    """|v|_inf + |v|_1 / p; infinite where there is no change."""
    if change is None:
        return float("inf")
    return float(change.abs().max() + change.abs().mean())


def most_broken(lack: Floats, active: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows that lack most, [count] at most, of those that are not active."""
    lack = lack.copy()
    lack[active] = -np.inf
    worst = np.argsort(-lack, kind="stable")[:count]
    return worst[lack[worst] > CLOSE]
