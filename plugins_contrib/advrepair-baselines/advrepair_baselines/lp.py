"""The least change of parameters that meets linear demands, by linear programs in HiGHS.

Sought is a change v, [p], of the parameters with::

    min |v|_inf + |v|_1 / p    where  A v >= need,  |v|_inf <= limit

Few parameters are all in one LP, many are dealt with by columns. Rows are added as changes break
them, in both. Measured, on one core: FNN_small's first layer, 39,250 parameters and 50 rows, took
HiGHS's interior point 44 s without crossover, and takes 1 s by columns to a gap of 1 %.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from advrepair_baselines.lp_columns import ByColumns
from advrepair_baselines.lp_rows import ByRows
from advrepair_baselines.lp_types import Change, Rows

FEW = 3000  # parameters that are all in one LP
_ROUNDS = 5000  # columns, or times that rows are added, at most
_COLUMNS, _ROWS = 500, 3000  # that a problem is guessed to take; those of the tests took less
_PROGRAM = 400 * 2**20  # bytes that Python, torch and HiGHS take


def refuse_if_too_large(parameters: int, values: int, memory: int) -> None:
    """Raises MemoryError, with the number, if an LP will not fit.

    parameters: p. values: numbers inside the network at all its inputs. memory: bytes.
    """
    entries = _ROWS * (2 * parameters if parameters <= FEW else _COLUMNS)
    need = _PROGRAM + parameters * (_COLUMNS + 16 * 8) + 5 * 8 * values + 2 * 16 * entries
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
    gap: float = 0.05,
    rounds: int = _ROUNDS,
) -> Change:
    """A change that costs at most 1 / (1 - gap) times the least.

    need: [R], float64. tell: given the number of the round; returns the seconds that are left.
    Infeasible is proved by duals, up to rounding in float64. Raises what tell raises, and
    TimeoutError in an LP.
    """
    if rows.parameters <= FEW:
        return ByRows(rows, need.numpy(), limit).run(rounds, tell)
    return ByColumns(rows, need.numpy(), limit, gap).run(rounds, tell)
